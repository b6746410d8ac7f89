"""CDT: its targets, its context in roll-outs against OSRL's own, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algorithms.cdt import CDT, CDTHyperparameters, Targets
from harness import registry
from harness.algorithm import Replica
from harness.data.dataset import Dataset
from harness.errors import UserError
from harness.tasks import find_task

TASK = find_task("BallRun")
SMALL = {
    "batch_size": 8,
    "embedding_dim": 16,
    "num_layers": 2,
    "num_heads": 2,
    "sequence_length": 4,
    "target_returns": ((450, 10), (500, 20), (550, 50)),
}


def small(**settings: Any) -> CDTHyperparameters:
    return CDTHyperparameters.model_validate({**SMALL, **settings})


def dataset(costs: list[int], finished: bool = True) -> Dataset:
    """Trajectories of 100 steps with these cost returns, and the rewards 100, 200, ..."""
    rows = 100 * len(costs)
    each = np.concatenate([np.arange(100) < cost for cost in costs])
    arrays = {
        "observations": np.zeros((rows, 7), np.float32),
        "next_observations": np.zeros((rows, 7), np.float32),
        "actions": np.zeros((rows, 2), np.float32),
        "rewards": np.repeat(np.arange(1, len(costs) + 1), 100).astype(np.float32),
        "costs": each.astype(np.float32),
        "terminals": np.zeros(rows, bool),
        "timeouts": np.arange(rows) % 100 == 99,
    }
    if not finished:
        arrays["timeouts"][-1] = False
    return Dataset(TASK, Path("made-up.hdf5"), "dsrl", arrays)


# Targets


@pytest.mark.parametrize(
    ("limit", "wanted"), [(10, 450), (20, 500), (50, 550), (15, 475), (40, 500 + 50 * 2 / 3), (0, 450), (80, 550)]
)
def test_published_targets_are_linear_between_the_pairs(limit: float, wanted: float) -> None:
    assert Targets.of(small(), Replica(0))(limit) == pytest.approx(wanted)


def test_frontier_targets_are_the_best_of_the_data_within_the_limit() -> None:
    data = dataset([30, 5, 5, 12, 60, 40])
    config = small(targets="frontier", augment_share=0)
    statistics = CDT.select(data, config, Replica(0)).statistics
    targets = Targets.of(config, Replica(0, statistics=statistics))
    returns = {5: 300.0, 12: 400.0, 40: 600.0}
    assert [targets(limit) for limit in (5, 11, 12, 39.9, 40, 100)] == [
        returns[5],
        returns[5],
        returns[12],
        returns[12],
        returns[40],
        returns[40],
    ]
    assert targets(0) == returns[5]  # nothing is within it: the cheapest


@given(st.floats(0, 100), st.floats(0, 100))
def test_a_higher_limit_never_asks_for_less(one: float, other: float) -> None:
    targets = Targets.of(small(), Replica(0))
    assert (targets(min(one, other))) <= targets(max(one, other))


# The data


def test_weights_fall_with_cost_and_the_unfinished_trajectory_is_left_out() -> None:
    data = dataset([0, 30, 69, 70, 99, 5], finished=False)
    selection = CDT.select(data, small(augment_share=0), Replica(0))
    assert selection.segments is not None
    assert selection.segments.weights.tolist() == [70, 40, 1, 0, 0]
    inverse = CDT.select(data, small(augment_share=0, cost_sampling="inverse"), Replica(0))
    assert inverse.segments is not None
    assert np.allclose(inverse.segments.weights, [1 / 10, 1 / 40, 1 / 79, 1 / 80, 1 / 109])


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(UserError, match="use 'inverse'"):
        CDT.select(dataset([70, 80]), small(augment_share=0), Replica(0))
    with pytest.raises(UserError, match="no finished trajectory"):
        CDT.select(dataset([1], finished=False), small(), Replica(0))
    with pytest.raises(UserError, match="augment_share: 0"):
        CDT.select(dataset([1, 50]), small(), Replica(0))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"embedding_dim": 10, "num_heads": 4}, "no multiple"),
        ({"target_returns": ((1, 20), (2, 10))}, "must rise"),
        ({"target_returns": ((1, 20), (2, 20))}, "must rise"),
        ({"attention_dropout": 1.0}, "less than 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        small(**settings)


# The context


class World:
    """An environment with the interface that OSRL's roll-out uses; the actions it was given are kept."""

    def __init__(self, seed: int, scale: float, length: int) -> None:
        rng = np.random.default_rng(seed)
        self.observations = rng.normal(size=(length + 1, TASK.observation_size)).astype(np.float32)
        self.rewards, self.costs = rng.uniform(0, 9, length), rng.integers(0, 2, length)
        self.scale, self.length, self.step_count = scale, length, 0
        self.actions: list[Any] = []

    def reset(self) -> tuple[Any, dict[str, Any]]:
        return self.observations[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(np.array(action))
        now = self.step_count
        self.step_count += 1
        info = {"cost": float(self.costs[now])}
        over = self.step_count == self.length
        return self.observations[now + 1], float(self.rewards[now] * self.scale), False, over, info


@pytest.mark.parametrize("limit", [20.0, 50.0])
def test_the_context_is_osrls_roll_out(limit: float) -> None:
    """OSRL's trainer rolls its model out; our context around the same model acts the same, several at once."""
    config = small()
    agent: Any = registry.load("osrl-cdt")(config, TASK, [Replica(0)])
    policy = agent.policies(0)["osrl-cdt"]
    lengths = (9, 12, 15)
    worlds = [World(seed, config.reward_scale, length) for seed, length in enumerate(lengths)]
    targets = {cost: value for value, cost in config.target_returns}
    agent.model.eval()
    for world in worlds:
        agent.trainer.rollout(agent.model, world, targets[limit] * config.reward_scale, limit * config.cost_scale)
        assert len(world.actions) == world.length

    policy.eval()
    ours: list[Any] = []
    with torch.inference_mode():
        policy.reset([0, 1, 2], limit)
        for step in range(max(lengths)):
            now = [min(step, world.length - 1) for world in worlds]
            seen = np.stack([world.observations[t] for world, t in zip(worlds, now, strict=True)])
            ours.append(policy.act(torch.from_numpy(seen)).numpy())
            rewards = torch.tensor([world.rewards[t] for world, t in zip(worlds, now, strict=True)])
            costs = torch.tensor([world.costs[t] for world, t in zip(worlds, now, strict=True)])
            policy.observe(rewards.float(), costs.float())
    for index, world in enumerate(worlds):
        for step in range(world.length):
            assert np.abs(ours[step][index] - world.actions[step]).max() < 1e-5, (index, step)


def test_initial_weights_are_distributed_as_osrls() -> None:
    """Standard deviations and extremes of every weight; OSRL draws its own from torch's global generator."""
    config = CDTHyperparameters.model_validate({"num_layers": 2})
    ours = CDT(config, TASK, [Replica(0), Replica(1)]).network
    theirs: Any = registry.load("osrl-cdt")(config, TASK, [Replica(0)])
    for replica in range(2):
        for layer in (ours.embeddings[3], ours.blocks[0].attention_out, ours.blocks[1].mlp_in, ours.mean, ours.time):
            assert abs(float(layer.weight[replica].detach().std()) / 0.02 - 1) < 0.1
        projected, original = (
            ours.blocks[1].attention_in.weight[replica],
            theirs.model.blocks[1].attention.in_proj_weight,
        )
        assert abs(float(projected.std() / original.std()) - 1) < 0.02
        assert abs(float(projected.abs().max() / original.abs().max()) - 1) < 0.01
        assert ours.blocks[0].mlp_out.bias[replica].abs().max() == 0
    assert not torch.equal(ours.mean.weight[0], ours.mean.weight[1])


def test_a_limit_is_needed() -> None:
    with pytest.raises(ValueError, match="cost limit"):
        CDT(small(), TASK, [Replica(0)]).policies(0)["cdt"].reset([0], None)


def test_dropout_is_off_in_roll_outs_and_each_replicas_own_in_training() -> None:
    config = small()
    ours = CDT(config, TASK, [Replica(0), Replica(1)])
    alone = CDT(config, TASK, [Replica(1)])
    together, single = (agent.dropout.draw(agent.network.dropped((8, 4))) for agent in (ours, alone))
    assert together.keys() == single.keys()
    for name, mask in together.items():
        assert torch.equal(mask[1], single[name][0])
        assert not torch.equal(mask[0], mask[1])
        assert abs(float(mask.float().mean()) - 0.9) < 0.05
