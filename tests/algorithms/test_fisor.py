"""FISOR: its weights, what its critics see, its options, and a policy that samples from its own seed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms.fisor import FISOR, FISORHyperparameters, SafestSamplePolicy, regression_weights, return_scale
from harness import evaluation
from harness.algorithm import Replica
from harness.contract import Contract
from harness.tasks import all_tasks, find_task

TASK = find_task("BallRun")
ROWS = 64
SMALL = {
    **{"batch_size": ROWS, "critic_hidden_sizes": (16, 16), "width": 16, "blocks": 2, "time_size": 8},
    **{"frequencies": 4, "samples": 4},
}


def agent(**settings: Any) -> FISOR:
    config = FISORHyperparameters.model_validate({**SMALL, **settings})
    return FISOR(config, TASK, [Replica(0), Replica(1)], dtype=torch.float64)


def inputs(algorithm: FISOR, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A batch and noise for both replicas."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(2, *shape, generator=generator, dtype=torch.float64)

    batch = {
        "observations": normal(ROWS, TASK.observation_size),
        "next_observations": normal(ROWS, TASK.observation_size),
        "actions": (2 * normal(ROWS, TASK.action_size)).tanh(),
        "rewards": normal(ROWS),
        "costs": (normal(ROWS) > 0).double(),
        "done": (normal(ROWS) > 1).double(),
        "terminals": torch.zeros(2, ROWS, dtype=torch.float64),
    }
    return batch, {name: normal(*shape) for name, shape in FISOR.noise(algorithm.config, TASK).items()}


def changed(one: FISOR, other: FISOR) -> set[str]:
    """The networks in which two agents differ."""
    found = set()
    for name in ("actor", "slow_actor", "critics", "values", "targets"):
        pairs = zip(one.parts()[name].parameters(), other.parts()[name].parameters(), strict=True)
        if not all(torch.allclose(mine, theirs, rtol=0, atol=1e-9) for mine, theirs in pairs):
            found.add(name)
    return found


# What it promises


@pytest.mark.parametrize("settings", [{"dropout": 0.0, "actor_cosine_updates": None}, {"actor_updates": 3}])
def test_every_option_keeps_the_contract(settings: dict[str, Any]) -> None:
    for check in Contract("fisor", {**SMALL, **settings}).checks().values():
        check()


def test_published_settings() -> None:
    for task in all_tasks().values():
        config = FISORHyperparameters.model_validate(FISOR.published(task))
        assert config.floor_h == (1.0 if task.family == "metadrive" else 0.0)
        assert config.model_copy(update={"floor_h": 0.0}) == FISORHyperparameters()
    c = FISORHyperparameters()
    assert (c.steps, c.batch_size, c.actor_updates, round(c.critic_share * c.batch_size)) == (10**6, 2048, 2, 256)
    assert (c.frequencies, c.frequency_std, c.time_size, c.width, c.expansion, c.blocks) == (32, 0.2, 128, 256, 4, 3)
    assert (c.diffusion_steps, c.samples, c.dropout, c.ema) == (5, 16, 0.1, 0.001)
    assert (c.critics, c.critic_hidden_sizes, c.gamma, c.polyak) == (2, (256, 256), 0.99, 0.005)
    assert (c.actor_lr, c.critic_lr, c.actor_cosine_updates) == (3e-4, 3e-4, 3_000_000)
    assert (c.expectile_r, c.expectile_h, c.beta_r, c.beta_h, c.cap_r, c.cap_h) == (0.9, 0.9, 3.0, 5.0, 100.0, 150.0)
    assert (c.signal_costly, c.signal_free, c.action_margin, c.reward_scale) == (25.0, -1.0, 1e-5, None)


def test_no_limit_is_needed() -> None:
    config = FISORHyperparameters()
    assert not FISOR.depends_on_cost_limit(config)
    assert not FISOR.acts_on_cost_limit(config)
    assert FISOR.policy_names(config) == ("fisor",)


def test_rewards_are_scaled_by_the_range_of_returns() -> None:
    task = dataclasses.replace(TASK, max_episode_steps=200, min_episode_reward=-10.0, max_episode_reward=30.0)
    assert return_scale(task) == 5.0
    assert agent().reward_scale == return_scale(TASK)
    assert agent(reward_scale=0.1).reward_scale == 0.1


# One step


def test_every_kind_of_row_has_its_weight() -> None:
    q = torch.tensor([[1.0, 1.0, 9.0, 1.0, 1.0, 1.0, 1e4]])
    v = torch.tensor([[0.5, 0.5, 0.0, 0.5, 0.5, 0.5, 0.0]])
    g = torch.tensor([[-1.0, 0.5, -1.0, 0.9, 3.0, -9.0, 0.0]])
    u = torch.tensor([[-0.5, -0.5, 0.0, 1.0, 1.0, 1.0, -1.0]])
    wanted = [math.exp(1.5), 0.0, 100.0, math.exp(0.5), math.exp(-10.0), 150.0, 100.0]
    assert regression_weights(q, v, g, u, FISORHyperparameters())[0].tolist() == pytest.approx(wanted)
    wanted[4] = 1.0
    assert regression_weights(q, v, g, u, FISORHyperparameters(floor_h=1.0))[0].tolist() == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("settings", "row", "seen"),
    [
        ({}, 0, {"actor", "slow_actor", "critics", "values", "targets"}),
        ({}, 8, {"actor", "slow_actor"}),  # an eighth of 64 rows is for critics and values
        ({"critic_share": 1.0}, ROWS - 1, {"actor", "slow_actor", "critics", "values", "targets"}),
    ],
)
def test_critics_see_the_first_rows_alone(settings: dict[str, Any], row: int, seen: set[str]) -> None:
    agents = [agent(**settings), agent(**settings)]
    for algorithm, moved in zip(agents, (0.0, 0.5), strict=True):
        for values in algorithm.values.values():  # every row has a weight: no state is feasible
            values.layers[-1].bias.data.fill_(1.0)
        batch, noise = inputs(algorithm)
        batch["observations"][:, row] += moved
        algorithm.update(batch, noise)
    assert changed(*agents) == seen


def test_the_slow_copy_follows_after_each_of_two_updates() -> None:
    algorithm = agent(ema=0.5, actor_cosine_updates=3)
    start = [parameter.detach().clone() for parameter in algorithm.actor.parameters()]
    rates = []
    step = algorithm.actor_optimizer.step
    algorithm.actor_optimizer.step = lambda: rates.append(float(algorithm.actor_optimizer.param_groups[0]["lr"]))  # type: ignore[method-assign,assignment,func-returns-value]
    algorithm.update(*inputs(algorithm))
    assert rates == pytest.approx([3e-4, 2.25e-4])  # two steps down a cosine of three
    assert all(torch.equal(a, b) for a, b in zip(start, algorithm.slow_actor.parameters(), strict=True))
    algorithm.actor_optimizer.step = step  # type: ignore[method-assign]
    with torch.no_grad():
        for parameter in algorithm.slow_actor.parameters():
            parameter.zero_()
    algorithm.config = algorithm.config.model_copy(update={"actor_lr": 1e-9})
    algorithm.schedule = None
    algorithm.actor_optimizer.param_groups[0]["lr"] = 0.0
    algorithm.update(*inputs(algorithm))
    for slow, fast in zip(algorithm.slow_actor.parameters(), algorithm.actor.parameters(), strict=True):
        assert torch.allclose(slow, 0.75 * fast)


@pytest.mark.parametrize(
    ("settings", "updates", "differ"),
    [
        ({"actor_cosine_updates": 9}, 1, {"actor", "slow_actor"}),
        ({"beta_h": 1.0}, 1, {"actor", "slow_actor"}),
        ({"floor_h": 2.0}, 1, {"actor", "slow_actor"}),
        ({"ema": 0.5}, 1, {"slow_actor"}),
        ({"dropout": 0.0}, 1, {"actor", "slow_actor"}),
        ({"actor_updates": 4}, 1, {"actor", "slow_actor"}),
        ({"action_margin": 0.2}, 1, {"actor", "slow_actor", "critics", "values", "targets"}),
        ({"timeouts_terminal": False}, 1, {"critics", "targets"}),
        ({"signal_costly": 1.0}, 1, {"critics", "targets"}),
        ({"reward_scale": 5.0}, 1, {"critics", "targets"}),
        ({"expectile_h": 0.5}, 2, {"actor", "slow_actor", "critics", "values", "targets"}),
        ({"samples": 2}, 1, set()),  # it is for acting alone
    ],
)
def test_options_change_what_they_say(settings: dict[str, Any], updates: int, differ: set[str]) -> None:
    agents = [agent(), agent(**settings)]
    for algorithm in agents:
        for step in range(updates):
            algorithm.update(*inputs(algorithm, step))
    assert changed(*agents) == differ


# Acting


def policy(algorithm: FISOR, replica: int = 0) -> SafestSamplePolicy:
    (found,) = algorithm.policies(replica).values()
    assert isinstance(found, SafestSamplePolicy)
    return found.float()


def test_an_episodes_actions_follow_from_its_seed_alone() -> None:
    acting = policy(agent())
    observations = torch.randn(3, 5, TASK.observation_size, generator=torch.Generator().manual_seed(0))
    acting.reset([7, 8, 9, 10, 11], None)
    together = torch.stack([acting.act(seen) for seen in observations], 1)
    for row, seed in enumerate((7, 8, 9, 10, 11)):
        acting.reset([seed], None)
        alone = torch.cat([acting.act(seen[row : row + 1]) for seen in observations])
        assert torch.allclose(alone, together[row], atol=1e-6)
    assert not torch.allclose(together[0, 0], together[0, 1])


def test_many_observations_are_acted_on_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    acting = policy(agent())
    observations = torch.randn(10, TASK.observation_size, generator=torch.Generator().manual_seed(0))
    acting.reset(range(10), None)
    whole = acting.act(observations)
    monkeypatch.setattr("algorithms.fisor.CHUNK", 4)
    acting.reset(range(10), None)
    assert torch.allclose(acting.act(observations), whole, atol=1e-6)


def test_all_environments_of_a_worker_are_acted_for_in_one_call() -> None:
    """The network is called once a step of the diffusion, for every sample of every environment."""
    acting, rows = policy(agent()), []
    acting.actor.register_forward_hook(lambda _, given, __: rows.append(given[1].shape[-2]))
    acting.reset(range(evaluation.CHUNK), None)
    acting.act(torch.zeros(evaluation.CHUNK, TASK.observation_size))
    assert rows == [evaluation.CHUNK * acting.samples] * acting.diffusion.steps


def test_the_sample_of_the_least_worst_signal_is_taken() -> None:
    """Two critics that see the action's first number, one of them turned around: the least |a| is the safest."""
    acting = policy(agent(samples=50, critic_hidden_sizes=(2,)))
    critics: Any = acting.critics
    with torch.no_grad():
        for parameter in critics.parameters():
            parameter.zero_()
        critics.layers[0].weight[..., TASK.observation_size, 0] = 1  # relu(a) and relu(-a)
        critics.layers[0].weight[..., TASK.observation_size, 1] = -1
        critics.layers[1].weight[0, :, :, 0] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    samples = torch.rand(4, 50, TASK.action_size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    acting.diffusion.sample = lambda *_: samples.flatten(0, 1).unsqueeze(0)  # type: ignore[method-assign]
    acting.reset(range(4), None)
    actions = acting.act(torch.zeros(4, TASK.observation_size))
    for row in range(4):
        assert torch.equal(actions[row], samples[row, samples[row, :, 0].abs().argmin()])


# Diagnostics


def test_feasibility_is_held_against_what_is_safe() -> None:
    algorithm = agent()
    batch, _ = inputs(algorithm)
    batch["safe"] = (torch.arange(ROWS) % 4 > 0).double().expand(2, -1)
    batch["discounted_rewards_to_go"] = 3.0 * torch.ones(2, ROWS, dtype=torch.float64)
    with torch.no_grad():
        for network in (algorithm.targets["reward"], algorithm.targets["feasibility"], algorithm.values["feasibility"]):
            network.layers[-1].weight.zero_()
        algorithm.targets["reward"].layers[-1].bias.fill_(2.0)
        algorithm.values["feasibility"].layers[-1].bias.copy_(torch.tensor([-0.1, 0.1]).view(2, 1, 1))
        found = algorithm.diagnose(batch)
    assert found["q_bias"].tolist() == pytest.approx([2.0 / return_scale(TASK) - 3.0] * 2)
    assert found["h_auc"].tolist() == [0.5, 0.5]
    assert found["feasible_safe"].tolist() == found["feasible_unsafe"].tolist() == [1.0, 0.0]
