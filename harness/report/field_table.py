"""Leaderboards in LaTeX, as the field prints them: tasks down, policies across; safe bold, the best of them blue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.report.latex import PREAMBLE, UNUSUAL, bold, coloured, escape, table
from harness.report.leaderboard import LEGEND, WARNING, Leaderboard, all_data, span
from harness.statistics import Score
from harness.tasks import within

MARKS = (
    r"\textbf{Bold}: safe, a mean normalised cost of at most 1. \textcolor{blue}{\textbf{Blue}}: the safe policy with "
    r"the most reward of its line. \textcolor{gray}{Grey}: unsafe."
)
INCOMPLETE = r"$^{*}$: runs are missing."
FOREIGN = r"$^{\dagger}$: published numbers, not ours: without rank, seeds and interval here, and never marked blue."


@dataclass(frozen=True)
class _Cell:
    """What a policy reaches on a line of the table; ``foreign`` and incomplete ones are not compared."""

    reward: float
    cost: float
    complete: bool = True
    foreign: bool = False

    @property
    def safe(self) -> bool:
        return within(self.cost, 1)


def to_latex(boards: Sequence[Leaderboard]) -> str:
    """For a paper: of each board the overall table, and the one of its tasks."""
    text = "\n\n".join(
        f"% Leaderboard: {_comment(board.title)}\n{_overall(board)}\n\n{_tasks(board)}" for board in boards
    )
    return "\n".join([PREAMBLE, *([] if text.isascii() else [UNUSUAL]), text, ""])


def _comment(text: str) -> str:
    return " ".join(text.split())


def _caption(board: Leaderboard, what: str) -> str:
    said = escape(f"{board.title}: {what}. Data: {all_data(board)}. Protocol {board.protocol.describe()}. ")
    return said + escape(board.view.sentence)


def _marks(rows: Sequence[Sequence[str]]) -> list[str]:
    """What the marks in these rows mean."""
    text = " ".join(cell for row in rows for cell in row)
    marks = [MARKS, *([INCOMPLETE] if "$^{*}$" in text else []), *([FOREIGN] if r"$^{\dagger}$" in text else [])]
    return [" ".join(marks)]


def _overall(board: Leaderboard) -> str:
    header = (
        r"\# & Policy & Reward & Cost & P(safe) & Tail & IQM & 95\% interval & $n$ & Safe tasks & Protocol & Updates & "
        r"Runs \\"
    )
    cells = {row.policy: _cell(row.score) for row in board.overall}
    best = _best(cells)
    protocol = escape(board.protocol.name)
    rows = []
    for row in board.overall:
        score = row.score
        low, high = (score.interval if score else None) or (None, None)
        rows.append(
            [
                "--" if row.rank is None else str(row.rank),
                escape(row.policy),
                *_pair(cells[row.policy], row.policy in best, digits=3),
                _number(score.satisfaction if score else None),
                _number(score.cost_tail if score else None),
                _number(score.iqm if score else None),
                "--" if low is None else f"{_number(low)} to {_number(high)}",
                str(score.seeds if score else 0),
                f"{score.safe_tasks} of {score.tasks}" if score else "--",
                protocol,
                span(board.updates_of(row.policy), "--"),
                escape(row.runs),
            ]
        )
    foreign = [
        [
            *("--", _foreign(one.name)),
            *_pair(_Cell(one.reward, one.cost, foreign=True), False, digits=3),
            *["--"] * 6,
            *(escape(one.protocol or "not known"), "--", "not ours"),
        ]
        for one in board.published.get("", [])
    ]
    count = f"{len(board.tasks)} {'task' if len(board.tasks) == 1 else 'tasks'}"
    notes = [*_marks([*rows, *foreign]), escape(LEGEND), *map(escape, board.notes)]
    return table("rlrrrrrrrrlrl", [header], [rows, foreign], _caption(board, f"overall, {count}"), notes)


def _tasks(board: Leaderboard) -> str:
    """Tasks as lines, with the averages of families; a pair of columns a policy."""
    policies = [row.policy for row in board.overall]
    foreign = list(dict.fromkeys(one.name for task in board.tasks for one in board.published.get(task, [])))
    lines = {task: _line(board, task) for task in board.tasks}
    families: dict[str, list[str]] = {}
    for task in board.tasks:
        families.setdefault(board.families[task], []).append(task)
    groups = []
    columns = [*policies, *foreign]
    for family, tasks in families.items():
        rows = [_row(board.names[task], lines[task], columns) for task in tasks]
        groups.append([*rows, _row(f"Average, {family}", _average([lines[task] for task in tasks], columns), columns)])
    if len(families) > 1:
        groups.append([_row("Average", _average(list(lines.values()), columns), columns)])
    names = [*map(escape, policies), *map(_foreign, foreign)]
    pairs = [rf" & \multicolumn{{2}}{{c}}{{{name}}}" for name in names]
    header = [
        "".join(pairs) + r" \\",
        " ".join(rf"\cmidrule(lr){{{2 * index + 2}-{2 * index + 3}}}" for index in range(len(names))),
        " & ".join(["Task", *["Reward", "Cost"] * len(names)]) + r" \\",
    ]
    marks = _marks([names, *(row for group in groups for row in group)])
    notes = [escape(note) for note in board.notes if not note.startswith(WARNING)]  # of single agents: once is enough
    trained = [steps for policy in policies for steps in board.updates_of(policy) or ()]
    length = f" Training: {span((min(trained), max(trained)))} updates." if trained else ""
    caption = _caption(board, "tasks") + escape(length)
    kinds = sorted(set(board.data.values()))
    data = [escape(f"{board.names[task]}: {board.data[task]}.") for task in board.tasks] if len(kinds) > 1 else []
    return table("l" + "rr" * len(names), header, groups, caption, [*marks, *data, *notes])


def _foreign(name: str) -> str:
    return rf"\emph{{{escape(name)}}}$^{{\dagger}}$"


def _line(board: Leaderboard, task: str) -> dict[str, _Cell]:
    found = {row.policy: _cell(row.score) for row in board.tasks[task]}
    found |= {one.name: _Cell(one.reward, one.cost, foreign=True) for one in board.published.get(task, [])}
    return {name: cell for name, cell in found.items() if cell is not None}


def _cell(score: Score | None) -> _Cell | None:
    return None if score is None else _Cell(score.reward, score.cost, score.complete)


def _average(lines: Sequence[Mapping[str, _Cell]], columns: Sequence[str]) -> dict[str, _Cell]:
    """Means over tasks, as the overall table has them; published ones only where no task is missing."""
    found = {}
    for name in columns:
        cells = [line[name] for line in lines if name in line]
        if not cells or (cells[0].foreign and len(cells) < len(lines)):
            continue
        whole = len(cells) == len(lines) and all(cell.complete for cell in cells)
        reward, cost = (float(np.mean([getattr(cell, what) for cell in cells])) for what in ("reward", "cost"))
        found[name] = _Cell(reward, cost, whole, cells[0].foreign)
    return found


def _best(cells: Mapping[str, _Cell | None]) -> set[str]:
    """Of our complete and safe policies those with the most reward."""
    able = {
        name: cell.reward for name, cell in cells.items() if cell and cell.safe and cell.complete and not cell.foreign
    }
    return {name for name, reward in able.items() if reward == max(able.values())}


def _row(name: str, cells: Mapping[str, _Cell], columns: Sequence[str]) -> list[str]:
    best = _best(cells)
    return [escape(name), *(text for column in columns for text in _pair(cells.get(column), column in best))]


def _pair(cell: _Cell | None, best: bool, digits: int = 2) -> list[str]:
    """Reward and cost, marked."""
    if cell is None:
        return ["--", "--"]
    texts = [_number(value, digits) for value in (cell.reward, cell.cost)]
    if not cell.safe:
        texts = [coloured(text, "gray") for text in texts]
    elif best:
        texts = [coloured(bold(text), "blue") for text in texts]
    else:
        texts = [bold(text) for text in texts]
    return texts if cell.complete else [texts[0], texts[1] + "$^{*}$"]


def _number(value: float | None, digits: int = 3) -> str:
    """With a minus sign, and without a zero that has one."""
    return "--" if value is None else f"{value:z.{digits}f}".replace("-", "$-$")
