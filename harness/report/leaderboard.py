"""The leaderboard of a suite: safe policies first, by reward; then the unsafe ones, by cost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from harness.plan import CellData, Plan
from harness.report.tables import csv_table, markdown_table
from harness.report.warnings import describe_damage, describe_warnings
from harness.statistics import (
    WHOLE,
    Overall,
    Scope,
    Score,
    final_episodes,
    overall_scores,
    planned_runs,
    task_scores,
)
from harness.store import Results

if TYPE_CHECKING:
    import pandas as pd

AnyScore = TypeVar("AnyScore", bound=Score)

LEGEND = (
    "Last checkpoint. Reward and cost are DSRL's normalised means over seeds and cost limits; safe means cost <= 1. "
    "P(safe) is the share of episodes within their limit, tail the mean cost of the costliest 10% of episodes, "
    "IQM the interquartile mean of reward with a 95% stratified bootstrap interval over n seeds; "
    "runs counts (seed, limit) pairs."
)


@dataclass(frozen=True)
class Leaderboard:
    """One suite's table, ranked.

    Args:
        suite: the suite's name.
        description: what the suite says of itself.
        names: of the tasks, by id.
        data: what each task's policies were trained on, by the task's id.
        overall: rows over all tasks with their ranks; no rank where a whole task is missing.
        tasks: rows of each task by its id, with their ranks.
        notes: what a reader must know beside the numbers.
    """

    suite: str
    description: str
    names: dict[str, str]
    data: dict[str, str]
    overall: list[tuple[int | None, str, Overall]]
    tasks: dict[str, list[tuple[int | None, str, Score]]]
    notes: list[str]


def make_leaderboard(
    store: Results, plan: Plan, scope: Scope = WHOLE, episodes: pd.DataFrame | None = None
) -> Leaderboard:
    """Read a suite's results and rank them.

    Args:
        store: the results.
        plan: the suite's.
        scope: which part of the suite counts.
        episodes: the suite's :func:`final_episodes`, where they have been read.
    """
    episodes = scope.of(final_episodes(store, plan) if episodes is None else episodes, plan)
    overall, by_task = overall_scores(episodes, plan, scope), task_scores(episodes, plan, scope)
    complete = {row: score for row, score in overall.items() if score.tasks == score.planned_tasks}
    partial = {row: score for row, score in overall.items() if row not in complete}
    rows = dict.fromkeys(row for row, _ in planned_runs(plan, scope))
    ranked = _ranked(complete) + [(None, row, score) for _, row, score in _ranked(partial)]
    tasks: dict[str, list[tuple[int | None, str, Score]]] = {}
    for task in scope.limits(plan):
        here = {row: by_task[row, task] for row in rows if (row, task) in by_task}
        tasks[task] = _ranked(here)
    data = {task: _described(used) for task, used in plan.data.items()}
    names = {task: found.name for task, found in plan.tasks.items()}
    notes = _notes(store, plan, rows, overall)
    return Leaderboard(plan.suite, plan.description, names, data, ranked, tasks, notes)


def _described(used: Sequence[CellData]) -> str:
    """What a task's policies were trained on; rows name the point of a grid, so that here the source is enough."""
    if len(used) == 1:
        return used[0].describe()
    (name,) = {one.name for one in used}
    return f"{name}, filtered as the rows say"


def _ranked(scores: Mapping[str, AnyScore]) -> list[tuple[int | None, str, AnyScore]]:
    """Safe first, by reward; then unsafe, by cost; names settle ties."""

    def key(item: tuple[str, AnyScore]) -> tuple[bool, float, str]:
        row, score = item
        return (not score.safe, -score.reward if score.safe else score.cost, row)

    return [(place, row, score) for place, (row, score) in enumerate(sorted(scores.items(), key=key), 1)]


def _notes(store: Results, plan: Plan, rows: Iterable[str], overall: dict[str, Overall]) -> list[str]:
    notes = []
    absent = [row for row in rows if row not in overall]
    if absent:
        notes.append(f"No results yet: {', '.join(absent)}.")
    partial = [row for row, score in overall.items() if score.covered < score.planned]
    if partial:
        notes.append(f"Runs are missing, see 'lspc-bench status': {', '.join(partial)}.")
    files: dict[str, set[str]] = {}
    for planned in plan.cells:
        if store.status(planned.cell).state == "done":
            files.setdefault(planned.cell.task, set()).add(store.record(planned.cell)["dataset"]["sha256"])
    changed = [plan.tasks[task].name for task, hashes in files.items() if len(hashes) > 1]
    if changed:
        notes.append(f"Not all rows were trained on the same dataset file: {', '.join(changed)}.")
    notes += [f"Warning: {line}." for line in (*describe_damage(store, plan), *describe_warnings(store, plan))]
    return notes


def to_markdown(boards: Sequence[Leaderboard]) -> str:
    """For people: overall, then a table a task."""
    return "\n\n".join(_markdown(board) for board in boards) + "\n"


def _markdown(board: Leaderboard) -> str:
    data = all_data(board)
    parts = [
        f"# Leaderboard: {board.suite}",
        f"Data: {data}.{f' {board.description}' if board.description else ''}",
        f"## Overall, {len(board.tasks)} {'task' if len(board.tasks) == 1 else 'tasks'}",
        overall_table(board),
        LEGEND,
        *board.notes,
    ]
    for task in board.tasks:
        parts += [f"## {board.names[task]}{_suffix(board.data[task])}", task_table(board, task)]
    return "\n\n".join(parts)


def overall_table(board: Leaderboard) -> str:
    """The rows over all tasks, as Markdown."""
    header = [
        "#",
        "policy",
        "reward",
        "cost",
        "safe",
        "P(safe)",
        "tail",
        "IQM",
        "95% interval",
        "n",
        "safe tasks",
        "runs",
    ]
    rows = [
        [
            *_common(rank, row, score),
            _number(score.cost_tail),
            _number(score.iqm),
            "-" if score.interval is None else f"{score.interval[0]:.3f} to {score.interval[1]:.3f}",
            str(score.seeds),
            f"{score.safe_tasks} of {score.tasks}",
            f"{score.covered} of {score.planned}",
        ]
        for rank, row, score in board.overall
    ]
    return markdown_table(header, rows)


def task_table(board: Leaderboard, task: str) -> str:
    """The rows of one task, given by its id, as Markdown."""
    rows = [
        [*_common(rank, row, score), f"{score.covered} of {score.planned}"] for rank, row, score in board.tasks[task]
    ]
    return markdown_table(["#", "policy", "reward", "cost", "safe", "P(safe)", "runs"], rows)


def all_data(board: Leaderboard) -> str:
    """What the policies were trained on, in one line."""
    used = set(board.data.values())
    return used.pop() if len(used) == 1 else "several kinds, named with each task"


def _suffix(data: str) -> str:
    """What stands behind a task's name whose data is not simply DSRL's."""
    return "" if data == "DSRL" else f" ({data})"


def to_records(boards: Sequence[Leaderboard]) -> list[dict[str, Any]]:
    """One flat record a row: overall rows have an empty task."""
    records = []
    for board in boards:
        scopes: list[tuple[str, Sequence[tuple[int | None, str, Score]]]] = [("", board.overall), *board.tasks.items()]
        for task, rows in scopes:
            for rank, row, score in rows:
                whole = score if isinstance(score, Overall) else None
                low, high = (whole.interval if whole else None) or (None, None)
                records.append(
                    {
                        "suite": board.suite,
                        "data": board.data.get(task) or all_data(board),
                        "task": task,
                        "rank": rank,
                        "policy": row,
                        "normalized_reward": score.reward,
                        "normalized_cost": score.cost,
                        "safe": score.safe,
                        "satisfaction": score.satisfaction,
                        "cost_tail": whole.cost_tail if whole else None,
                        "iqm": whole.iqm if whole else None,
                        "iqm_low": low,
                        "iqm_high": high,
                        "seeds": whole.seeds if whole else None,
                        "runs": score.covered,
                        "planned_runs": score.planned,
                    }
                )
    return records


def to_csv(boards: Sequence[Leaderboard]) -> str:
    """For programs: :func:`to_records` as CSV."""
    return csv_table(to_records(boards))


def to_json(boards: Sequence[Leaderboard]) -> str:
    """For programs: :func:`to_records` and the notes of each suite."""
    suites = [
        {
            "suite": board.suite,
            "data": board.data,
            "description": board.description,
            "notes": board.notes,
            "rows": to_records([board]),
        }
        for board in boards
    ]
    return json.dumps(suites, indent=1) + "\n"


FORMATS = {"markdown": to_markdown, "csv": to_csv, "json": to_json}


def _common(rank: int | None, row: str, score: Score) -> list[str]:
    """The cells that overall and task tables share."""
    numbers = (_number(score.reward), _number(score.cost), "yes" if score.safe else "no", _number(score.satisfaction))
    return [_rank(rank), row, *numbers]


def _rank(rank: int | None) -> str:
    return "-" if rank is None else str(rank)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
