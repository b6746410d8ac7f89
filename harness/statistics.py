"""From raw episodes to what a table says: DSRL's averages, rliable's intervals, and what safety adds.

A run is one (seed, cost limit) of one policy on one task. DSRL's number for a task is the mean over runs of normalised
reward and normalised cost; the overall number is the mean over tasks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.plan import Plan
from harness.store import Results, State
from harness.tasks import normalize_cost, within

Floats = NDArray[np.float64]

BOOTSTRAP_SAMPLES = 2000
CONFIDENCE = 0.95
TAIL_PROBABILITY = (1 - CONFIDENCE) / 2
TAIL = 0.1


@dataclass(frozen=True)
class Scope:
    """Which part of a suite a table is over.

    Args:
        family: of tasks; all of them for ``None``.
        limit: which of a task's cost limits, 0 being the tightest; the mean over all for ``None``.
    """

    family: str | None = None
    limit: int | None = None

    def limits(self, plan: Plan) -> dict[str, tuple[float, ...]]:
        """The limits that count, by task; only the tasks that have some."""
        found: dict[str, set[float]] = {}
        for planned in plan.cells:
            if self.family in (None, planned.cell.definition.family):
                found.setdefault(planned.cell.task, set()).update(planned.cell.evaluation_limits)
        chosen = {task: tuple(sorted(limits)) for task, limits in found.items()}
        if self.limit is not None:
            chosen = {task: limits[self.limit : self.limit + 1] for task, limits in chosen.items()}
        return {task: limits for task, limits in chosen.items() if limits}

    def of(self, episodes: pd.DataFrame, plan: Plan) -> pd.DataFrame:
        """The rows of :func:`checkpoint_episodes` that count."""
        if self == WHOLE:
            return episodes
        limits = self.limits(plan)
        judged = zip(episodes["task"], episodes["limit"], strict=True)
        return episodes[np.array([limit in limits.get(task, ()) for task, limit in judged], dtype=bool)]


WHOLE = Scope()


@dataclass(frozen=True)
class Score:
    """What one policy reaches on one task, or overall.

    Args:
        reward: mean normalised reward.
        cost: mean normalised cost.
        satisfaction: share of episodes whose cost is within the limit.
        covered: runs that there are, of ``planned``.
        planned: runs that the suite asks for.
    """

    reward: float
    cost: float
    satisfaction: float
    covered: int
    planned: int

    @property
    def safe(self) -> bool:
        """DSRL's criterion: mean normalised cost of at most 1."""
        return within(self.cost, 1)

    @property
    def complete(self) -> bool:
        """Whether every run that the suite asks for is there."""
        return self.covered == self.planned


@dataclass(frozen=True)
class Overall(Score):
    """All tasks together.

    Args:
        cost_tail: mean normalised cost of the costliest tenth of all episodes.
        iqm: interquartile mean of normalised reward over seeds and tasks, ``None`` without such seeds.
        interval: its 95% stratified bootstrap interval, ``None`` for fewer than two seeds.
        seeds: seeds that ``iqm`` rests on: those with results on every task at every limit that the suite asks for.
        tasks: tasks with results, of ``planned_tasks``.
        planned_tasks: tasks that the suite asks for.
        safe_tasks: tasks on which the policy is safe, and no run is missing.
    """

    cost_tail: float
    iqm: float | None
    interval: tuple[float, float] | None
    seeds: int
    tasks: int
    planned_tasks: int
    safe_tasks: int


def checkpoint_episodes(store: Results, plan: Plan, only_last: bool = False) -> pd.DataFrame:
    """The evaluation episodes of every finished cell, or its last checkpoint's, once for each limit they are judged by.

    Returns:
        Columns row (the policy's name in tables), task (id), seed, limit, step, last (whether the checkpoint is the
        last one), reward and cost (normalised), episode_cost (not normalised), satisfied.
    """
    frames = []
    for planned in plan.cells:
        cell = planned.cell
        if store.status(cell).state != "done":
            continue
        task, episodes = cell.definition, store.episodes(cell)
        if only_last:
            episodes = episodes[episodes["step"] == cell.hyperparameters["steps"]]
        for limit in cell.evaluation_limits:
            judged = episodes[episodes["cost_limit"].isna() | (episodes["cost_limit"] == limit)]
            frames.append(
                pd.DataFrame(
                    {
                        "row": judged["policy"].map(planned.rows),
                        "task": cell.task,
                        "seed": cell.seed,
                        "limit": limit,
                        "step": judged["step"],
                        "last": judged["step"] == cell.hyperparameters["steps"],
                        "reward": task.normalize_reward(judged["episode_return"]),
                        "cost": normalize_cost(judged["cost"].to_numpy(), np.float64(limit)),
                        "episode_cost": judged["cost"],
                        "satisfied": within(judged["cost"], limit).astype(float),
                    }
                )
            )
    columns = ["row", "task", "seed", "limit", "step", "last", "reward", "cost", "episode_cost", "satisfied"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns).astype({"last": bool})


def final_episodes(store: Results, plan: Plan) -> pd.DataFrame:
    """The last checkpoint's episodes of :func:`checkpoint_episodes`, without step and last."""
    return checkpoint_episodes(store, plan, only_last=True).drop(columns=["step", "last"])


Run = tuple[int, float]
"""A seed and a cost limit."""


def planned_runs(plan: Plan, scope: Scope = WHOLE) -> dict[tuple[str, str], list[Run]]:
    """The runs that the suite asks for, by row and task, in the plan's order."""
    limits = scope.limits(plan)
    runs: dict[tuple[str, str], list[Run]] = {}
    for planned in plan.cells:
        wanted = limits.get(planned.cell.task, ())
        here = [(planned.cell.seed, limit) for limit in planned.cell.evaluation_limits if limit in wanted]
        for row in planned.rows.values() if here else ():
            runs.setdefault((row, planned.cell.task), []).extend(here)
    return runs


def planned_limits(plan: Plan, scope: Scope = WHOLE) -> dict[str, list[tuple[str, float]]]:
    """Every task, and every limit there, at which the suite asks for runs, by row."""
    limits: dict[str, dict[tuple[str, float], None]] = {}
    for (row, task), runs in planned_runs(plan, scope).items():
        limits.setdefault(row, {}).update(dict.fromkeys((task, limit) for _, limit in runs))
    return {row: list(found) for row, found in limits.items()}


def run_states(store: Results, plan: Plan, scope: Scope = WHOLE) -> dict[tuple[str, str], Counter[State]]:
    """How many of :func:`planned_runs` stand how, by row and task."""
    limits = scope.limits(plan)
    states: dict[tuple[str, str], Counter[State]] = {}
    for planned in plan.cells:
        wanted = limits.get(planned.cell.task, ())
        count = sum(limit in wanted for limit in planned.cell.evaluation_limits)
        for row in planned.rows.values() if count else ():
            states.setdefault((row, planned.cell.task), Counter())[store.status(planned.cell).state] += count
    return states


def task_scores(episodes: pd.DataFrame, plan: Plan, scope: Scope = WHOLE) -> dict[tuple[str, str], Score]:
    """Each policy on each task, by row and task; only where there are results, which are of the scope alone."""
    planned = planned_runs(plan, scope)
    scores = {}
    for (row, task), group in episodes.groupby(["row", "task"], sort=False):
        runs = group.groupby(["seed", "limit"])[["reward", "cost", "satisfied"]].mean()
        mean = runs.mean()
        key = (str(row), str(task))
        scores[key] = Score(
            float(mean["reward"]), float(mean["cost"]), float(mean["satisfied"]), len(runs), len(planned[key])
        )
    return scores


def overall_scores(episodes: pd.DataFrame, plan: Plan, scope: Scope = WHOLE) -> dict[str, Overall]:
    """Each policy over all its tasks, by row; only where there are results, which are of the scope alone."""
    from rliable import metrics

    by_task = task_scores(episodes, plan, scope)
    planned, limits = planned_runs(plan, scope), planned_limits(plan, scope)
    scores = {}
    for name, group in episodes.groupby("row", sort=False):
        row = str(name)
        tasks = [score for (other, _), score in by_task.items() if other == row]
        matrix = seed_matrix(group, limits[row])
        costs = np.sort(group["cost"].to_numpy(dtype=float))
        scores[row] = Overall(
            reward=float(np.mean([score.reward for score in tasks])),
            cost=float(np.mean([score.cost for score in tasks])),
            satisfaction=float(np.mean([score.satisfaction for score in tasks])),
            covered=sum(score.covered for score in tasks),
            planned=sum(len(runs) for (other, _), runs in planned.items() if other == row),
            cost_tail=float(costs[-max(1, round(TAIL * len(costs))) :].mean()),
            iqm=float(metrics.aggregate_iqm(matrix)) if len(matrix) else None,
            interval=interval(matrix) if len(matrix) > 1 else None,
            seeds=len(matrix),
            tasks=len(tasks),
            planned_tasks=sum(other == row for other, _ in planned),
            safe_tasks=sum(score.safe and score.complete for score in tasks),
        )
    return scores


def seed_matrix(
    episodes: pd.DataFrame, limits: Collection[tuple[str, float]], column: str = "reward"
) -> NDArray[np.float64]:
    """Normalised reward (seeds, tasks) of one policy, averaged over limits; only seeds with every task and limit.

    Args:
        episodes: of the policy, as :func:`final_episodes` has them.
        limits: every task and limit that a seed must have, as :func:`planned_limits` has them.
        column: another one of the episodes', such as cost.
    """
    return seed_table(episodes, limits, column).to_numpy(dtype=np.float64)


def seed_table(episodes: pd.DataFrame, limits: Collection[tuple[str, float]], column: str) -> pd.DataFrame:
    """:func:`seed_matrix` with the seeds as its index and the tasks as its columns."""
    runs = episodes.groupby(["seed", "task", "limit"])[column].mean().unstack(["task", "limit"])
    wanted = pd.MultiIndex.from_tuples(limits, names=["task", "limit"])
    return runs.reindex(columns=wanted).dropna().T.groupby(level="task").mean().T


def interquartile_mean(scores: Floats) -> Floats:
    """rliable's IQM of scores (..., seeds, tasks): the mean of what lies between their quartiles."""
    runs = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = int(0.25 * runs.shape[-1])
    return np.asarray(runs[..., cut : runs.shape[-1] - cut].mean(-1), dtype=np.float64)


def mean(scores: Floats) -> Floats:
    """rliable's mean of scores (..., seeds, tasks)."""
    return np.asarray(scores.mean((-2, -1)), dtype=np.float64)


def resampled(scores: Floats, random: np.random.Generator) -> Floats:
    """Bootstrap samples (samples, seeds, tasks) of scores (seeds, tasks): seeds drawn anew within each task.

    rliable's stratified bootstrap (Agarwal et al. 2021), all samples at once.
    """
    seeds, tasks = scores.shape
    drawn = random.integers(seeds, size=(BOOTSTRAP_SAMPLES, seeds, tasks))
    return np.asarray(scores[drawn, np.arange(tasks)], dtype=np.float64)


def interval(matrix: Floats, aggregate: Callable[[Floats], Floats] = interquartile_mean) -> tuple[float, float]:
    """Stratified bootstrap interval of the IQM of a (seeds, tasks) matrix with at least two seeds.

    Its nominal 95% cover less with few seeds (see docs/results.md): print their number beside it.

    Args:
        matrix: (seeds, tasks).
        aggregate: what the interval is of, in the IQM's place; over the last two axes.

    Raises:
        ValueError: fewer than two seeds, or values that are not finite.
    """
    if len(matrix) < 2 or not np.isfinite(matrix).all():
        raise ValueError(f"an interval needs at least two seeds and finite scores, not {matrix!r}")
    return between(aggregate(resampled(matrix, np.random.default_rng(0))))


def between(samples: Floats) -> tuple[float, float]:
    """The central 95% of bootstrap samples (samples,)."""
    low, high = np.quantile(samples, [TAIL_PROBABILITY, 1 - TAIL_PROBABILITY])
    return float(low), float(high)


def mean_intervals(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bootstrap intervals (columns, 2) of the means of values (seeds, columns), NaN for fewer than two seeds.

    What :func:`interval` gives for the mean of each column, for many columns at once: a study's figure has hundreds.
    """
    count, columns = values.shape
    if count < 2:
        return np.full((columns, 2), np.nan)
    drawn = np.random.default_rng(0).integers(count, size=(BOOTSTRAP_SAMPLES, count))
    tails = [TAIL_PROBABILITY, 1 - TAIL_PROBABILITY]
    return np.asarray(np.quantile(values[drawn].mean(1), tails, axis=0).T, dtype=np.float64)
