"""Bring docs/evidence.md up to date, tables and pictures: python docs/write_evidence.py [--check] [RESULTS...].

RESULTS (results/evidence and its kin) are archives or results folders of one suite each; nothing is trained. --check
writes nothing: it says whether the page holds what the results give, and whether the pictures are there and of these
results, whose digest they hold.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from harness import registry
from harness.archive import open_results
from harness.plan import Plan, PlannedCell
from harness.report.diagnostics import diagnostics_section
from harness.report.leaderboard import LEGEND, Leaderboard, all_data, make_leaderboard, overall_table, task_table
from harness.report.pictures import save_curves, save_plane
from harness.report.tables import markdown_table
from harness.statistics import final_episodes, interval, mean, planned_limits, seed_matrix, seed_table, task_scores
from harness.store import Results
from harness.tasks import within

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "evidence.md"
RESULTS = [ROOT / "results" / suite for suite in ("evidence", "evidence-small", "evidence-long")]
PUBLISHED = ROOT / "results" / "published" / "published.csv"
END = "<!-- end -->\n"
SHOWN = "shown"
"""What the digest is called in the pictures."""
FAMILY = "bullet"
"""Whose published averages stand beside ours."""


class Evidence:
    """The page's parts, made from a suite's results."""

    def __init__(self, results: Results, plan: Plan) -> None:
        self.results, self.plan = results, plan
        self.plane, self.curved = f"{plan.suite}.png", f"{plan.suite}-curves.png"
        self.board: Leaderboard = make_leaderboard(results, plan)
        episodes = final_episodes(results, plan)
        judged = zip(episodes["task"], episodes["limit"], strict=True)
        self.episodes = episodes[
            np.array([limit in plan.tasks[task].cost_limits for task, limit in judged], dtype=bool)
        ]
        """Those at the limits of DSRL's protocol, for what is set beside published numbers."""
        self.limits = {
            row: [(task, limit) for task, limit in limits if limit in plan.tasks[task].cost_limits]
            for row, limits in planned_limits(plan).items()
        }
        """By row the tasks and limits, of these, that a seed must have."""
        self.done = [planned for planned in plan.cells if results.status(planned.cell).state == "done"]

    def parts(self) -> dict[str, Callable[[], str]]:
        """What may stand between ``<!-- SUITE: NAME -->`` and ``<!-- end -->``, by name."""
        return {
            "ran": self.ran,
            "paper": self.paper,
            "claims": self.claims,
            "overall": self.overall,
            "tasks": self.tasks,
            "curves": self.curves,
            "held out": self.held_out,
        }

    def ran(self) -> str:
        """What was run, on what, for how long."""
        plan, tasks = self.plan, list(self.board.names.values())
        seeds = len({planned.cell.seed for planned in plan.cells})
        limits = sorted({limit for planned in plan.cells for limit in planned.cell.evaluation_limits})
        records = [self.results.record(planned.cell) for planned in self.done]
        machines = sorted({f"{record['platform']}, {record['device']}" for record in records})
        commits = sorted({record["git_commit"][:7] for record in records if record["git_commit"]})
        lines = [
            f"{len(self.done)} of {len(plan.cells)} cells of suite `{plan.suite}` are done: "
            f"{len(tasks)} task{'s' * (len(tasks) > 1)} ({', '.join(tasks)}), {seeds} seeds, "
            f"cost limit{'s' * (len(limits) > 1)} {', '.join(f'{limit:g}' for limit in limits)}. "
            f"Data: {all_data(self.board)}.",
            f"Training took {_seconds(self.results, self.done) / 3600:.1f} hours in all, by the clock, on "
            f"{'; '.join(machines) or 'no machine yet'}. Code: {', '.join(commits) or 'unknown'}.",
        ]
        rows = []
        for label in dict.fromkeys(planned.label for planned in plan.cells):
            mine = [planned for planned in plan.cells if planned.label == label]
            done = [planned for planned in self.done if planned.label == label]
            steps, batch = (_set_and_published(mine, name) for name in ("steps", "batch_size"))
            hours = f"{_seconds(self.results, done) / 3600:.2f}"
            rows.append([label, ", ".join(mine[0].rows.values()), *steps, *batch, f"{len(done)} of {len(mine)}", hours])
        header = ["algorithm", "rows", "steps", "published", "batch", "published", "cells", "hours"]
        return "\n\n".join([*lines, markdown_table(header, rows)])

    def paper(self) -> str:
        """Published averages beside ours."""
        tasks = [task for task in self.plan.tasks.values() if task.family == FAMILY]
        names = ", ".join(task.name for task in tasks)
        with PUBLISHED.open(encoding="utf-8", newline="") as file:
            published = [row for row in csv.DictReader(file) if row["source"] == "lspc" and row["family"] == FAMILY]
        lines = []
        for row in sorted(published, key=lambda row: (row["scope"], not row["algorithm"].startswith("LSPC"))):
            if row["scope"] == "average":
                where, here = "8 tasks", [task.id for task in tasks]
            elif row["task_id"] in self.plan.tasks:
                where, here = row["task"], [row["task_id"]]
            else:
                continue
            numbers = [_number(float(row[f"normalized_{name}"])) for name in ("reward", "cost")]
            mine = self._rows(row["algorithm"].lower()) or [""]
            lines += [[row["algorithm"], where, *numbers, name or "not run", *self._means(name, here)] for name in mine]
        header = ["paper", "on", "reward", "cost", "here", "reward", "95% interval", "cost", "95% interval", "n"]
        limits = ", ".join(f"{limit:g}" for limit in sorted(set(self.episodes["limit"])))
        note = (
            "**The data differ.** The paper's averages are over DSRL's eight Bullet tasks, on DSRL's data (arXiv "
            f"2412.08794, Table 1, as a third party quotes it); ours are over {len(tasks)} of these tasks ({names}), "
            f"on {all_data(self.board)}, with the steps above. Both are judged at DSRL's limits ({limits}). Intervals: "
            "95% stratified bootstrap of the mean over n seeds."
        )
        return f"{note}\n\n{markdown_table(header, lines)}"

    def claims(self) -> str:
        """What the paper says of LSPC, and whether it is so here."""
        lines = []
        for optimised in self._rows("lspc-o"):
            safest = optimised.replace("lspc-o", "lspc-s", 1)
            lines += [
                self._claim(f"{safest}: cost at most 1", safest, "cost"),
                self._claim(f"{optimised}: cost at most 1", optimised, "cost"),
                *(
                    self._claim(f"{optimised} earns more than {other}", optimised, "reward", other)
                    for other in (safest, *self._rows("bc-safe"))
                ),
            ]
        note = (
            "Cost is the normalised mean; a difference is that of normalised mean rewards, paired by seed and task. An "
            "interval that lies on one side alone decides, yes or no; otherwise the seeds do not tell."
        )
        header = ["what the paper claims", "here", "95% interval", "n", "tasks", "so?"]
        return "\n\n".join([markdown_table(header, lines), note])

    def overall(self) -> str:
        """The leaderboard over all tasks, and its picture."""
        picture = f"![Reward against cost of every policy, a panel for each task]({self.plane})"
        return "\n\n".join(
            [overall_table(self.board), f"{self.board.view.sentence} {LEGEND}", *self.board.notes, picture]
        )

    def tasks(self) -> str:
        """A leaderboard for each task."""
        return "\n\n".join(f"### {name}\n\n{task_table(self.board, task)}" for task, name in self.board.names.items())

    def curves(self) -> str:
        """The picture of the learning curves."""
        return (
            f"![Reward and cost against training, two panels for each task]({self.curved})\n\n"
            "Mean over seeds, a seed's number being the mean over its limits; the band is their 95% interval. Points "
            "before the last rest on fewer episodes."
        )

    def held_out(self) -> str:
        """What was measured on held-out data."""
        _, _, table = diagnostics_section(self.results, self.plan).strip().partition("\n\n")
        return table or "Nothing was held out."

    def draw(self, folder: Path) -> None:
        """The pictures."""
        texts = {SHOWN: self.digest()}
        save_plane(self.board, self.plan, folder / self.plane, texts)
        save_curves(self.results, self.board, self.plan, folder / self.curved, texts)

    def digest(self) -> str:
        """The SHA-256 of what is drawn: the data's names, all rows with their limits, and their evaluation episodes."""
        digest = hashlib.sha256(json.dumps([self.plan.suite, self.board.names, self.board.data]).encode())
        for planned in self.plan.cells:
            digest.update(json.dumps([planned.cell.hash, planned.rows, planned.cell.evaluation_limits]).encode())
            if self.results.status(planned.cell).state == "done":
                digest.update(self.results.episodes(planned.cell).to_csv(index=False).encode())
        return digest.hexdigest()

    def faults(self, folder: Path, page: str) -> list[str]:
        """What is wrong with the pictures that the page shows."""
        shown = [folder / name for name in (self.plane, self.curved) if name in page]
        digest = self.digest()
        return [
            f"{path.name} {'out of date' if path.exists() else 'missing'}"
            for path in shown
            if not path.exists() or _text(path) != digest
        ]

    def _rows(self, policy: str) -> list[str]:
        """A policy's rows, with the variants of its algorithm, in the plan's order."""
        rows = dict.fromkeys(row for planned in self.plan.cells for row in planned.rows.values())
        return [row for row in rows if row.partition(" [")[0] == policy]

    def _of(self, row: str) -> pd.DataFrame:
        return self.episodes[self.episodes["row"] == row]

    def _means(self, row: str, tasks: list[str]) -> list[str]:
        """Reward and cost over certain tasks, with intervals and the number of seeds; only if all are there."""
        mine = self._of(row)
        mine = mine[mine["task"].isin(tasks)]
        if mine["task"].nunique() < len(tasks):
            return ["-"] * 5
        scores = task_scores(mine, self.plan).values()
        limits = [(task, limit) for task, limit in self.limits[row] if task in tasks]
        rewards, costs = seed_matrix(mine, limits), seed_matrix(mine, limits, "cost")
        if not len(rewards):  # no seed has every limit
            return ["-"] * 4 + ["0"]
        return [
            _number(sum(score.reward for score in scores) / len(scores)),
            _interval(rewards),
            _number(sum(score.cost for score in scores) / len(scores)),
            _interval(costs),
            str(len(rewards)),
        ]

    def _claim(self, text: str, row: str, column: str, other: str | None = None) -> list[str]:
        """A line: that a row's cost is at most 1, or that its reward is above another's."""
        matrix = seed_table(self._of(row), self.limits[row], column)
        if other is not None:
            matrix = (matrix - seed_table(self._of(other), self.limits[other], column)).dropna()
        if matrix.empty:
            return [text, "-", "-", "0", "-", "not run"]
        values = matrix.to_numpy(dtype=float)
        here, seeds = _number(float(values.mean())), str(len(values))
        tasks = f"{values.shape[1]} of {len(self.plan.tasks)}"
        if len(values) < 2:
            return [text, here, "-", seeds, tasks, "one seed cannot tell"]
        low, high = interval(values, mean)
        holds, fails = (low > 0, high <= 0) if other else (within(high, 1), not within(low, 1))
        return [text, here, _interval(values), seeds, tasks, "yes" if holds else "no" if fails else "undecided"]


def _seconds(results: Results, cells: list[PlannedCell]) -> float:
    """How long cells trained; those that trained together once."""
    groups: dict[tuple[str, ...], float] = {}
    for planned in cells:
        record = results.record(planned.cell)
        group = tuple(record["group"])
        groups[group] = max(groups.get(group, 0.0), record["training_seconds"])
    return sum(groups.values())


def _set_and_published(cells: list[PlannedCell], name: str) -> tuple[str, str]:
    """A hyperparameter as the suite has it for a label's cells, and as published; all values that there are."""
    used, published = set(), set()
    for planned in cells:
        algorithm = registry.load(planned.cell.algorithm)
        used.add(planned.cell.hyperparameters[name])
        default = algorithm.Hyperparameters.model_fields[name].default
        published.add(algorithm.published(planned.cell.definition).get(name, default))
    return " ".join(map(str, sorted(used))), " ".join(map(str, sorted(published)))


def _text(path: Path) -> str | None:
    """The digest that a picture holds."""
    with Image.open(path) as picture:
        return picture.info.get(SHOWN)


def _interval(matrix: NDArray[np.float64]) -> str:
    """Of the mean of a (seeds, tasks) matrix."""
    return " to ".join(map(_number, interval(matrix, mean))) if len(matrix) > 1 else "-"


def _number(value: float) -> str:
    return f"{value:z.2f}"


def marks(text: str, suite: str) -> list[str]:
    """The names of a suite's parts that a page has, in order."""
    return re.findall(rf"^<!-- {re.escape(suite)}: (.+) -->$", text, re.MULTILINE)


def replaced(text: str, mark: str, part: str) -> str:
    """The page with another text behind a mark.

    Raises:
        ValueError: the page does not say where it goes, or where it ends.
    """
    begin = f"<!-- {mark} -->\n"
    before, found, rest = text.partition(begin)
    _, end, after = rest.partition(END)
    if not (found and end):
        raise ValueError(f"the page lacks {begin.strip()} or {END.strip()} behind it")
    return f"{before}{begin}\n{part}\n\n{END}{after}"


def main(arguments: list[str]) -> int:
    """Write the page, or say that it is out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="*", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args(arguments)
    wanted = text = given.page.read_text(encoding="utf-8")
    parts: list[Evidence] = []
    for folder in given.results:
        results = open_results(folder)
        (plan,) = results.plans()
        parts.append(Evidence(results, plan))
        names = marks(text, plan.suite)
        if not names:
            raise ValueError(f"the page has no part <!-- {plan.suite}: ... -->")
        for name in names:
            wanted = replaced(wanted, f"{plan.suite}: {name}", parts[-1].parts()[name]())
    if given.check:
        faults = ["out of date"] if text != wanted else []
        faults = faults or [fault for evidence in parts for fault in evidence.faults(given.page.parent, wanted)]
        print(" and ".join(faults) or "up to date")
        return int(bool(faults))
    given.page.write_text(wanted, encoding="utf-8")
    for evidence in parts:
        evidence.draw(given.page.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
