"""From raw episodes to what a table says: DSRL's averages, rliable's intervals, and what safety adds.

A run is one (seed, cost limit) of one policy on one task. DSRL's number for a task is the mean over runs of normalised
reward and normalised cost; the overall number is the mean over tasks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.plan import Cell, Plan
from harness.store import Results, State
from harness.tasks import normalize_cost, within

Floats = NDArray[np.float64]

RUN = ["row", "task", "seed", "limit"]
"""What tells a run from others."""
COLUMNS = (*RUN, "step", "last", "reward", "cost", "episode_cost", "satisfied")
"""Of :func:`checkpoint_episodes`, before :data:`RAW`."""
MEANS = ["reward", "cost", "satisfied"]
"""Columns of a run that its episodes' means are taken of."""

BOOTSTRAP_SAMPLES = 2000
CONFIDENCE = 0.95
TAIL_PROBABILITY = (1 - CONFIDENCE) / 2
TAIL = 0.1
RAW = ("episode", "episodes", "episode_return", "length")
"""What of an episode stands in :func:`checkpoint_episodes` as it is stored."""


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
        families = {task: found.family for task, found in plan.tasks.items()}
        chosen = {task: limits for task, limits in plan.limits.items() if self.family in (None, families[task])}
        if self.limit is not None:
            chosen = {task: limits[self.limit : self.limit + 1] for task, limits in chosen.items()}
        return {task: limits for task, limits in chosen.items() if limits}

    def of(self, episodes: pd.DataFrame, plan: Plan) -> pd.DataFrame:
        """The rows of :func:`checkpoint_episodes`, or of :func:`run_means`, that count."""
        if self == WHOLE or episodes.empty:
            return episodes
        limits = self.limits(plan)
        (task, tasks), (limit, values) = pd.factorize(episodes["task"]), pd.factorize(episodes["limit"])
        counts = np.array([[value in limits.get(name, ()) for value in values] for name in tasks])
        return episodes[counts[task, limit]]


WHOLE = Scope()


@dataclass(frozen=True)
class Score:
    """What one policy reaches on one task, or overall.

    Args:
        reward: mean normalised reward.
        cost: mean normalised cost.
        satisfaction: share of episodes whose cost is within the limit; ``None`` where only means of several are known.
        covered: runs that there are, of ``planned``.
        planned: runs that the suite asks for.
    """

    reward: float
    cost: float
    satisfaction: float | None
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
        cost_tail: mean normalised cost of the costliest tenth of all episodes, ``None`` like satisfaction.
        iqm: interquartile mean of normalised reward over seeds and tasks, ``None`` without such seeds.
        interval: its 95% stratified bootstrap interval, ``None`` for fewer than two seeds.
        seeds: seeds that ``iqm`` rests on: those with results on every task at every limit that the suite asks for.
        tasks: tasks with results, of ``planned_tasks``.
        planned_tasks: tasks that the suite asks for.
        safe_tasks: tasks on which the policy is safe, and no run is missing.
    """

    cost_tail: float | None
    iqm: float | None
    interval: tuple[float, float] | None
    seeds: int
    tasks: int
    planned_tasks: int
    safe_tasks: int


def checkpoint_episodes(store: Results, plan: Plan, only_last: bool = False, raw: bool = False) -> pd.DataFrame:
    """The evaluation episodes of every finished cell, or its last checkpoint's, once for each limit they are judged by.

    Returns:
        Columns row (the policy's name in tables), task (id), seed, limit, step, last (whether the checkpoint is the
        last one), reward and cost (normalised), episode_cost (not normalised), satisfied (NaN where a row of imported
        results is the mean of several episodes); then, if ``raw``, episode (its number at that step), episodes (of how
        many a row is the mean: 1, but for imported results), episode_return (not normalised) and length.
    """
    kept = RAW if raw else ()
    cells: list[Cell] = []
    parts = ("row", "limit", "step", "last", "reward", "cost", "single", *kept)
    judged: dict[str, list[NDArray[Any]]] = {name: [] for name in parts}
    for planned in plan.cells:
        cell = planned.cell
        if store.status(cell).state != "done":
            continue
        episodes = store.episodes(cell)
        if only_last:
            episodes = episodes[episodes["step"] == cell.hyperparameters["steps"]]
        if raw and "episodes" not in episodes:
            episodes = episodes.assign(episodes=1)
        step, told, cost = (episodes[name].to_numpy() for name in ("step", "cost_limit", "cost"))
        reward = cell.definition.normalize_reward(episodes["episode_return"].to_numpy(dtype=float))
        row = np.array([planned.rows.get(policy, np.nan) for policy in episodes["policy"]], dtype=object)
        last, untold = step == cell.hyperparameters["steps"], pd.isna(told)
        columns = {"row": row, "step": step, "last": last, "reward": reward, "cost": cost}
        columns["single"] = episodes["episodes"].to_numpy() == 1 if "episodes" in episodes else np.full(len(step), True)
        columns |= {name: episodes[name].to_numpy() for name in kept}
        for limit in cell.evaluation_limits:
            here = np.flatnonzero(untold | (told == limit))
            cells.append(cell)
            judged["limit"].append(np.full(len(here), float(limit)))
            for name, values in columns.items():
                judged[name].append(values[here])
    if not cells:
        return pd.DataFrame(columns=[*COLUMNS, *kept]).astype({"last": bool})
    lengths = [len(part) for part in judged["row"]]
    joined = {name: np.concatenate(judged.pop(name)) for name in list(judged)}  # memory holds them once
    cost, limits = joined["cost"], joined["limit"]
    joined |= {
        "task": np.repeat(np.array([cell.task for cell in cells], dtype=object), lengths),
        "seed": np.repeat([cell.seed for cell in cells], lengths),
        "cost": normalize_cost(cost, limits),
        "episode_cost": cost,
        "satisfied": np.where(joined.pop("single"), within(cost, limits).astype(float), np.nan),
    }
    return pd.DataFrame({name: joined.pop(name) for name in (*COLUMNS, *kept)})


def run_means(episodes: pd.DataFrame) -> pd.DataFrame:
    """Means of each run of :func:`final_episodes`: row, task, seed, limit, reward, cost, satisfied."""
    return episodes.groupby(RUN, sort=False, as_index=False)[MEANS].mean()


def checkpoint_means(episodes: pd.DataFrame) -> pd.DataFrame:
    """Means of every checkpoint of each run, of what :func:`checkpoint_episodes` gives."""
    return episodes.groupby([*RUN, "step"], sort=False, as_index=False)[MEANS].mean()


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


def task_scores(
    episodes: pd.DataFrame, plan: Plan, scope: Scope = WHOLE, runs: pd.DataFrame | None = None
) -> dict[tuple[str, str], Score]:
    """Each policy on each task, by row and task; only where there are results.

    Args:
        episodes: what :func:`final_episodes` gives, of the scope alone.
        plan: the suite's.
        scope: which part of the suite counts.
        runs: the episodes' :func:`run_means`, where they have been made.
    """
    runs = run_means(episodes) if runs is None else runs
    planned = planned_runs(plan, scope)
    ordered = runs.sort_values(["seed", "limit"])
    means, groups = ordered[MEANS].to_numpy(dtype=float).T, ordered.groupby(["row", "task"]).indices
    scores = {}
    for key in dict.fromkeys(zip(runs["row"], runs["task"], strict=True)):
        # A column's runs beside each other: how they are added up shows in the last digits.
        reward, cost, satisfaction = np.ascontiguousarray(means[:, groups[key]]).mean(1).tolist()
        known = None if math.isnan(satisfaction) else satisfaction
        scores[key] = Score(reward, cost, known, len(groups[key]), len(planned[key]))
    return scores


def overall_scores(
    episodes: pd.DataFrame, plan: Plan, scope: Scope = WHOLE, runs: pd.DataFrame | None = None
) -> dict[str, Overall]:
    """Each policy over all its tasks, by row; only where there are results. Arguments as of :func:`task_scores`."""
    runs = run_means(episodes) if runs is None else runs
    by_task = task_scores(episodes, plan, scope, runs)
    planned, limits = planned_runs(plan, scope), planned_limits(plan, scope)
    costs, means = episodes.groupby("row")["cost"], runs.groupby("row")
    scores = {}
    for row in dict.fromkeys(runs["row"]):
        tasks = [score for (other, _), score in by_task.items() if other == row]
        matrix = seed_matrix(means.get_group(row), limits[row])
        sorted_costs = np.sort(costs.get_group(row).to_numpy(dtype=float))
        shares = [score.satisfaction for score in tasks if score.satisfaction is not None]
        single = len(shares) == len(tasks)
        scores[row] = Overall(
            reward=float(np.mean([score.reward for score in tasks])),
            cost=float(np.mean([score.cost for score in tasks])),
            satisfaction=float(np.mean(shares)) if single else None,
            covered=sum(score.covered for score in tasks),
            planned=sum(len(runs) for (other, _), runs in planned.items() if other == row),
            cost_tail=float(sorted_costs[-max(1, round(TAIL * len(sorted_costs))) :].mean()) if single else None,
            iqm=iqm(matrix) if len(matrix) else None,
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
        episodes: of the policy, as :func:`final_episodes` has them, or their :func:`run_means`.
        limits: every task and limit that a seed must have, as :func:`planned_limits` has them.
        column: another one of the episodes', such as cost.
    """
    return seed_table(episodes, limits, column).to_numpy(dtype=np.float64)


def seed_table(episodes: pd.DataFrame, limits: Collection[tuple[str, float]], column: str) -> pd.DataFrame:
    """:func:`seed_matrix` with the seeds as its index and the tasks as its columns."""
    runs = episodes.groupby(["seed", "task", "limit"])[column].mean().unstack(["task", "limit"])
    wanted = pd.MultiIndex.from_tuples(limits, names=["task", "limit"])
    return runs.reindex(columns=wanted).dropna().T.groupby(level="task").mean().T


def iqm(matrix: Floats) -> float:
    """rliable's IQM of a matrix (seeds, tasks) to the last digit, as scipy's ``trim_mean`` adds it up.

    Both are slow to import.
    """
    runs = matrix.ravel()
    cut = int(0.25 * len(runs))
    return float(np.partition(runs, (cut, len(runs) - cut - 1))[cut : len(runs) - cut].mean())


def interquartile_mean(scores: Floats) -> Floats:
    """rliable's IQM of scores (..., seeds, tasks): the mean of what lies between their quartiles."""
    runs = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = int(0.25 * runs.shape[-1])
    return np.asarray(runs[..., cut : runs.shape[-1] - cut].mean(-1), dtype=np.float64)


def mean(scores: Floats) -> Floats:
    """rliable's mean of scores (..., seeds, tasks)."""
    return np.asarray(scores.mean((-2, -1)), dtype=np.float64)


def median(scores: Floats) -> Floats:
    """rliable's median of scores (..., seeds, tasks): over tasks, of means over seeds."""
    return np.asarray(np.median(scores.mean(-2), axis=-1), dtype=np.float64)


def optimality_gap(scores: Floats) -> Floats:
    """rliable's optimality gap of scores (..., seeds, tasks): how far they stay below 1 on average; 0 at best.

    1 is the highest return in DSRL's data of the task.
    """
    return np.asarray(1 - np.minimum(scores, 1).mean((-2, -1)), dtype=np.float64)


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

    What :func:`interval` gives for the mean of each column, for many columns at once: a page's curves have thousands.
    """
    count, columns = values.shape
    found = np.full((columns, 2), np.nan)
    if count < 2:
        return found
    drawn = np.random.default_rng(0).integers(count, size=(BOOTSTRAP_SAMPLES, count))
    weights = (drawn[:, :, None] == np.arange(count)).mean(1)  # how often each seed is drawn
    for start in range(0, columns, COLUMNS_AT_ONCE):
        means = values[:, start : start + COLUMNS_AT_ONCE].T @ weights.T
        tails = np.quantile(means, [TAIL_PROBABILITY, 1 - TAIL_PROBABILITY], axis=1)
        found[start : start + COLUMNS_AT_ONCE] = tails.T
    return found


COLUMNS_AT_ONCE = 1000
"""Of which bootstrap samples are held in memory."""
