"""The reference's defects, each with its effect, and the corrected variants without it; the default is the defect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from algorithms.cpq import CPQ, CPQHyperparameters
from harness import registry
from harness.algorithm import Replica
from harness.tasks import find_task

TASK = find_task("BallRun")
BATCH = 64
CRITIC = {"batch_size": BATCH, "actor_hidden_sizes": (16, 16), "critic_hidden_sizes": (32, 32)}
Q = {**CRITIC, "vae_hidden_size": 16, "sampled_actions": 3}
SMALL: dict[str, dict[str, Any]] = {
    "bcq-lag": Q,
    "bear-lag": {**Q, "mmd_samples": 3},
    "cpq": Q,
    "coptidice": CRITIC,
    "lspc": {"batch_size": BATCH, "hidden_sizes": (16, 16), "latent_dim": 4},
    "caps": CRITIC,
    "fisor": {"batch_size": BATCH, "critic_hidden_sizes": (32, 32), "width": 16, "time_size": 8, "frequencies": 4},
}
STATISTICS = {
    "initial_share": np.array(0.1),
    "observation_std": np.ones(TASK.observation_size),
    "action_std": np.ones(TASK.action_size),
}
Batches = Callable[[torch.Generator], dict[str, Tensor]]


def batch_of(generator: torch.Generator, **columns: float) -> dict[str, Tensor]:
    """Random transitions, with some columns constant."""

    def normal(*size: int) -> Tensor:
        return torch.randn(1, BATCH, *size, generator=generator)

    batch = {
        "observations": normal(TASK.observation_size),
        "next_observations": normal(TASK.observation_size),
        "actions": normal(TASK.action_size).tanh(),
        "rewards": normal(),
        "costs": torch.zeros(1, BATCH),
        "done": torch.zeros(1, BATCH),
        "terminals": torch.zeros(1, BATCH),
        "initial": torch.zeros(1, BATCH),
    }
    return batch | {name: torch.full((1, BATCH), value) for name, value in columns.items()}


def train(name: str, steps: int, limit: float, batches: Batches, **settings: Any) -> tuple[Any, list[dict[str, float]]]:
    """One agent after some steps, and its metrics."""
    kind = registry.load(name)
    config = kind.Hyperparameters.model_validate({**SMALL[name], **settings})
    agent = kind(config, TASK, [Replica(0, limit, statistics=STATISTICS)])
    generator = torch.Generator().manual_seed(0)
    metrics = []
    for _ in range(steps):
        noise = {key: torch.randn(1, *shape, generator=generator) for key, shape in kind.noise(config, TASK).items()}
        metrics.append({key: float(value) for key, value in agent.update(batches(generator), noise).items()})
    return agent, metrics


# 1. COptiDICE: a discounted total is compared with a cost per step


@pytest.mark.parametrize(("threshold", "rises"), [("osrl", False), ("per_step", True)])
def test_coptidice_raises_its_multiplier_on_costly_data_only_when_corrected(threshold: str, rises: bool) -> None:
    """Every step costs a half; the limit of 5 in 100 steps allows a twentieth."""

    def batches(generator: torch.Generator) -> dict[str, Tensor]:
        batch = batch_of(generator, costs=0.5)
        batch["initial"] = (torch.rand(1, BATCH, generator=generator) < 0.1).float()
        return batch

    rates = {"critic_lr": 1e-2, "scalar_lr": 1e-2}
    agent, metrics = train("coptidice", 150, 5.0, batches, cost_threshold=threshold, **rates)
    assert float(agent.threshold) == pytest.approx(
        {"osrl": 5 * (1 - 0.99**100) / 0.01 / 100, "per_step": 0.05}[threshold]
    )
    begun, ended = metrics[0]["multiplier"], metrics[-1]["multiplier"]
    assert ended > begun + 0.3 if rises else ended < begun - 0.3


# 2. CPQ: the penalty for actions out of distribution has no gradient


def test_cpqs_penalty_has_a_gradient_only_when_corrected() -> None:
    generator = torch.Generator().manual_seed(0)
    observations = torch.randn(1, BATCH, TASK.observation_size, generator=generator)
    noise = torch.randn(1, 3 * BATCH, TASK.action_size, generator=generator)
    gradients = {}
    for corrected in (False, True):
        config = CPQHyperparameters.model_validate({**Q, "ood_gradient": corrected})
        agent = CPQ(config, TASK, [Replica(0, 20.0)])
        cost = agent._out_of_distribution_cost(observations, noise)
        parameters = list(agent.critics["cost"].parameters())
        if not corrected:
            assert not cost.requires_grad
            continue
        gradients = dict(enumerate(torch.autograd.grad(cost.sum(), parameters)))
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-3


def test_cpq_pushes_the_cost_of_foreign_actions_up_only_when_corrected() -> None:
    """On data without any cost; the penalty is to lift the critic where the VAE finds actions foreign."""
    ended = {}
    for corrected in (False, True):
        _, metrics = train("cpq", 300, 10.0, batch_of, ood_gradient=corrected, polyak=0.1)
        ended[corrected] = metrics[-1]["ood_cost"]
    assert abs(ended[False]) < 0.3
    assert ended[True] > 0.5


# 3. CPQ, BCQ-Lag, BEAR-Lag: the cost backup goes on where the episode ends


@pytest.mark.parametrize("name", ["bcq-lag", "bear-lag", "cpq"])
def test_the_cost_of_a_last_step_is_its_own_only_when_corrected(name: str) -> None:
    """Every step costs 1 and ends its episode: its cost value is 1, not that of ever more steps."""
    ended = {}
    for through in (True, False):
        _, metrics = train(
            name,
            400,
            1e6,
            lambda generator: batch_of(generator, costs=1.0, done=1.0),
            cost_bootstrap_through_done=through,
            polyak=0.2,
            critic_lr=3e-3,
        )
        ended[through] = metrics[-1]["cost_value"]
    assert ended[False] == pytest.approx(1, abs=0.3)
    assert ended[True] > 3


# 4. A time limit counts as terminal


@pytest.mark.parametrize("name", SMALL)
def test_a_time_limit_ends_the_return_unless_corrected(name: str) -> None:
    kind = registry.load(name)
    config = kind.Hyperparameters.model_validate(SMALL[name])
    corrected = kind.Hyperparameters.model_validate({**SMALL[name], "timeouts_terminal": False})
    assert "done" in kind.columns(config)
    assert "terminals" not in kind.columns(config)
    assert "terminals" in kind.columns(corrected)
    assert "done" not in kind.columns(corrected)

    def timed_out(generator: torch.Generator) -> dict[str, Tensor]:
        return batch_of(generator, done=1.0, terminals=0.0)

    loss = {"bcq-lag": "critic_loss", "bear-lag": "critic_loss", "cpq": "critic_loss", "lspc": "q_loss"}
    loss["fisor"] = "critic_loss"
    loss["caps"] = "reward_critic_loss"
    key = loss.get(name, "td_error")
    ends, goes_on = (
        train(name, 1, 10.0, timed_out, timeouts_terminal=terminal)[1][0][key] for terminal in (True, False)
    )
    assert ends != goes_on


# 5. BCQ-Lag, BEAR-Lag: the actor is penalised with the most optimistic cost critic


@pytest.mark.parametrize("name", ["bcq-lag", "bear-lag"])
def test_the_actor_meets_the_least_cost_unless_corrected(name: str) -> None:
    values = {
        reduction: train(name, 1, 10.0, batch_of, cost_critic_reduction=reduction)[1][0]["cost_value"]
        for reduction in ("min", "max")
    }
    assert values["min"] < values["max"] - 0.01
