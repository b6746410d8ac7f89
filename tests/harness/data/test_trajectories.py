"""Trajectories, returns and selections are OSRL's; the Pareto frontier is its definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from algorithms.bc import BC, BCHyperparameters
from harness.algorithm import Replica
from harness.data.dataset import Dataset
from harness.data.trajectories import Trajectories, frontier_mask, pareto_frontier
from harness.tasks import find_task

points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30)


def random_dataset(seed: int, trajectories: int = 40) -> Dataset:
    """Whole costs and rewards in eighths, so that OSRL's float32 sums are exact; more cost, more reward."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 30, trajectories)
    rows = lengths.sum()
    ends = np.cumsum(lengths) - 1
    boldness = np.repeat(rng.uniform(0, 1, trajectories), lengths)
    costs = (rng.uniform(size=rows) < boldness).astype(np.float32)
    terminals = np.zeros(rows, dtype=bool)
    terminals[rng.choice(ends, trajectories // 3, replace=False)] = True
    timeouts = np.isin(np.arange(rows), ends) & (~terminals | (rng.uniform(size=rows) < 0.2))
    arrays = {
        "observations": rng.normal(size=(rows, 7)).astype(np.float32),
        "next_observations": rng.normal(size=(rows, 7)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
        "rewards": (np.round(8 * (np.sqrt(boldness) + rng.uniform(0, 0.5, rows))) / 8).astype(np.float32),
        "costs": costs,
        "terminals": terminals,
        "timeouts": timeouts,
    }
    return Dataset(find_task("BallRun"), Path("random.hdf5"), "dsrl", arrays)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("mode", ["all", "safe", "risky", "boundary", "frontier", "multi-task"])
def test_selections_and_returns_are_osrls(mode: str, seed: int) -> None:
    osrl = pytest.importorskip("osrl.common.dataset", reason="osrl-lib is not installed")
    if mode == "frontier":
        pytest.importorskip("oapackage", reason="OSRL's mode frontier needs OApackage")
    dataset = random_dataset(seed)
    for limit in (3.0, 5.0, 10.0):
        replica = Replica(0, limit)
        rows = BC.select(dataset, BCHyperparameters(mode=mode), replica).rows
        theirs = {key: values.copy() for key, values in dataset.arrays.items()}
        theirs["row"] = np.arange(len(dataset))
        osrl.process_bc_dataset(theirs, limit, 1.0, mode)

        ours = np.arange(len(dataset)) if rows is None else rows
        assert mode in ("all", "multi-task") or 0 < len(ours) < len(dataset)
        np.testing.assert_array_equal(ours, theirs["row"])
        np.testing.assert_array_equal(dataset.column("cost_returns")[ours], theirs["cost_returns"])
        np.testing.assert_array_equal(dataset.column("reward_returns")[ours], theirs["rew_returns"])
        if mode == "multi-task":
            np.testing.assert_array_equal(theirs["observations"][:, -1], dataset.column("cost_returns"))


def test_an_unfinished_trajectory_counts_with_its_own_return() -> None:
    done = np.array([0, 1, 0, 0], dtype=bool)
    found = Trajectories.split(done, np.ones(4, np.float32), np.array([1, 1, 5, 6], np.float32))
    assert (found.unfinished, found.lengths.tolist()) == (True, [2, 2])
    assert found.spread(found.cost_returns()).tolist() == [2, 2, 11, 11]


@given(st.lists(st.tuples(st.booleans(), st.floats(-10, 10, width=32)), min_size=1, max_size=40), st.floats(0.5, 1))
def test_discounted_returns_are_a_plain_loops(steps: list[tuple[bool, float]], gamma: float) -> None:
    expected, starts, begin = [], [], True
    for index, (done, value) in enumerate(steps):
        if begin:
            expected.append(0.0)
            starts.append(index)
            factor = 1.0
        expected[-1] += factor * value
        factor *= gamma
        begin = done
    values = np.array([value for _, value in steps], dtype=np.float32)
    found = Trajectories.split(np.array([done for done, _ in steps], dtype=bool), 2 * values, values)
    assert found.starts.tolist() == starts
    assert found.lengths.sum() == len(steps)
    np.testing.assert_allclose(found.cost_returns(gamma), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.reward_returns(gamma), 2 * np.array(expected), rtol=1e-9, atol=1e-9)


def as_arrays(points: list[tuple[int, int]]) -> tuple[NDArray[Any], NDArray[Any]]:
    costs, rewards = np.array(points, dtype=np.float64).T
    return costs, rewards


@given(points)
def test_pareto_frontier_is_its_definition(points: list[tuple[int, int]]) -> None:
    expected = [
        index
        for index, (cost, reward) in enumerate(points)
        if not any(c <= cost and r >= reward and (c, r) != (cost, reward) for c, r in points)
    ]
    assert pareto_frontier(*as_arrays(points)).tolist() == expected


@given(points.flatmap(lambda points: st.tuples(st.just(points), st.permutations(range(len(points))))))
def test_what_is_near_the_frontier_does_not_depend_on_the_order(case: tuple[list[tuple[int, int]], list[int]]) -> None:
    costs, rewards = as_arrays(case[0])
    assume(len(set(rewards)) > 1)  # near means within a fifth of their range
    mask = frontier_mask(costs, rewards)
    assert mask.any()
    np.testing.assert_array_equal(frontier_mask(costs[case[1]], rewards[case[1]]), mask[case[1]])


def test_a_frontier_of_one_point_is_a_reward() -> None:
    """The cheapest trajectory is the best one: near is what earns within a fifth of the range of it."""
    mask = frontier_mask(np.array([0.0, 1, 2, 3]), np.array([10.0, 9, 8, 0]))
    assert mask.tolist() == [True, True, True, False]


def test_trajectories_that_all_earn_the_same_are_all_near_the_frontier() -> None:
    assert frontier_mask(np.array([0.0, 0.0, 3.0]), np.array([0.1, 0.1, 0.1])).all()


def test_discounted_sums_to_go_end_where_trajectories_do() -> None:
    values = np.array([1, 2, 3, 4, 5], np.float32)
    done = np.array([False, True, False, False, False])
    trajectories = Trajectories.split(done, values, values)
    # By hand, gamma = 1/2.
    assert trajectories.to_go(values, 0.5).tolist() == [1 + 1, 2, 3 + 2 + 1.25, 4 + 2.5, 5]
    assert trajectories.to_go(values, 0.0).tolist() == values.tolist()
    assert np.allclose(trajectories.to_go(values, 1 - 1e-12), trajectories.to_go(values))
    assert trajectories.to_go(values, 0.9)[trajectories.starts].tolist() == pytest.approx(
        trajectories.reward_returns(0.9).tolist()
    )


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=40))
def test_what_is_next_to_go_is_without_this_step(steps: list[tuple[bool, int]]) -> None:
    done, values = np.array([end for end, _ in steps]), np.array([value for _, value in steps], np.float32)
    trajectories = Trajectories.split(done, values, values)
    found = trajectories.next_to_go(values)
    np.testing.assert_allclose(found, trajectories.to_go(values) - values)
    assert not found[done].any()
