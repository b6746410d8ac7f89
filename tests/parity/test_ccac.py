"""CCAC, two replicas stacked, against a plain transcription, and against the authors' own code where that is there.

10 steps of the warm-up and 50 full ones in float64, from the same weights, with the same batches and noise: every
parameter, target, multiplier and moment of an optimiser is compared.
"""

from __future__ import annotations

import copy
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import ccac_reference as reference
import numpy as np
import pytest
import torch
from authors import Clone
from pairing import Pair, compare, copy_weights, optimizers, pair_ensemble, pair_layers
from torch import Tensor

from algorithms.ccac import CCAC, CCACHyperparameters
from harness.algorithm import Replica
from harness.tasks import find_task

TASK = find_task("BallRun")
REPLICAS, WARM_UP, STEPS, BATCH, TOLERANCE = 2, 10, 50, 32, 1e-7
AUTHORS = Clone("LSPC_BENCH_CCAC", "https://github.com/BU-DEPEND-Lab/CCAC", "4707c1f72ef5")


class Agent(NamedTuple):
    """What belongs together of one replica and a plain agent, and the agent's optimisers."""

    pairs: list[Pair]
    optimizers: list[torch.optim.Optimizer]


class OfMultipliers:
    """What the optimiser of both multipliers keeps, by parameter; it counts each replica's steps."""

    def __init__(self, ours: CCAC) -> None:
        optimizer: Any = ours.multiplier_optimizer
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        for name, parameters in optimizer.parameters.items():
            kept, sizes = optimizer.state[name], [one[0].numel() for one in parameters]
            moments = {key: kept[key].split(sizes, 1) for key in ("exp_avg", "exp_avg_sq")}
            for index, parameter in enumerate(parameters):
                own = {key: parts[index].view_as(parameter) for key, parts in moments.items()}
                self.state[parameter] = {"step": kept["step"], **own}


def settings(**more: Any) -> CCACHyperparameters:
    return CCACHyperparameters(
        steps=WARM_UP + STEPS,
        warm_up=WARM_UP / (WARM_UP + STEPS) + 1e-9,
        batch_size=BATCH,
        actor_hidden_sizes=(16, 16),
        critic_hidden_sizes=(16, 16),
        vae_hidden_sizes=(20, 20),
        latent_size=6,
        classifier_hidden_sizes=(20, 20),
        multiplier_hidden_sizes=(20, 20),
        **{"polyak": 0.05, "multiplier_lr": 1e-3, **more},
    )


def agents(config: CCACHyperparameters) -> CCAC:
    """Two replicas; of the second's made-up pairs few are out of distribution, and in some batches none."""
    least = np.linspace(-0.4, -0.1, TASK.observation_size, dtype=np.float32)
    replicas = [
        Replica(seed, statistics={"observation_minimum": least - seed, "observation_maximum": -least + seed})
        for seed in range(REPLICAS)
    ]
    ours = CCAC(config, TASK, replicas, dtype=torch.float64)
    with torch.no_grad():
        ours.models["classifier"].layers[-1].bias[1] += 0.08
    return ours


def random_batch(generator: torch.Generator) -> dict[str, Tensor]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(REPLICAS, BATCH, *shape, generator=generator, dtype=torch.float64)

    costs_to_go = 5 * normal().abs()
    return {
        "observations": normal(TASK.observation_size),
        "actions": normal(TASK.action_size).tanh(),
        "next_observations": normal(TASK.observation_size),
        "rewards": 3 * normal(),
        "costs": (normal() > 0.5).double(),
        "done": (normal() > 1.5).double(),
        "costs_to_go": costs_to_go,
        "next_costs_to_go": costs_to_go * (normal() > -1),
    }


Step = Callable[[int, Mapping[str, Tensor], Mapping[str, Tensor], int], None]


def train_both(ours: CCAC, theirs: Sequence[Agent], step_theirs: Step) -> Tensor:
    """Step both and compare them; the share (steps, R) of made-up pairs out of distribution in full steps."""
    for replica, agent in enumerate(theirs):
        copy_weights(agent.pairs, replica)
    generator, foreign = torch.Generator().manual_seed(0), []
    before = copy.deepcopy(ours.multipliers)
    for step in range(WARM_UP + STEPS):
        batch = random_batch(generator)
        noise = {
            name: torch.randn(REPLICAS, *shape, generator=generator, dtype=torch.float64)
            for name, shape in CCAC.noise(ours.config, TASK).items()
        }
        ours.step = step
        metrics = ours.update(batch, noise)
        if step >= WARM_UP:
            foreign.append(metrics["foreign"])
        for replica in range(REPLICAS):
            mine = ({name: value[replica].clone() for name, value in given.items()} for given in (batch, noise))
            step_theirs(replica, *mine, step)
    for replica, agent in enumerate(theirs):
        compare(agent.pairs, replica, [*optimizers(ours), OfMultipliers(ours)], agent.optimizers, TOLERANCE)
    assert any(
        (one != other).any() for one, other in zip(before.parameters(), ours.multipliers.parameters(), strict=True)
    )
    return torch.stack(foreign)


def sees_both_cases(foreign: Tensor) -> bool:
    """Whether one replica had pairs out of distribution in some batches and none in others, the other in all."""
    return bool((foreign[:, 0] > 0).all() and 5 < (foreign[:, 1] > 0).sum() < STEPS - 5)


# The plain transcription


def plain_agent(config: CCACHyperparameters, ours: CCAC, replica: int) -> Any:
    size = TASK.observation_size
    return reference.ReferenceCCAC(
        reference.Settings(
            observation_size=size,
            action_size=TASK.action_size,
            warm_up_steps=WARM_UP,
            hidden_sizes=(16, 16),
            vae_hidden_sizes=(20, 20),
            latent_dim=6,
            polyak=config.polyak,
            multiplier_lr=config.multiplier_lr,
            reward_scale=config.reward_scale,
            cost_scale=config.cost_scale,
            zero_gradients=config.zero_grad == "zeros",
        ),
        ours.least[replica, 0, :size],
        ours.most[replica, 0, :size],
    )


def beside(ours: CCAC, plain: reference.ReferenceCCAC) -> Agent:
    models, multipliers = ours.models, ours.multipliers
    pairs = [
        *pair_ensemble("critic", ours.critics["reward"], plain.critics),
        *pair_ensemble("cost critic", ours.critics["cost"], plain.cost_critics),
        *pair_ensemble("critic target", ours.targets["reward"], plain.critics_target),
        *pair_ensemble("cost critic target", ours.targets["cost"], plain.cost_critics_target),
        *pair_layers("actor", ours.actor, plain.actor),
        *pair_layers("encoder", models["encoder"], plain.cvae.encoder),
        *pair_layers("decoder", models["decoder"], plain.cvae.decoder),
        *pair_layers("classifier", models["classifier"], plain.classifier),
        *pair_layers("made-up", multipliers["made_up"], plain.critic_multiplier),
        *pair_layers("budget", multipliers["actor"], plain.actor_multiplier),
    ]
    return Agent(pairs, optimizers(plain))


PLAIN_NOISE = {
    "encoder": "vae",
    "critic": "reward_target",
    "cost_critic": "cost_target",
    "latent": "made_up",
    "actor": "actor",
}


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("zero_grad", ["zeros", "none"])
def test_every_step_agrees_with_the_transcription(zero_grad: str, scale: float) -> None:
    config = settings(zero_grad=zero_grad, cost_scale=scale)
    ours = agents(config)
    plain = [plain_agent(config, ours, replica) for replica in range(REPLICAS)]

    def step(replica: int, batch: Mapping[str, Tensor], noise: Mapping[str, Tensor], number: int) -> None:
        plain[replica].step(dict(batch), {theirs: noise[mine] for theirs, mine in PLAIN_NOISE.items()})

    foreign = train_both(ours, [beside(ours, agent) for agent in plain], step)
    assert sees_both_cases(foreign)


def test_the_policy_acts_as_the_transcription_does() -> None:
    """Through the end of the budget; at scale 1, where the transcription's budget is the raw one."""
    config = settings()
    ours = agents(config)
    plain = plain_agent(config, ours, 1)
    copy_weights(beside(ours, plain).pairs, 1)
    policy, generator, limit = ours.policies(1)["ccac"], torch.Generator().manual_seed(1), 3.0
    policy.reset([0, 1, 2], limit)
    budgets = [limit] * 3
    for _ in range(8):
        observations = torch.randn(3, TASK.observation_size, generator=generator, dtype=torch.float64)
        costs = 2 * torch.rand(3, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            actions = policy.act(observations)
        policy.observe(costs, costs)
        for row, action in enumerate(actions):
            assert (action - plain.act(observations[row], budgets[row])).abs().max() < 1e-12
            budgets[row] = reference.spend(budgets[row], float(costs[row]))
    assert budgets == [0.0] * 3


# The authors' code


@pytest.fixture
def authors(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Their module of the algorithm; what it imports and does not use for a step is left out."""
    sources = {
        name: AUTHORS.source(f"OSRL/osrl/{name.replace('.', '/')}.py") for name in ("common.net", "algorithms.ccac")
    }
    nothing: dict[str, Any] = {"DummyLogger": object, "WandbLogger": object, "TransitionDataset": object}
    for name in ("osrl", "osrl.common", "osrl.common.dataset", "osrl.common.net", "fsrl", "fsrl.utils"):
        module = types.ModuleType(name)
        module.__dict__.update(nothing)
        monkeypatch.setitem(sys.modules, name, module)
    exec(compile(sources["common.net"], "net.py", "exec"), sys.modules["osrl.common.net"].__dict__)
    module = types.ModuleType("authors_ccac")
    exec(compile(sources["algorithms.ccac"], "ccac.py", "exec"), module.__dict__)
    return module


def authors_agent(module: ModuleType, config: CCACHyperparameters, ours: CCAC, replica: int) -> Any:
    size = TASK.observation_size
    agent = module.CCAC(
        size,
        TASK.action_size,
        1.0,
        ours.least[replica, 0, :size].numpy(),
        ours.most[replica, 0, :size].numpy(),
        a_hidden_sizes=[16, 16],
        c_hidden_sizes=[16, 16],
        vae_hidden_sizes=20,
        vae_latent_sizes=6,
        tau=config.polyak,
        beta=config.vae_beta,
        num_q=4,
        num_qc=4,
    ).double()
    agent.setup_optimizers(config.actor_lr, config.critic_lr, config.vae_lr)
    if config.zero_grad == "zeros":  # what zero_grad did in their torch
        agent.lagrangian_optim.zero_grad = lambda: torch.optim.Adam.zero_grad(agent.lagrangian_optim, set_to_none=False)
    return agent


def beside_authors(ours: CCAC, agent: Any) -> Agent:
    cvae, models, multipliers, pairs = agent.cvae, ours.models, ours.multipliers, []
    for own, suffix in ((ours.critics, ""), (ours.targets, "_old")):
        for name, prefix in (("reward", ""), ("cost", "cost_")):
            pairs += pair_ensemble(f"{name}{suffix}", own[name], getattr(agent, f"{prefix}critic{suffix}").q_nets)
    pairs += [
        *pair_layers("actor", ours.actor, agent.actor),
        *pair_layers("encoder", models["encoder"], cvae.e1, cvae.e2, cvae.mean, cvae.log_std),
        *pair_layers("decoder", models["decoder"], cvae.sa_d1, cvae.sa_d2, cvae.sa_d3),
        *pair_layers("classifier", models["classifier"], agent.classifier),
        *pair_layers("made-up", multipliers["made_up"], agent.qc_lag),
        *pair_layers("budget", multipliers["actor"], agent.actor_lag),
    ]
    return Agent(pairs, optimizers(agent))


@contextmanager
def drawing(*noise: Tensor) -> Iterator[None]:
    """Hand this noise to whoever draws, in order; and let nobody fall back to single precision."""
    left = [values.clone() for values in noise]
    with pytest.MonkeyPatch.context() as patch:
        for place in ("torch.randn_like", "torch.randn", "torch.distributions.normal._standard_normal"):
            patch.setattr(place, lambda *_, **__: left.pop(0))
        patch.setattr(Tensor, "float", Tensor.double)
        yield
    assert not left


@pytest.mark.parametrize("zero_grad", ["zeros", "none"])
def test_every_step_agrees_with_the_authors_code(authors: ModuleType, zero_grad: str) -> None:
    config = settings(zero_grad=zero_grad, multiplier_lr=1e-4)
    ours = agents(config)
    theirs = [authors_agent(authors, config, ours, replica) for replica in range(REPLICAS)]

    def step(replica: int, batch: Mapping[str, Tensor], noise: Mapping[str, Tensor], number: int) -> None:
        agent, budgets, following = theirs[replica], batch["costs_to_go"], batch["next_costs_to_go"]
        transitions = (batch["observations"], batch["next_observations"], batch["actions"])
        with drawing(noise["vae"]):
            agent.vae_loss(batch["observations"], batch["actions"], budgets)
        if number < WARM_UP:
            return
        with drawing(noise["reward_target"]):
            rewards = batch["rewards"] * config.reward_scale
            agent.critic_loss_vanilla(*transitions, rewards, budgets, following, batch["done"])
        with drawing(noise["cost_target"], noise["made_up"]):
            agent.cost_critic_loss_cvae(*transitions, batch["costs"], budgets, following, batch["done"])
        with drawing(noise["actor"]):
            agent.actor_loss(batch["observations"], budgets)
        agent.sync_weight()

    foreign = train_both(ours, [beside_authors(ours, agent) for agent in theirs], step)
    assert sees_both_cases(foreign)
