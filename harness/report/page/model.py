"""Everything that the page says, as plain values: its tables, its figures and its JSON are made from this alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from harness.comparison import Runs, bootstrap, improvements, profile, standings, verdict, wilson
from harness.plan import Plan
from harness.report import costs, published, selection
from harness.report.curves import learning_curves, logged_metrics
from harness.report.diagnostics import diagnostics_table, held_out_curves, held_out_figures
from harness.report.leaderboard import AnyScore, Leaderboard, Row, all_data, make_leaderboard, suite_notes
from harness.report.limits import limit_labels
from harness.statistics import (
    RUN,
    WHOLE,
    Floats,
    Scope,
    between,
    checkpoint_episodes,
    checkpoint_means,
    interval,
    mean,
    median,
    optimality_gap,
    resampled,
    run_means,
)
from harness.store import CALLED, Results
from harness.tasks import within

PROFILE = {
    "reward": [round(0.05 * step, 2) for step in range(-10, 31)],
    "cost": [round(0.1 * step, 1) for step in range(41)],
}
"""Thresholds of the performance profiles."""


def make_model(results: Results, plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """The page's values, a dict a suite."""
    return [_suite(results, plan) for plan in plans]


def _suite(results: Results, plan: Plan) -> dict[str, Any]:
    checkpoints = checkpoint_episodes(results, plan)
    episodes = checkpoints[checkpoints["last"]]
    runs, notes = run_means(episodes), suite_notes(results, plan)
    board = make_leaderboard(results, plan, WHOLE, episodes, runs, notes)
    means, tables = _by_row(runs), _Tables()
    curved = any(planned.cell.evaluation.every for planned in plan.cells)
    points = checkpoint_means(checkpoints)
    choices = selection.make_report(results, plan, checkpoints)
    del checkpoints  # the largest of all
    best = _by_row(selection.best_by_roll_outs(points, RUN)) if curved else {}
    limits = WHOLE.limits(plan)
    families = list(dict.fromkeys(task.family for task in plan.tasks.values()))
    scopes = {
        _key(family, limit): Scope(family, limit)
        for family in [None, *(families if len(families) > 1 else [])]
        for limit in [None, *_positions(limits)]
    }
    views, profiles = {}, []
    metrics = logged_metrics(results, plan)
    figures = held_out_figures(results, plan)
    diagnosed, diagnostics = diagnostics_table(figures)
    held_out = held_out_curves(figures)
    for key, scope in scopes.items():
        part = board if scope == WHOLE else make_leaderboard(results, plan, scope, episodes, runs, notes)
        views[key], whole = _view(part, means, best, scope.limits(plan), tables)
        profiles += _profiles(key, whole)
        if scope.family is not None:  # of its tasks the page has the tables already
            del views[key]["tasks"]
    return {
        "suite": plan.suite,
        "description": plan.description,
        "data": board.data,
        "all_data": all_data(board),
        "notes": board.notes,
        "rows": list(dict.fromkeys(row for planned in plan.cells for row in planned.rows.values())),
        "families": families if len(families) > 1 else [],
        "limits": [{"key": "mean", "label": "mean over limits"}, *_limit_choices(limits)],
        "tasks": {
            task: {"name": found.name, "family": found.family, "limits": limits[task], "data": board.data[task]}
            for task, found in plan.tasks.items()
        },
        "views": views,
        "profiles": profiles,
        "runs": _records(_placed(runs, limits)),
        "curves": _curves(points, limits),
        "selection": _selection(choices, notes),
        "diagnostics": {"header": diagnosed, "rows": diagnostics},
        "held_out": held_out,
        "measured": list(dict.fromkeys(curve["metric"] for curve in held_out)),
        "metrics": metrics,
        "logged": _logged(metrics),
        "coverage": _coverage(results, plan),
        "costs": {"header": costs.HEADER, "rows": costs.as_rows(costs.costs(results, plan))},
        "provenance": _provenance(results, plan),
        "protocol": {"name": board.protocol.name, "description": board.protocol.describe()},
        "updates": _training(board),
        "curved": curved,
        "published": _published(results, plan, episodes),
    }


def _logged(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of what algorithms log, those of the most algorithms first."""
    labels: dict[str, set[str]] = {}
    for curve in metrics:
        labels.setdefault(curve["metric"], set()).add(curve["label"])
    return sorted(labels, key=lambda metric: (-len(labels[metric]), metric))


def _key(family: str | None, limit: int | None) -> str:
    """Names a view in addresses."""
    return f"{family or 'all'}:{'mean' if limit is None else limit}"


def _positions(limits: Mapping[str, tuple[float, ...]]) -> range:
    most = max((len(of_task) for of_task in limits.values()), default=0)
    return range(most if most > 1 else 0)


def _limit_choices(limits: dict[str, tuple[float, ...]]) -> list[dict[str, str]]:
    """The limits by their place, tightest first."""
    labels = limit_labels(limits)
    return [{"key": str(place), "label": f"limit {labels[place]}"} for place in _positions(limits)]


@dataclass(frozen=True)
class _Means:
    """Means of one row's runs.

    Args:
        values: (reward, cost and satisfied; seeds; columns), NaN where there is no run, and in the last column.
        columns: where each task and limit stands.
    """

    values: Floats
    columns: Mapping[tuple[str, float], int]


def _placed(runs: pd.DataFrame, limits: Mapping[str, tuple[float, ...]]) -> pd.DataFrame:
    """Runs with the key of their limit, see :func:`_limit_choices`."""
    keys = [str(limits[task].index(limit)) for task, limit in zip(runs["task"], runs["limit"], strict=True)]
    return runs.assign(place=keys)


def _curves(checkpoints: pd.DataFrame, limits: Mapping[str, tuple[float, ...]]) -> list[dict[str, Any]]:
    """Learning curves, over all limits and of each: a record a row, task and limit, with lists of a value a point."""
    parts = [("mean", checkpoints)]
    for place in _positions(limits):
        there = {task: of_task[place] for task, of_task in limits.items() if place < len(of_task)}
        parts.append((str(place), checkpoints[checkpoints["limit"] == checkpoints["task"].map(there)]))
    records: list[dict[str, Any]] = []
    for key, episodes in parts:
        for (row, task), curve in learning_curves(episodes).groupby(["row", "task"], sort=False):
            points = curve.sort_values("share").drop(columns=["row", "task"])
            lists = {str(name): [_short(value) for value in points[name].tolist()] for name in points}
            records.append({"row": row, "task": task, "place": key, **lists})
    return records


_Tables = dict[tuple[str, tuple[float, ...]], list[dict[str, Any]]]
"""Rows of tasks at limits: several views have the same."""


def _by_row(runs: pd.DataFrame) -> dict[str, _Means]:
    """What :func:`run_means` gives, by row."""
    places = list(zip(runs["task"], runs["limit"], strict=True))
    columns = {place: column for column, place in enumerate(dict.fromkeys(places))}
    column, seed = np.array([columns[place] for place in places], dtype=int), runs["seed"].to_numpy()
    numbers = runs[["reward", "cost", "satisfied"]].to_numpy(dtype=float).T
    found = {}
    for row, here in runs.groupby("row").indices.items():
        seeds, line = np.unique(seed[here], return_inverse=True)
        values = np.full((3, len(seeds), len(columns) + 1), np.nan)
        values[:, line, column[here]] = numbers[:, here]
        found[str(row)] = _Means(values, columns)
    return found


def _view(
    board: Leaderboard,
    means: Mapping[str, _Means],
    best: Mapping[str, _Means],
    limits: Mapping[str, tuple[float, ...]],
    tables: _Tables,
) -> tuple[dict[str, Any], dict[str, Runs]]:
    """Tables of a part of the suite, and the runs of those that are whole there.

    Args:
        board: of that part.
        means: of the last checkpoints.
        best: of the best checkpoints by roll-outs, empty where there are no others.
        limits: of the tasks that count.
        tables: the tasks' that there are; more are added, as several parts have the same.
    """
    for task in board.tasks:
        if (task, limits[task]) not in tables:
            tables[task, limits[task]] = _task_rows(board, means, task, limits[task])
    runs = {row: _runs(of_row, limits) for row, of_row in means.items()}
    whole = {row.policy: runs[row.policy] for row in board.overall if row.rank is not None and row.policy in runs}
    whole = {row: one for row, one in whole.items() if len(one.reward)}
    stand = standings(whole)
    overall = []
    for line in board.overall:
        mine, placed, score = whole.get(line.policy), stand.get(line.policy), line.score
        overall.append(
            {
                **_numbers(line, mine),
                "rank_low": placed.low if placed else None,
                "rank_high": placed.high if placed else None,
                "group": placed.group if placed else None,
                "cost_tail": score.cost_tail if score else None,
                "iqm": score.iqm if score else None,
                "iqm_interval": score.interval if score else None,
                "seeds": score.seeds if score else 0,
                "safe_tasks": score.safe_tasks if score else 0,
                "tasks": score.tasks if score else 0,
                "safe_tasks_interval": wilson(score.safe_tasks, score.tasks) if score and score.tasks else None,
            }
        )
    view = {
        "overall": overall,
        "tasks": {task: tables[task, limits[task]] for task in board.tasks},
        "improvements": [
            {
                "row": one,
                "over": other,
                "probability": found.reward,
                "interval": found.interval,
                "safe_and_better": found.safe_and_better,
            }
            for (one, other), found in improvements(whole).items()
        ],
        "aggregates": [
            {
                **_aggregate(row, one),
                "satisfaction_interval": _satisfaction(means[row], limits),
                "best": _best(best[row], limits) if row in best else None,
            }
            for row, one in whole.items()
        ],
    }
    return view, whole


def _matrices(means: _Means, limits: Mapping[str, tuple[float, ...]]) -> Floats:
    """Of one row's seeds with every task and limit, the mean over limits: (3, seeds, tasks), see :class:`_Means`.

    Args:
        means: of the row.
        limits: of the tasks that count.
    """
    columns = [means.columns.get((task, limit), -1) for task, of_task in limits.items() for limit in of_task]
    values = means.values[:, :, columns]
    whole = np.isfinite(values[:2]).all((0, 2))
    edges = np.cumsum([0, *(len(of_task) for of_task in limits.values())])
    spans = [slice(start, end) for start, end in pairwise(edges)]
    return np.stack([values[:, whole, span].mean(2) for span in spans], axis=2)


def _runs(means: _Means, limits: Mapping[str, tuple[float, ...]]) -> Runs:
    """Reward and cost of :func:`_matrices`."""
    reward, cost, _ = _matrices(means, limits)
    return Runs(reward, cost)


def _numbers(line: Row[AnyScore], runs: Runs | None) -> dict[str, Any]:
    """What every table says of a policy; intervals and a verdict rest on the seeds with every task and limit."""
    score, reward, cost = line.score, None, None
    if runs is not None and len(runs.reward) > 1:
        rewards, costs = bootstrap(runs, line.policy)
        reward, cost = between(rewards.mean(1)), between(costs.mean(1))
    return {
        "rank": line.rank,
        "policy": line.policy,
        "verdict": verdict(cost) if score else "no result",
        "reward": score.reward if score else None,
        "reward_interval": reward,
        "cost": score.cost if score else None,
        "cost_interval": cost,
        "satisfaction": score.satisfaction if score else None,
        "runs": line.states["done"],
        "all_runs": line.runs,
    }


def _task_rows(
    board: Leaderboard, means: Mapping[str, _Means], task: str, limits: tuple[float, ...]
) -> list[dict[str, Any]]:
    rows = []
    for line in board.tasks[task]:
        mine = _runs(means[line.policy], {task: limits}) if line.score else None
        rows.append(_numbers(line, mine) | {"seeds": len(mine.reward) if mine else 0})
    return rows


def _aggregate(row: str, runs: Runs) -> dict[str, Any]:
    """rliable's aggregates of reward that the leaderboard does not have, with their intervals."""
    samples = resampled(runs.reward, np.random.default_rng(0)) if len(runs.reward) > 1 else None
    found: dict[str, Any] = {"policy": row, "seeds": len(runs.reward), "tasks": runs.reward.shape[1]}
    for name, aggregate in (("median", median), ("gap", optimality_gap)):
        found[name] = float(aggregate(runs.reward))
        found[f"{name}_interval"] = None if samples is None else between(aggregate(samples))
    return found


def _satisfaction(means: _Means, limits: Mapping[str, tuple[float, ...]]) -> tuple[float, float] | None:
    """The interval of the share of episodes within their limit; of imported means there is none."""
    satisfied = _matrices(means, limits)[2]
    return interval(satisfied, mean) if len(satisfied) > 1 and np.isfinite(satisfied).all() else None


def _best(means: _Means, limits: Mapping[str, tuple[float, ...]]) -> dict[str, float] | None:
    """What the best checkpoints reach."""
    runs = _runs(means, limits)
    if not len(runs.reward):
        return None
    reward, cost = float(runs.reward.mean()), float(runs.cost.mean())
    return {"reward": reward, "cost": cost, "safe": within(cost, 1)}


def _profiles(view: str, runs: Mapping[str, Runs]) -> list[dict[str, Any]]:
    """Performance profiles of a view, a record a row and kind, with lists of a value a threshold."""
    records = []
    for row, one in runs.items():
        for what, scores in (("reward", one.reward), ("cost", one.cost)):
            bands = profile(scores, PROFILE[what], below=what == "cost")
            lists = {
                name: [_short(value) for value in band.tolist()]
                for name, band in zip(("share", "low", "high"), bands, strict=True)
            }
            records.append({"view": view, "row": row, "what": what, "level": PROFILE[what], **lists})
    return records


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON has them."""
    return [{str(key): _short(value) for key, value in row.items()} for row in frame.to_dict("records")]


def _short(value: Any) -> Any:
    """To five digits, as figures show it: a fourth of the bytes. What is not finite is none."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _selection(report: selection.SelectionReport, said: Sequence[str]) -> dict[str, Any]:
    """What data alone chooses, as ``leaderboard --selection`` has it, and the notes that are not said already."""
    records = selection.to_records([report])
    return {
        "tables": [
            {"of": one.of, "title": one.title, "key": one.key, "rows": [row for row in records if row["of"] == one.of]}
            for one in selection.tables(report)
        ],
        "notes": [note for note in report.notes if note not in said],
    }


def _coverage(results: Results, plan: Plan) -> dict[str, Any]:
    """What is missing, failed or diverged, and why."""
    states: Counter[str] = Counter()
    troubles: dict[tuple[str, str, str, str], int] = {}
    for planned in plan.cells:
        status = results.status(planned.cell)
        state = CALLED[status.state]
        states[state] += 1
        if status.state != "done":
            key = (plan.tasks[planned.cell.task].name, planned.label, state, status.brief)
            troubles[key] = troubles.get(key, 0) + 1
    return {
        "cells": len(plan.cells),
        "states": dict(states),
        "troubles": [
            {"task": task, "algorithm": label, "state": state, "reason": reason, "cells": count}
            for (task, label, state, reason), count in troubles.items()
        ],
    }


def _provenance(results: Results, plan: Plan) -> dict[str, Any]:
    """What the results were made with; lists where cells differ."""
    found: dict[str, set[str]] = {}
    seconds: dict[tuple[str, ...], float] = {}
    files: dict[tuple[str, str, str], None] = {}
    for planned in plan.cells:
        if planned.cell.imported is not None or results.status(planned.cell).state != "done":
            continue
        record = results.record(planned.cell)
        for name in ("git_commit", "platform", "device", "engine", "precision"):
            if record.get(name):
                found.setdefault(name, set()).add(str(record[name]))
        for made in (record, record.get("evaluated", {})):
            for package, version in made.get("versions", {}).items():
                found.setdefault(package, set()).add(str(version))
        group = tuple(record["group"])
        seconds[group] = max(seconds.get(group, 0.0), record["training_seconds"])
        name = plan.tasks[planned.cell.task].name
        files[name, planned.cell.data.describe(), record["dataset"]["sha256"]] = None
    return {
        "command": plan.origin.command if plan.origin else None,
        "suite_file": plan.origin.text if plan.origin else None,
        "made_with": {name: sorted(values) for name, values in found.items()},
        "training_seconds": sum(seconds.values()),
        "sources": [{"file": file, "sha256": sha256} for file, sha256 in plan.sources],
        "datasets": [{"task": task, "data": data, "sha256": sha256} for task, data, sha256 in files],
        "settings": [
            {"algorithm": label, "hyperparameters": planned.cell.hyperparameters, "task": planned.cell.definition.name}
            for label, planned in {(planned.label): planned for planned in reversed(plan.cells)}.items()
        ][::-1],
    }


def _published(results: Results, plan: Plan, episodes: pd.DataFrame) -> list[dict[str, Any]]:
    """Numbers of the literature for the suite's tasks, each with its source, its protocol and a verdict."""
    return published.as_records(published.compare(results, plan, published.find_sources(()), episodes), plan)


def _training(board: Leaderboard) -> dict[str, list[int] | None]:
    """The fewest and the most updates of each row."""
    spans = {row.policy: board.updates_of(row.policy) for row in board.overall}
    return {row: list(span) if span else None for row, span in spans.items()}
