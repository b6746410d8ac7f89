"""From made-up episodes in a store to DSRL's means, coverage, intervals and tails."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rliable import metrics
from running import suite_plan

from harness.plan import PlannedCell
from harness.statistics import (
    MEANS,
    Scope,
    final_episodes,
    interquartile_mean,
    interval,
    iqm,
    overall_scores,
    planned_limits,
    planned_runs,
    run_means,
    seed_matrix,
    task_scores,
)
from harness.store import Status, Store
from harness.tasks import find_task, within

SUITE = """
name: made-up
tasks: [{tasks}]
algorithms:
  cloned: {{algorithm: bc, hyperparameters: {{mode: {mode}}}}}
seeds: {seeds}
cost_limits: {limits}
steps: 100
data: {{source: demo}}
"""


class Results:
    """A suite of one algorithm with results as they are told, nothing trained. Rewards are given normalised."""

    def __init__(
        self, folder: Path, tasks: str = "BallRun", mode: str = "all", seeds: int = 1, limits: str = "[10, 20]"
    ) -> None:
        self.plan = suite_plan(folder, SUITE.format(tasks=tasks, mode=mode, seeds=seeds, limits=limits))
        self.store, self.row = Store(folder), f"bc-{mode}"

    def cell(self, task: str, seed: int, limit: float | None = None) -> PlannedCell:
        key = (find_task(task).id, seed, limit)
        return next(one for one in self.plan.cells if (one.cell.task, one.cell.seed, one.cell.cost_limit) == key)

    def add(
        self, planned: PlannedCell, *episodes: tuple[float, float], limit: float | None = None, **more: Any
    ) -> None:
        """Finish a cell with (normalised reward, raw cost) of each of its last checkpoint's episodes."""
        cell = planned.cell
        task = find_task(cell.task)
        span = task.max_episode_reward - task.min_episode_reward
        rows = [
            {"step": 100, "policy": self.row, "cost_limit": limit, "episode": index, "seed": index, "length": 100}
            | {"episode_return": task.min_episode_reward + reward * span, "cost": float(cost)}
            | more
            for index, (reward, cost) in enumerate(episodes)
        ]
        old = [self.store.episodes(cell)] if self.store.status(cell).state == "done" else []
        frame = pd.concat([*old, pd.DataFrame(rows).astype({"cost_limit": "float64"})])
        record = {"dataset": {"sha256": "0"}}
        self.store.write_results(cell, record, frame, pd.DataFrame({"step": [100]}), {"p": {"w": torch.zeros(1)}}, {})

    def episodes(self) -> pd.DataFrame:
        return final_episodes(self.store, self.plan)

    def overall(self) -> Any:
        return overall_scores(self.episodes(), self.plan)[self.row]


def test_means_are_dsrls(tmp_path: Path) -> None:
    """An agent that ignores the limit: the same episodes against every limit, mean over seeds and limits."""
    results = Results(tmp_path, seeds=2)
    results.add(results.cell("BallRun", 0), (0.2, 0), (0.4, 30))
    results.add(results.cell("BallRun", 1), (0.9, 20))
    score = task_scores(results.episodes(), results.plan)["bc-all", "OfflineBallRun-v0"]
    assert score.reward == pytest.approx((0.3 + 0.9) / 2)  # a seed counts once, however many episodes it has
    assert score.cost == pytest.approx(np.mean([15 / 10, 15 / 20, 20 / 10, 20 / 20]))
    assert score.satisfaction == pytest.approx(np.mean([0.5, 0.5, 0, 1]))  # a cost equal to the limit is within it
    assert not score.safe
    assert (score.covered, score.planned) == (4, 4)


def test_a_limit_of_zero_is_dsrls(tmp_path: Path) -> None:
    results = Results(tmp_path, limits="[0]")
    results.add(results.cell("BallRun", 0), (0.5, 0), (0.5, 3))
    score = results.overall()
    assert (score.cost, score.satisfaction) == (2.5, 0.5)


def test_an_agent_trained_for_a_limit_is_judged_by_it_alone(tmp_path: Path) -> None:
    results = Results(tmp_path, mode="safe")
    results.add(results.cell("BallRun", 0, 10.0), (0.1, 10))
    results.add(results.cell("BallRun", 0, 20.0), (0.5, 10))
    score = results.overall()
    assert (score.cost, score.satisfaction) == (0.75, 1)
    assert score.reward == pytest.approx(0.3)
    assert results.episodes()["limit"].tolist() == [10, 20]


def test_a_policy_that_acts_on_the_limit_is_judged_by_the_episodes_of_that_limit(tmp_path: Path) -> None:
    results = Results(tmp_path, mode="multi-task")
    planned = results.cell("BallRun", 0)
    results.add(planned, (0.2, 5), limit=10.0)
    results.add(planned, (0.6, 40), limit=20.0)
    runs = results.episodes().set_index("limit")
    assert runs["cost"].to_dict() == {10: 0.5, 20: 2.0}
    assert runs["reward"].to_dict() == pytest.approx({10: 0.2, 20: 0.6})


def test_only_the_last_checkpoint_counts(tmp_path: Path) -> None:
    results = Results(tmp_path)
    planned = results.cell("BallRun", 0)
    results.add(planned, (1.0, 0), step=50)
    results.add(planned, (0.25, 10))
    assert results.overall().reward == pytest.approx(0.25)


def test_missing_runs_are_counted(tmp_path: Path) -> None:
    results = Results(tmp_path, tasks="BallRun, CarRun", mode="safe", seeds=3)
    for seed in (0, 1):
        for limit in (10.0, 20.0):
            results.add(results.cell("BallRun", seed, limit), (0.5, 1))
    results.add(results.cell("BallRun", 2, 10.0), (0.5, 1))
    for state in ("running", "failed", "diverged"):
        results.store.set_status(results.cell("BallRun", 2, 20.0).cell, Status(state))  # type: ignore[arg-type]
        score = results.overall()
        assert (score.covered, score.planned) == (5, 12)
        assert (score.tasks, score.planned_tasks) == (1, 2)
    assert score.seeds == 0  # nobody has CarRun
    assert (score.iqm, score.interval) == (None, None)
    runs = [(seed, limit) for limit in (10, 20) for seed in range(3)]
    assert planned_runs(results.plan) == {("bc-safe", f"Offline{task}-v0"): runs for task in ("BallRun", "CarRun")}


@pytest.mark.parametrize("lacking", ["a limit", "a limit of one seed", "a task"])
def test_iqm_rests_on_seeds_with_every_task_and_limit_of_the_plan(tmp_path: Path, lacking: str) -> None:
    """A policy that lacks its hard limits is not judged by the easy one alone."""
    results = Results(tmp_path, tasks="BallRun, CarRun", mode="safe", seeds=2)
    for task, seed, limit in itertools.product(("BallRun", "CarRun"), (0, 1), (10.0, 20.0)):
        absent = {
            "a limit": limit == 10,
            "a limit of one seed": (task, seed, limit) == ("CarRun", 1, 10.0),
            "a task": task == "CarRun",
        }
        if not absent[lacking]:
            results.add(results.cell(task, seed, limit), (0.5, 1))
    score = results.overall()
    assert not score.complete
    seeds = 1 if lacking == "a limit of one seed" else 0
    assert (score.seeds, score.iqm, score.interval) == (seeds, 0.5 if seeds else None, None)
    assert score.safe_tasks == (0 if lacking == "a limit" else 1)  # a task without some limits is not known safe


@pytest.mark.parametrize("seed", range(5))
def test_a_mean_cost_that_equals_the_limit_is_safe_whatever_the_order(tmp_path: Path, seed: int) -> None:
    """The mean of these is exactly 1, and sums of floats in most orders are not."""
    costs = {
        10: [19, 2, 11, 15, 5, 5, 4, 4, 17, 4, 4, 2, 2, 15, 5, 16, 11, 17, 11, 15],
        20: [32, 2, 22, 18, 11, 18, 16, 19, 32, 33, 25, 28, 38, 25, 14, 3, 22, 9, 23, 1],
        40: [45, 45] + [44] * 18,
    }
    assert sum(sum(some) * (40 // limit) for limit, some in costs.items()) == 3 * 20 * 40
    results = Results(tmp_path, mode="safe", limits="[10, 20, 40]")
    for limit, some in costs.items():
        order = np.random.default_rng(seed).permutation(some)
        results.add(results.cell("BallRun", 0, float(limit)), *((0.5, cost) for cost in order))
    score = results.overall()
    assert score.safe
    assert score.safe_tasks == 1


def test_what_is_within_a_limit() -> None:
    tenths = sum([0.1] * 3)
    assert tenths > 0.3
    assert within(tenths, 0.3)
    assert within(0.0, 0.0)
    assert not within(1e-6, 0.0)
    assert not within(1 + 1e-9, 1)
    assert within(np.array([1, 1 + 4e-16, 1.001]), 1).tolist() == [True, True, False]


def test_an_episode_whose_steps_add_up_to_the_limit_is_within_it(tmp_path: Path) -> None:
    results = Results(tmp_path, limits="[0.3]")
    results.add(results.cell("BallRun", 0), (0.5, sum([0.1] * 3)))
    assert results.overall().satisfaction == 1


def test_nothing_there_is_no_score(tmp_path: Path) -> None:
    results = Results(tmp_path)
    assert results.episodes().empty
    assert overall_scores(results.episodes(), results.plan) == {}
    assert task_scores(results.episodes(), results.plan) == {}


def test_overall_is_the_mean_over_tasks_whatever_their_limits(tmp_path: Path) -> None:
    """CarGoal1 has limits of its own: no seed may be lost because BallRun lacks them."""
    results = Results(tmp_path, tasks="BallRun, CarGoal1", seeds=2, limits="null")
    for seed in (0, 1):
        results.add(results.cell("BallRun", seed), (0.2 + 0.4 * seed, 10), (0.2 + 0.4 * seed, 10))
        results.add(results.cell("CarGoal1", seed), (0.8, 80))
    score = results.overall()
    costs = np.array([[10 / 10, 10 / 20, 10 / 40], [80 / 20, 80 / 40, 80 / 80]]).mean(1)
    assert score.reward == pytest.approx(0.6)
    assert score.cost == pytest.approx(costs.mean())
    assert score.satisfaction == pytest.approx((1 + 1 / 3) / 2)
    assert (score.seeds, score.tasks, score.safe_tasks, score.covered, score.planned) == (2, 2, 1, 12, 12)
    np.testing.assert_allclose(
        seed_matrix(results.episodes(), planned_limits(results.plan)[results.row]), [[0.2, 0.8], [0.6, 0.8]]
    )
    assert score.iqm == pytest.approx(0.7)  # of 0.2, 0.6, 0.8, 0.8 the middle two


def test_the_tail_is_the_mean_of_the_costliest_tenth(tmp_path: Path) -> None:
    results = Results(tmp_path, limits="[10]")
    results.add(results.cell("BallRun", 0), *((0.5, cost) for cost in [*range(18), 50, 100]))
    assert results.overall().cost_tail == pytest.approx(7.5)
    results = Results(tmp_path, limits="[10]", mode="frontier")
    results.add(results.cell("BallRun", 0), (0.5, 0), (0.5, 30))
    assert results.overall().cost_tail == pytest.approx(3)  # of fewer than ten the costliest one


@pytest.mark.parametrize("seeds", [1, 2])
def test_an_interval_needs_two_seeds(tmp_path: Path, seeds: int) -> None:
    results = Results(tmp_path, seeds=seeds)
    for seed in range(seeds):
        results.add(results.cell("BallRun", seed), (0.2 + seed / 2, 1))
    score = results.overall()
    assert score.iqm == pytest.approx([0.2, 0.45][seeds - 1])
    if seeds == 1:
        assert score.interval is None
    else:  # a quarter of the resamples are all of one seed
        assert score.interval == pytest.approx((0.2, 0.7))


@given(st.lists(st.floats(-10, 10), min_size=4, max_size=40).map(lambda values: values[: len(values) // 4 * 4]))
def test_iqm_is_the_mean_of_the_middle_half(values: list[float]) -> None:
    quarter = len(values) // 4
    matrix = np.array(values).reshape(-1, 2)
    assert interquartile_mean(matrix) == pytest.approx(np.mean(sorted(values)[quarter : 3 * quarter]), abs=1e-9)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=40), st.integers(1, 4))
def test_iqm_is_rliables_to_the_last_digit(values: list[float], tasks: int) -> None:
    matrix = np.array(values * tasks).reshape(-1, tasks)
    assert iqm(matrix) == metrics.aggregate_iqm(matrix)


@pytest.mark.parametrize("scope", [Scope(), Scope(limit=1), Scope("bullet", 0), Scope("velocity"), Scope("metadrive")])
def test_scores_are_what_plain_pandas_gives(tmp_path: Path, scope: Scope) -> None:
    """Episode by episode, group by group; some runs are missing, and the others in no order."""
    plan = Results(tmp_path, tasks="BallRun, CarRun, AntVelocity", seeds=7, limits="[10, 20, 0]").plan
    draws, rows = np.random.default_rng(3), []
    for planned in draws.permutation(np.array(plan.cells, dtype=object)):
        for limit in planned.cell.evaluation_limits:
            about = {"row": "bc-all", "task": planned.cell.task, "seed": planned.cell.seed, "limit": limit}
            rows += [about | dict(zip(MEANS, draws.normal(size=3), strict=True)) for _ in range(draws.integers(4))]
    whole = pd.DataFrame(rows)
    limits = scope.limits(plan)
    kept = [limit in limits.get(task, ()) for task, limit in zip(whole["task"], whole["limit"], strict=True)]
    episodes = scope.of(whole, plan)
    pd.testing.assert_frame_equal(episodes, whole[kept], check_exact=True)
    runs = scope.of(run_means(whole), plan)
    scores = task_scores(episodes, plan, scope, runs)
    assert scores == task_scores(episodes, plan, scope)
    groups = episodes.groupby(["row", "task"], sort=False)
    assert list(scores) == [key for key, _ in groups]
    for (row, task), group in groups:
        means = group.groupby(["seed", "limit"])[list(MEANS)].mean()
        score = scores[row, task]
        assert [score.reward, score.cost, score.satisfaction] == pytest.approx(means.mean().tolist(), rel=1e-11)
        assert score.covered == len(means)
    overall = overall_scores(episodes, plan, scope, runs)
    assert overall == overall_scores(episodes, plan, scope)
    assert overall.keys() == set(episodes["row"])
    for row, score in overall.items():
        costs = np.sort(episodes[episodes["row"] == row]["cost"].to_numpy())
        assert score.cost_tail == costs[-max(1, round(0.1 * len(costs))) :].mean()
        matrix = seed_matrix(episodes, planned_limits(plan, scope)[row])
        assert score.iqm == (metrics.aggregate_iqm(matrix) if len(matrix) else None)


def test_interval_repeats_and_leaves_numpys_generator_alone() -> None:
    matrix = np.random.default_rng(0).normal(size=(5, 8))
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    first = interval(matrix)
    assert np.random.random() == expected
    assert first == interval(matrix)
    assert first[0] < interquartile_mean(matrix) < first[1]
    assert interval(np.full((3, 2), 0.25)) == (0.25, 0.25)


@pytest.mark.parametrize("matrix", [[[1.0, 2.0]], [[1.0], [np.nan]], [[1.0], [np.inf]], np.zeros((0, 3))])
def test_what_rliable_would_answer_in_silence_is_refused(matrix: Any) -> None:
    with pytest.raises(ValueError, match="at least two seeds and finite scores"):
        interval(np.array(matrix))
