"""The augmentation is OSRL's, given the same random numbers, and says when it cannot work."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from algorithms.cdt import CDT, CDTHyperparameters
from algorithms.osrl.models import sequence_dataset
from harness import registry
from harness.algorithm import Replica
from harness.data.augmentation import augment, thin
from harness.data.dataset import load_dataset
from harness.errors import UserError
from harness.tasks import find_task


class OSRLsNumbers:
    """Random numbers from the global generators, with the calls that OSRL makes."""

    def random(self, size: int) -> Any:
        return np.random.random(size)

    def choice(self, values: Any, size: int, replace: bool = True, p: Any = None) -> Any:
        return np.random.choice(values, size=size, p=p) if replace else random.sample(values, size)


@pytest.mark.parametrize("name", ["BallRun", "BallCircle"])
@pytest.mark.parametrize("settings", [{}, {"augment_degree": 4, "augment_beta": 5.0}, {"augment_share": 1.0}])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_osrls_numbers_give_osrls_trajectories(
    name: str, settings: dict[str, Any], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = find_task(name)
    dataset = load_dataset(task, "demo")
    config = CDTHyperparameters.model_validate({**CDT.published(task), **settings})
    replica = Replica(seed)
    theirs = registry.load("osrl-cdt").select(dataset, config, replica).segments
    assert theirs is not None
    made = sequence_dataset(dataset, config, replica.entropy("augmentation"))
    assert len(made.aug_data) > 2

    np.random.seed(replica.entropy("augmentation") % 2**32)
    random.seed(replica.entropy("augmentation"))
    monkeypatch.setattr(np.random, "default_rng", lambda seed: OSRLsNumbers())
    ours = CDT.select(dataset, config, replica).segments
    assert ours is not None
    assert np.array_equal(ours.trajectories, theirs.trajectories)
    # OSRL sums a trajectory's rewards, hundreds, in float32, and fits the frontier to those sums.
    assert np.allclose(ours.reward_shift, theirs.reward_shift, atol=0.05)
    assert np.allclose(ours.cost_shift, theirs.cost_shift, atol=1e-3)
    assert np.allclose(ours.weights / ours.weights.sum(), theirs.weights / theirs.weights.sum(), atol=1e-6)


def settings(**changes: Any) -> dict[str, Any]:
    defaults = {"share": 0.5, "degree": 1, "max_reward": 50.0, "min_reward": 1.0, "max_reward_decrease": 5.0}
    return {**defaults, "beta": 1.0, **changes}


def test_targets_lie_above_the_frontier_and_go_to_trajectories_that_cost_no_more() -> None:
    rng = np.random.default_rng(0)
    costs = rng.integers(0, 30, 400).astype(float)
    rewards = costs / 2 + rng.uniform(0, 10, 400)
    chosen, new_rewards, new_costs = augment(costs, rewards, rng, **settings())
    assert len(chosen) == len(new_rewards) == len(new_costs) > 20
    assert (new_rewards <= 50).all()
    assert (np.diff(new_costs) >= 0).all()
    kept = thin(costs, rewards, np.random.default_rng(0))
    frontier = np.poly1d(np.polyfit([0, 29], [rewards[costs == c].max() for c in (0, 29)], 1))
    assert (new_rewards > frontier(new_costs) - 5).mean() > 0.9
    assert set(chosen) <= set(range(400))
    assert len(kept) < 400


def test_each_replica_is_augmented_by_its_own_numbers() -> None:
    dataset = load_dataset(find_task("BallRun"), "demo")
    config = CDTHyperparameters()
    one, same, other = (CDT.select(dataset, config, Replica(seed)).segments for seed in (0, 0, 1))
    assert one is not None
    assert same is not None
    assert other is not None
    assert np.array_equal(one.reward_shift, same.reward_shift)
    assert not np.array_equal(one.reward_shift, other.reward_shift)


def test_crowds_are_thinned_and_outliers_dropped() -> None:
    costs = np.array([0.0] * 30 + [100.0] * 2 + [50.0] * 3)
    rewards = np.array([0.0] * 30 + [100.0] * 2 + [50.0] * 3)
    kept = thin(costs, rewards, np.random.default_rng(0))
    assert [int((kept < 30).sum()), int(((kept >= 30) & (kept < 32)).sum()), int((kept >= 32).sum())] == [10, 0, 3]


@pytest.mark.parametrize("constant", [0.0, 7.0])
def test_one_cost_alone_is_no_reason_to_fail(constant: float) -> None:
    costs = np.full(60, constant)
    rewards = np.repeat(np.linspace(0, 10, 12), 5)
    chosen, new_rewards, new_costs = augment(costs, rewards, np.random.default_rng(0), **settings(degree=2))
    assert len(chosen) == 30
    assert (new_costs == constant).all()
    assert np.isfinite(new_rewards).all()


def test_too_little_data_is_refused() -> None:
    with pytest.raises(UserError, match="no frontier to augment from"):
        augment(np.array([0.0, 50.0]), np.array([1.0, 2.0]), np.random.default_rng(0), **settings())
