"""The leaderboard of a suite: safe policies first, by reward; then the unsafe ones, by cost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_args

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
    run_states,
    task_scores,
)
from harness.store import Results, State

if TYPE_CHECKING:
    import pandas as pd

AnyScore = TypeVar("AnyScore", bound=Score, covariant=True)
UNDONE: tuple[State, ...] = tuple(state for state in get_args(State) if state != "done")

LEGEND = (
    "Last checkpoint. Reward and cost are DSRL's normalised means over seeds and cost limits; safe means cost <= 1. "
    "P(safe) is the share of episodes within their limit, tail the mean cost of the costliest 10% of episodes, "
    "IQM the interquartile mean of reward with a 95% stratified bootstrap interval over n seeds; "
    "runs counts (seed, limit) pairs."
)


@dataclass(frozen=True)
class Row(Generic[AnyScore]):
    """One policy's line of a table.

    Args:
        rank: from 1 on; ``None`` where runs are missing, so that it is compared with nobody on other terms.
        policy: its name in tables.
        score: what it reaches, ``None`` without any result.
        states: how many of the runs that the suite asks for stand how.
    """

    rank: int | None
    policy: str
    score: AnyScore | None
    states: Counter[State]

    @property
    def runs(self) -> str:
        """For people: ``4 of 6 (2 diverged)``."""
        ended = [f"{self.states[state]} {state}" for state in UNDONE if state not in ("missing", "running")]
        reasons = ", ".join(reason for reason in ended if not reason.startswith("0 "))
        return f"{self.states['done']} of {self.states.total()}" + (f" ({reasons})" if reasons else "")


@dataclass(frozen=True)
class Leaderboard:
    """One suite's table, ranked.

    Args:
        suite: the suite's name.
        description: what the suite says of itself.
        names: of the tasks, by id.
        data: what each task's policies were trained on, by the task's id.
        overall: rows over all tasks.
        tasks: rows of each task by its id.
        notes: what a reader must know beside the numbers.
    """

    suite: str
    description: str
    names: dict[str, str]
    data: dict[str, str]
    overall: list[Row[Overall]]
    tasks: dict[str, list[Row[Score]]]
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
    states, by_task = run_states(store, plan, scope), task_scores(episodes, plan, scope)
    together: dict[str, Counter[State]] = {}
    for (row, _), counts in states.items():
        together.setdefault(row, Counter()).update(counts)
    overall = _ranked(together, overall_scores(episodes, plan, scope))
    tasks = {}
    for task in scope.limits(plan):
        here = {row: counts for (row, other), counts in states.items() if other == task}
        tasks[task] = _ranked(here, {row: by_task[row, task] for row in here if (row, task) in by_task})
    data = {task: _described(used) for task, used in plan.data.items()}
    names = {task: found.name for task, found in plan.tasks.items()}
    return Leaderboard(plan.suite, plan.description, names, data, overall, tasks, _notes(store, plan, overall))


def _described(used: Sequence[CellData]) -> str:
    """What a task's policies were trained on; rows name the point of a grid, so that here the source is enough."""
    if len(used) == 1:
        return used[0].describe()
    (name,) = {one.name for one in used}
    return f"{name}, filtered as the rows say"


def _ranked(states: Mapping[str, Counter[State]], scores: Mapping[str, AnyScore]) -> list[Row[AnyScore]]:
    """Safe first, by reward; then unsafe, by cost; names settle ties.

    Without rank and below all others, in the same order, are those that lack runs, and last those that have none.
    """

    def key(row: str) -> tuple[bool, bool, bool, float, str]:
        score = scores.get(row)
        if score is None:
            return (True, True, True, 0.0, row)
        return (not score.complete, False, not score.safe, -score.reward if score.safe else score.cost, row)

    ordered = enumerate(sorted(states, key=key), 1)
    return [
        Row(rank if row in scores and scores[row].complete else None, row, scores.get(row), states[row])
        for rank, row in ordered
    ]


def _notes(store: Results, plan: Plan, overall: Iterable[Row[Overall]]) -> list[str]:
    notes = []
    partial = [row.policy for row in overall if row.rank is None]
    if partial:
        notes.append(f"Not ranked, because runs are missing (see 'lspc-bench status'): {', '.join(partial)}.")
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
    rows = []
    for row in board.overall:
        score = row.score
        low, high = (score.interval if score else None) or (None, None)
        rows.append(
            [
                *_common(row),
                _number(score.cost_tail if score else None),
                _number(score.iqm if score else None),
                "-" if low is None else f"{_number(low)} to {_number(high)}",
                str(score.seeds if score else 0),
                f"{score.safe_tasks} of {score.tasks}" if score else "-",
                row.runs,
            ]
        )
    return markdown_table(header, rows)


def task_table(board: Leaderboard, task: str) -> str:
    """The rows of one task, given by its id, as Markdown."""
    rows = [[*_common(row), row.runs] for row in board.tasks[task]]
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
        scopes: list[tuple[str, Sequence[Row[Score]]]] = [("", board.overall), *board.tasks.items()]
        for task, rows in scopes:
            for row in rows:
                score = row.score
                whole = score if isinstance(score, Overall) else None
                low, high = (whole.interval if whole else None) or (None, None)
                records.append(
                    {
                        "suite": board.suite,
                        "data": board.data.get(task) or all_data(board),
                        "task": task,
                        "rank": row.rank,
                        "policy": row.policy,
                        "normalized_reward": score.reward if score else None,
                        "normalized_cost": score.cost if score else None,
                        "safe": score.safe if score else None,
                        "satisfaction": score.satisfaction if score else None,
                        "cost_tail": whole.cost_tail if whole else None,
                        "iqm": whole.iqm if whole else None,
                        "iqm_low": low,
                        "iqm_high": high,
                        "seeds": None if task else whole.seeds if whole else 0,
                        "runs": row.states["done"],
                        "planned_runs": row.states.total(),
                    }
                    | {f"{state}_runs": row.states[state] for state in UNDONE}
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


def _common(row: Row[Score]) -> list[str]:
    """The cells that overall and task tables share."""
    rank, score = "-" if row.rank is None else str(row.rank), row.score
    if score is None:
        return [rank, row.policy, "-", "-", "-", "-"]
    numbers = (_number(score.reward), _number(score.cost), "yes" if score.safe else "no", _number(score.satisfaction))
    return [rank, row.policy, *numbers]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
