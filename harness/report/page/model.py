"""Everything that the page says, as plain values: its tables, its figures and its JSON are made from this alone."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from harness.comparison import Runs, bootstrap, improvements, profile, standings, verdict, wilson
from harness.files import shipped
from harness.plan import Plan
from harness.report.leaderboard import AnyScore, Leaderboard, Row, all_data, make_leaderboard
from harness.report.pictures import learning_curves
from harness.statistics import WHOLE, Scope, between, checkpoint_episodes
from harness.store import Results

PUBLISHED = shipped("published/published.csv", "results/published/published.csv")
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
    runs = mean_runs(episodes)
    board = make_leaderboard(results, plan, episodes=episodes)
    limits = WHOLE.limits(plan)
    families = list(dict.fromkeys(task.family for task in plan.tasks.values()))
    scopes = {
        _key(family, limit): Scope(family, limit)
        for family in [None, *(families if len(families) > 1 else [])]
        for limit in [None, *_positions(limits)]
    }
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
        "views": {
            key: _view(
                board if scope == WHOLE else make_leaderboard(results, plan, scope, episodes), runs, scope.limits(plan)
            )
            for key, scope in scopes.items()
        },
        "runs": _records(runs.reset_index()),
        "curves": _records(learning_curves(checkpoints)),
        "coverage": _coverage(results, plan),
        "provenance": _provenance(results, plan),
        "published": _published(plan, board),
    }


def _key(family: str | None, limit: int | None) -> str:
    """Names a view in addresses."""
    return f"{family or 'all'}:{'mean' if limit is None else limit}"


def _positions(limits: dict[str, tuple[float, ...]]) -> range:
    most = max((len(of_task) for of_task in limits.values()), default=0)
    return range(most if most > 1 else 0)


def _limit_choices(limits: dict[str, tuple[float, ...]]) -> list[dict[str, str]]:
    """The limits by their place, tightest first: tasks of different families have other ones there."""
    choices = []
    for position in _positions(limits):
        values = sorted({of_task[position] for of_task in limits.values() if position < len(of_task)})
        choices.append({"key": str(position), "label": "limit " + " or ".join(f"{value:g}" for value in values)})
    return choices


def mean_runs(episodes: pd.DataFrame) -> pd.DataFrame:
    """Means of each run, by row, task, seed and limit: reward, cost, satisfied."""
    return episodes.groupby(["row", "task", "seed", "limit"], sort=False)[["reward", "cost", "satisfied"]].mean()


def _view(board: Leaderboard, means: pd.DataFrame, limits: Mapping[str, tuple[float, ...]]) -> dict[str, Any]:
    """Tables of a part of the suite, whose leaderboard and limits these are."""
    wide = pd.DataFrame(means[["reward", "cost"]].unstack(["task", "limit"])).sort_index()
    runs = {str(row): _runs(of_row, limits) for row, of_row in wide.groupby(level="row", sort=False)}
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
    return {
        "overall": overall,
        "tasks": {task: _task_rows(board, wide, task, limits[task]) for task in board.tasks},
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
        "profiles": _profiles(whole),
    }


def _runs(wide: pd.DataFrame, limits: Mapping[str, tuple[float, ...]]) -> Runs:
    """Of one row's seeds with every task and limit, the mean over limits.

    Args:
        wide: a line a seed, a column (what, task, limit).
        limits: of the tasks that count.
    """
    columns = [(task, limit) for task, of_task in limits.items() for limit in of_task]
    reward, cost = (
        wide.reindex(columns=[(what, *column) for column in columns]).to_numpy(dtype=np.float64)
        for what in ("reward", "cost")
    )
    whole = np.isfinite(reward).all(1) & np.isfinite(cost).all(1)
    edges = np.cumsum([0, *(len(of_task) for of_task in limits.values())])
    spans = [slice(start, end) for start, end in pairwise(edges)]
    return Runs(*(np.stack([one[whole, span].mean(1) for span in spans], axis=1) for one in (reward, cost)))


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


def _task_rows(board: Leaderboard, wide: pd.DataFrame, task: str, limits: tuple[float, ...]) -> list[dict[str, Any]]:
    rows = []
    for line in board.tasks[task]:
        mine = _runs(wide.loc[[line.policy]], {task: limits}) if line.score else None
        rows.append(_numbers(line, mine) | {"seeds": len(mine.reward) if mine else 0})
    return rows


def _profiles(runs: dict[str, Runs]) -> list[dict[str, Any]]:
    points = []
    for row, one in runs.items():
        for what, scores in (("reward", one.reward), ("cost", one.cost)):
            bands = profile(scores, PROFILE[what], below=what == "cost")
            for level, share, low, high in zip(PROFILE[what], *bands, strict=True):
                points.append(
                    {
                        "row": row,
                        "what": what,
                        "level": level,
                        "share": _short(float(share)),
                        "low": _finite(low),
                        "high": _finite(high),
                    }
                )
    return points


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON has them, to six digits: a figure needs no more, and the file is a third as long."""
    return [{str(key): _short(value) for key, value in row.items()} for row in frame.to_dict("records")]


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _finite(value: float) -> float | None:
    return _short(float(value)) if np.isfinite(value) else None


def _coverage(results: Results, plan: Plan) -> dict[str, Any]:
    """What is missing, failed or diverged, and why."""
    states: Counter[str] = Counter()
    troubles: dict[tuple[str, str, str, str], int] = {}
    for planned in plan.cells:
        status = results.status(planned.cell)
        states[status.state] += 1
        if status.state != "done":
            key = (plan.tasks[planned.cell.task].name, planned.label, status.state, status.brief)
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
        if results.status(planned.cell).state != "done":
            continue
        record = results.record(planned.cell)
        for name in ("git_commit", "platform", "device", "engine", "precision"):
            if record.get(name):
                found.setdefault(name, set()).add(str(record[name]))
        for package, version in record.get("versions", {}).items():
            found.setdefault(package, set()).add(str(version))
        group = tuple(record["group"])
        seconds[group] = max(seconds.get(group, 0.0), record["training_seconds"])
        name = plan.tasks[planned.cell.task].name
        files[name, planned.cell.data.describe(), record["dataset"]["sha256"]] = None
    return {
        "made_with": {name: sorted(values) for name, values in found.items()},
        "training_seconds": sum(seconds.values()),
        "datasets": [{"task": task, "data": data, "sha256": sha256} for task, data, sha256 in files],
        "settings": [
            {"algorithm": label, "hyperparameters": planned.cell.hyperparameters, "task": planned.cell.definition.name}
            for label, planned in {(planned.label): planned for planned in reversed(plan.cells)}.items()
        ][::-1],
    }


def _published(plan: Plan, board: Leaderboard) -> list[dict[str, Any]]:
    """Numbers of the literature for the suite's tasks, each with its source and protocol."""
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["scope"] == "task" and row["task_id"] in plan.tasks]
    ours = {
        (task, row.policy.partition(" [")[0].lower()): (row.policy, row.score)
        for task, rows_here in board.tasks.items()
        for row in reversed(rows_here)
    }
    found = []
    for row in rows:
        if not (row["normalized_reward"] and row["normalized_cost"]):
            continue
        name, score = ours.get((row["task_id"], row["algorithm"].lower()), (None, None))
        found.append(
            {
                "source": row["source"],
                "protocol": row["protocol"],
                "task": plan.tasks[row["task_id"]].name,
                "algorithm": row["algorithm"],
                "reward": float(row["normalized_reward"]),
                "cost": float(row["normalized_cost"]),
                "ours": name,
                "our_reward": score.reward if score else None,
                "our_cost": score.cost if score else None,
            }
        )
    return found
