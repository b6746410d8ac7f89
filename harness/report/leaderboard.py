"""The leaderboard of a suite: safe policies first, by reward; then the unsafe ones, by cost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_args

from harness.plan import MARK, CellData, Plan
from harness.protocol import Protocol
from harness.report.tables import csv_table, markdown_table, markdown_text
from harness.report.warnings import describe_damage, describe_imports, describe_warnings
from harness.statistics import (
    WHOLE,
    Overall,
    Scope,
    Score,
    final_episodes,
    overall_scores,
    run_means,
    run_states,
    task_scores,
)
from harness.store import CALLED, Results, State
from harness.tasks import within

if TYPE_CHECKING:
    import pandas as pd

AnyScore = TypeVar("AnyScore", bound=Score, covariant=True)
WARNING = "Warning: "
"""Begins a note on single agents."""
UNDONE: tuple[State, ...] = tuple(state for state in get_args(State) if state != "done")

LEGEND = (
    "Reward and cost are DSRL's normalised means over seeds and cost limits; safe means cost <= 1. "
    "P(safe) is the share of episodes within their limit, tail the mean cost of the costliest 10% of episodes, "
    "IQM the interquartile mean of reward with a 95% stratified bootstrap interval over n seeds; "
    "updates is the length of training, runs counts (seed, limit) pairs."
)


@dataclass(frozen=True)
class View:
    """Which part of a suite a board is of, and how its checkpoints were chosen.

    Args:
        family: of its tasks; all for ``None``.
        limit: the cost limit, as a text; the mean over all for ``None``.
        best: whether every run's best checkpoint by roll-outs counts, in the place of the last one.
    """

    family: str | None = None
    limit: str | None = None
    best: bool = False

    @property
    def title(self) -> str:
        """What a heading adds to the suite's name."""
        parts = [self.family, f"limit {self.limit}" if self.limit else None]
        parts += ["best checkpoint by roll-outs (online selection, peeks)"] if self.best else []
        return "".join(f", {part}" for part in parts if part)

    @property
    def checkpoint(self) -> str:
        """Which checkpoint counts."""
        return "best by roll-outs (peeks)" if self.best else "last"

    @property
    def sentence(self) -> str:
        """The same, for people."""
        if not self.best:
            return "Last checkpoint."
        return (
            "Best checkpoint of each run by its roll-outs: online selection, which nobody has who may not try policies "
            "in the environment, judged by the episodes that it chose by."
        )


@dataclass(frozen=True)
class Foreign:
    """A published row: not ours, without rank, seeds or interval.

    Args:
        source: where it is from.
        policy: what it is called there.
        reward: normalised.
        cost: normalised by its own limits.
        protocol: under which it stands; empty where that is not known.
    """

    source: str
    policy: str
    reward: float
    cost: float
    protocol: str

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.policy} (published: {self.source})"

    @property
    def safe(self) -> bool:
        """DSRL's criterion."""
        return within(self.cost, 1)


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
        ended = [f"{self.states[state]} {CALLED[state]}" for state in UNDONE if state not in ("missing", "running")]
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
        families: of the tasks, by id.
        protocols: of the tasks, by id.
        updates: for how many updates a policy was trained on a task, by row and task.
        view: which part of the suite it is of.
        published: rows of the literature by task; those over all tasks under an empty name.
    """

    suite: str
    description: str
    names: dict[str, str]
    data: dict[str, str]
    overall: list[Row[Overall]]
    tasks: dict[str, list[Row[Score]]]
    notes: list[str]
    families: dict[str, str]
    protocols: dict[str, Protocol]
    updates: dict[tuple[str, str], int]
    view: View = View()
    published: dict[str, list[Foreign]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Names it."""
        return self.suite + self.view.title

    @property
    def protocol(self) -> Protocol:
        """Of all its tasks together."""
        return Protocol.together(self.protocols[task] for task in self.tasks)

    def protocol_of(self, task: str) -> Protocol:
        """Of a task, or with an empty name of all."""
        return self.protocols[task] if task else self.protocol

    def updates_of(self, policy: str, task: str = "") -> tuple[int, int] | None:
        """The fewest and most updates of a policy, over all tasks or on one; ``None`` where none are planned."""
        steps = [self.updates[policy, one] for one in ([task] if task else self.tasks) if (policy, one) in self.updates]
        return (min(steps), max(steps)) if steps else None


def make_leaderboard(
    store: Results,
    plan: Plan,
    scope: Scope = WHOLE,
    episodes: pd.DataFrame | None = None,
    runs: pd.DataFrame | None = None,
    notes: Sequence[str] | None = None,
) -> Leaderboard:
    """Read a suite's results and rank them.

    Args:
        store: the results.
        plan: the suite's.
        scope: which part of the suite counts.
        episodes: the suite's :func:`final_episodes`, where they have been read.
        runs: their :func:`run_means`, where they have been made.
        notes: the suite's :func:`suite_notes`, where they have been made.
    """
    episodes = final_episodes(store, plan) if episodes is None else episodes
    runs = run_means(episodes) if runs is None else runs
    episodes, runs = scope.of(episodes, plan), scope.of(runs, plan)
    states, by_task = run_states(store, plan, scope), task_scores(episodes, plan, scope, runs)
    together: dict[str, Counter[State]] = {}
    for (row, _), counts in states.items():
        together.setdefault(row, Counter()).update(counts)
    overall = _ranked(together, overall_scores(episodes, plan, scope, runs))
    tasks, limits = {}, scope.limits(plan)
    for task in limits:
        here = {row: counts for (row, other), counts in states.items() if other == task}
        tasks[task] = _ranked(here, {row: by_task[row, task] for row in here if (row, task) in by_task})
    data = {task: described(used) for task, used in plan.data.items()}
    names = {task: found.name for task, found in plan.tasks.items()}
    families = {task: found.family for task, found in plan.tasks.items()}
    protocols = {task: Protocol.of([(plan.tasks[task], of_task)]) for task, of_task in limits.items()}
    updates = training_updates(plan)
    if notes is None:
        notes = suite_notes(store, plan.of([planned for planned in plan.cells if planned.cell.task in limits]))
    notes = [*_unranked(overall), *notes]
    return Leaderboard(plan.suite, plan.description, names, data, overall, tasks, notes, families, protocols, updates)


def training_updates(plan: Plan) -> dict[tuple[str, str], int]:
    """The length of training of every row on every task, where it is known."""
    return {
        (row, planned.cell.task): planned.cell.hyperparameters["steps"]
        for planned in plan.cells
        for row in planned.rows.values()
        if planned.cell.hyperparameters["steps"]  # what is imported need not say it
    }


def described(used: Sequence[CellData]) -> str:
    """What a task's policies were trained on; rows name the point of a grid, so that here the source is enough."""
    used = [one for one in used if one.source != "unknown"] or used  # a note tells of what is imported
    kinds = {one.model_copy(update={"file": None, "label": None}) for one in used}
    if len(kinds) == 1:  # and yet several names where parts were joined that name one file differently
        return " or ".join(dict.fromkeys(one.describe() for one in used))
    return f"{' or '.join(dict.fromkeys(one.name for one in used))}, filtered as the rows say"


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


def _unranked(overall: Iterable[Row[Overall]]) -> list[str]:
    partial = [row.policy for row in overall if row.rank is None]
    return [f"Not ranked, because runs are missing (see 'lspc-bench status'): {', '.join(partial)}."] if partial else []


def suite_notes(store: Results, plan: Plan) -> list[str]:
    """What a reader must know of a suite's results, whichever part of it a table is over."""
    notes = []
    files: dict[str, set[str]] = {}
    statuses = [store.status(planned.cell) for planned in plan.cells]
    for planned, status in zip(plan.cells, statuses, strict=True):
        if status.state == "done" and not planned.cell.imported:
            files.setdefault(planned.cell.task, set()).add(store.record(planned.cell)["dataset"]["sha256"])
    changed = [plan.tasks[task].name for task, hashes in files.items() if len(hashes) > 1]
    notes += describe_imports(plan)
    if changed:
        notes.append(f"Not all rows were trained on the same dataset file: {', '.join(changed)}.")
    notes += [f"{WARNING}{line}." for line in (*describe_damage(statuses, plan), *describe_warnings(statuses, plan))]
    return notes


def to_markdown(boards: Sequence[Leaderboard]) -> str:
    """For people: overall, then a table a task."""
    return "\n\n".join(_markdown(board) for board in boards) + "\n"


def _markdown(board: Leaderboard) -> str:
    description = f" {markdown_text(board.description)}" if board.description else ""
    parts = [
        f"# Leaderboard: {board.title}",
        f"Data: {markdown_text(all_data(board))}.{description}",
        f"Protocol {board.protocol.describe()}.",
        f"## Overall, {len(board.tasks)} {'task' if len(board.tasks) == 1 else 'tasks'}",
        overall_table(board),
        f"{board.view.sentence} {LEGEND}",
        *map(markdown_text, board.notes),
    ]
    for task in board.tasks:
        heading = markdown_text(f"{board.names[task]}{_suffix(board.data[task])}")
        parts += [f"## {heading}", task_table(board, task)]
    return "\n\n".join(parts)


def overall_table(board: Leaderboard) -> str:
    """The rows over all tasks, as Markdown."""
    header = [*COMMON, "tail", "IQM", "95% interval", "n", "safe tasks", *ABOUT]
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
                *_about(board, row),
            ]
        )
    rows += [[*_foreign(row), *["-"] * 5, *_about_foreign(row)] for row in board.published.get("", [])]
    return markdown_table(header, rows)


def task_table(board: Leaderboard, task: str) -> str:
    """The rows of one task, given by its id, as Markdown."""
    rows = [[*_common(row), *_about(board, row, task)] for row in board.tasks[task]]
    rows += [[*_foreign(row), *_about_foreign(row)] for row in board.published.get(task, [])]
    return markdown_table([*COMMON, *ABOUT], rows)


def all_data(board: Leaderboard) -> str:
    """What the policies were trained on, in one line."""
    used = {board.data[task] for task in board.tasks} or set(board.data.values())
    return used.pop() if len(used) == 1 else "several kinds, named with each task"


def _suffix(data: str) -> str:
    """What stands behind a task's name whose data is not simply DSRL's."""
    return "" if data == "DSRL" else f" ({data})"


def to_records(boards: Sequence[Leaderboard]) -> list[dict[str, Any]]:
    """One flat record a row: overall rows have an empty task, ours an empty source."""
    records = []
    for board in boards:
        scopes: list[tuple[str, Sequence[Row[Score]]]] = [("", board.overall), *board.tasks.items()]
        for task, rows in scopes:
            about: dict[str, Any] = {
                "suite": board.suite,
                "family": board.view.family or "all",
                "limit": board.view.limit or "mean",
                "checkpoint": board.view.checkpoint,
            }
            protocol = board.protocol_of(task).name if board.tasks else ""
            for row in rows:
                score = row.score
                whole = score if isinstance(score, Overall) else None
                low, high = (whole.interval if whole else None) or (None, None)
                fewest, most = board.updates_of(row.policy, task) or (None, None)
                records.append(
                    {
                        **about,
                        "data": board.data.get(task) or all_data(board),
                        "task": task,
                        "rank": row.rank,
                        "policy": row.policy,
                        "imported": row.policy.endswith(MARK),
                        "source": "",
                        "protocol": protocol,
                        "updates_min": fewest,
                        "updates_max": most,
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
            for foreign in board.published.get(task, []):
                known = {
                    **about,
                    "limit": "as published",
                    "checkpoint": "as published",
                    "data": "as published",
                    "task": task,
                    "policy": foreign.policy,
                    "imported": False,
                    "source": foreign.source,
                    "protocol": foreign.protocol,
                    "normalized_reward": foreign.reward,
                    "normalized_cost": foreign.cost,
                    "safe": foreign.safe,
                }
                records.append({name: known.get(name) for name in records[-1]})
    return records


def to_csv(boards: Sequence[Leaderboard]) -> str:
    """For programs: :func:`to_records` as CSV."""
    return csv_table(to_records(boards))


def to_json(boards: Sequence[Leaderboard]) -> str:
    """For programs: :func:`to_records` and the notes of each suite."""
    suites = [
        {
            "suite": board.suite,
            "title": board.title,
            "protocol": board.protocol.describe(),
            "data": board.data,
            "description": board.description,
            "notes": board.notes,
            "rows": to_records([board]),
        }
        for board in boards
    ]
    return json.dumps(suites, indent=1) + "\n"


COMMON = ("#", "policy", "reward", "cost", "safe", "P(safe)")
ABOUT = ("protocol", "updates", "runs")


def _common(row: Row[Score]) -> list[str]:
    """The cells of :data:`COMMON`."""
    rank, score, name = "-" if row.rank is None else str(row.rank), row.score, markdown_text(row.policy)
    if score is None:
        return [rank, name, "-", "-", "-", "-"]
    return [rank, name, _number(score.reward), _number(score.cost), _safe(score.safe), _number(score.satisfaction)]


def span(updates: tuple[int, int] | None, unknown: str = "-") -> str:
    """The fewest and the most updates, for people."""
    if updates is None:
        return unknown
    fewest, most = updates
    return str(most) if fewest == most else f"{fewest} to {most}"


def _about(board: Leaderboard, row: Row[Score], task: str = "") -> list[str]:
    """The cells of :data:`ABOUT`."""
    return [board.protocol_of(task).name, span(board.updates_of(row.policy, task)), row.runs]


def _foreign(row: Foreign) -> list[str]:
    """The cells of :data:`COMMON`."""
    return ["-", markdown_text(row.name), _number(row.reward), _number(row.cost), _safe(row.safe), "-"]


def _about_foreign(row: Foreign) -> list[str]:
    return [row.protocol or "not known", "-", "not ours"]


def _safe(safe: bool) -> str:
    return "yes" if safe else "no"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:z.3f}"


FORMATS = {"markdown": to_markdown, "csv": to_csv, "json": to_json}
