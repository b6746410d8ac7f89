"""In a notebook: plan and run suites, results as tidy pandas frames, trained policies that act.

``import harness`` has these names, each imported when it is first used::

    import harness

    results = harness.run_suite("smoke", results="results/runs")
    results.episodes.query("last").groupby(["row", "task"])[["normalized_reward", "normalized_cost"]].mean()
    harness.leaderboard(results)
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from harness.archive import chosen_plans, open_results
from harness.errors import UserError, nearest
from harness.exchange.exporting import episodes_of
from harness.options import Options
from harness.plan import Plan, PlannedCell
from harness.planning import make_plan
from harness.policies import TrainedPolicy, find_cell, load_trained
from harness.report.leaderboard import make_leaderboard, to_records
from harness.store import EVERYTHING, Results, Store
from harness.suite import SuiteFile, read_suite

CELL = ("suite", "task", "algorithm", "label", "seed", "trained_for", "cell")
"""What says in each frame but ``episodes`` which agent a row is of: the suite, the task's id, the algorithm, the
suite's label with the point of its grid, the seed, the cost limit that was trained for (NaN: none), the cell's hash."""
RUN = ["suite", "row", "task", "seed", "cost_limit"]
"""What says in ``episodes`` and ``runs`` which run a row is of."""


class LoadedResults:
    """What suites came to, read when it is asked for, once.

    Args:
        results: a results folder or an archive, opened.
        plans: of the suites that count.
    """

    def __init__(self, results: Results, plans: list[Plan]) -> None:
        self.results, self.plans = results, plans

    def __repr__(self) -> str:
        return f"<results of {', '.join(plan.suite for plan in self.plans)} in {self.results.root}>"

    @cached_property
    def episodes(self) -> pd.DataFrame:
        """A row an evaluation episode and cost limit: :func:`harness.exchange.exporting.episodes_of`."""
        return episodes_of(self.results, self.plans)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """A row for each (seed, cost limit) that a suite asks for of a policy, whatever became of it.

        Columns :data:`CELL`, row (the policy's name in tables), policy, imported, cost_limit (that it is judged by),
        state, reason (where it failed), and of its last checkpoint's episodes, NaN without any: episodes (how many),
        normalized_reward, normalized_cost, satisfaction (the share within the limit, NaN where only means are known).
        """
        rows = [
            {
                **about,
                "row": row,
                "policy": policy,
                "imported": row in plan.imported,
                "cost_limit": limit,
                "state": (status := self.results.status(planned.cell)).state,
                "reason": status.brief,
            }
            for plan, planned, about in self._cells()
            for policy, row in planned.rows.items()
            for limit in planned.cell.evaluation_limits
        ]
        last = self.episodes[self.episodes["last"].astype(bool)]
        means = last.groupby(RUN, as_index=False, sort=False).agg(
            episodes=("episodes", "sum"),
            normalized_reward=("normalized_reward", "mean"),
            normalized_cost=("normalized_cost", "mean"),
            satisfaction=("satisfied", "mean"),
        )
        columns = [*CELL, "row", "policy", "imported", "cost_limit", "state", "reason"]
        return pd.DataFrame(rows, columns=columns).merge(means, on=RUN, how="left")

    @cached_property
    def training(self) -> pd.DataFrame:
        """A row a training metric and stretch of steps: :data:`CELL`, step (its end), metric, value (its mean)."""
        return self._of_cells("training", ["step", "metric", "value"])

    @cached_property
    def diagnostics(self) -> pd.DataFrame:
        """A row a number measured by data alone: :data:`CELL`, :data:`harness.store.DIAGNOSTICS`; empty without any."""
        return self._of_cells("diagnostics", ["step", "policy", "cost_limit", "metric", "value"])

    def _cells(self) -> Iterator[tuple[Plan, PlannedCell, dict[str, Any]]]:
        for plan in self.plans:
            for planned in plan.cells:
                cell = planned.cell
                limit = math.nan if cell.cost_limit is None else cell.cost_limit
                said = (plan.suite, cell.task, cell.algorithm, planned.label, cell.seed, limit, cell.hash)
                yield plan, planned, dict(zip(CELL, said, strict=True))

    def _of_cells(self, what: str, columns: list[str]) -> pd.DataFrame:
        frames = []
        for _, planned, about in self._cells():
            if self.results.status(planned.cell).state != "done":
                continue
            frame = getattr(self.results, what)(planned.cell)
            if what == "training":
                frame = frame.melt("step", var_name="metric")
            if len(frame):
                whole = frame.assign(**about)[[*CELL, *columns]]
                frames.append(whole.astype({name: float for name in ("cost_limit", "value") if name in columns}))
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*CELL, *columns])


def plan_suite(suite: str | Path, settings: Mapping[str, Any] | None = None) -> Plan:
    """What a suite means, as ``lspc-bench run --dry-run`` has it: its cells, in order.

    Args:
        suite: a file, or the name of a built-in suite.
        settings: keys of the suite, dotted, and values that win over the file's: ``{"seeds": 5}``.

    Raises:
        UserError: there is no such suite, or it is wrong.
    """
    return make_plan(_file(suite, settings))


def run_suite(
    suite: str | Path,
    results: str | Path = "results/runs",
    settings: Mapping[str, Any] | None = None,
    options: Options | None = None,
) -> LoadedResults:
    """Train and evaluate what a suite asks for and ``results`` does not have yet, as ``lspc-bench run``.

    Interrupted, and called again, it goes on where it was. Evaluation has processes of its own, so a script calls it
    under ``if __name__ == "__main__":``, or with ``Options(workers=0)``.

    Args:
        suite: a file, or the name of a built-in suite.
        results: the folder for results.
        settings: as of :func:`plan_suite`.
        options: of the run, such as ``Options(workers=2, device="cuda")``.

    Returns:
        The results of this suite.

    Raises:
        UserError: the suite is wrong, or something that it needs is not there.
        ResultsError: results cannot be written.
        KeyboardInterrupt: it was interrupted.

    Warns:
        UserWarning: some of it failed; ``runs`` says what and why.
    """
    from harness.cli.run import execute

    file = _file(suite, settings)
    plan = make_plan(file)
    status = execute(file, plan, Path(results), f"run_suite({str(suite)!r}, ...)", options or Options())
    if status == 130:
        raise KeyboardInterrupt
    if status:
        warnings.warn(f"some of suite {plan.suite} failed: the column reason of 'runs' says why", stacklevel=2)
    return load_results(results, plan.suite)


def _file(suite: str | Path, settings: Mapping[str, Any] | None) -> SuiteFile:
    return read_suite(str(suite), [f"{key}={json.dumps(value)}" for key, value in (settings or {}).items()])


def load_policy(results: str | Path, cell: str, policy: str | None = None) -> TrainedPolicy:
    """A trained policy from a results folder, to act with.

    Args:
        results: the folder; an archive has no policies.
        cell: the hash of the cell that trained it, or how that begins: a column of ``runs``.
        policy: its name, where the cell has several.

    Raises:
        UserError: there is no such cell or policy, or the cell is not done.

    Warns:
        UserWarning: something there is damaged.
    """
    store = Store.existing(Path(results), EVERYTHING, note=lambda text: warnings.warn(text, stacklevel=2))
    return load_trained(store, find_cell(store.plans(), cell), policy)


def load_results(path: str | Path, suite: str | None = None) -> LoadedResults:
    """Open a results folder, or an archive of one.

    Args:
        path: the folder.
        suite: only this suite; ``None``: all that ran or were imported there.

    Raises:
        UserError: there are no results, or no such suite.

    Warns:
        UserWarning: something is damaged, and left out.
    """
    results = open_results(Path(path), note=lambda text: warnings.warn(text, stacklevel=2))
    return LoadedResults(results, chosen_plans(results, suite))


def leaderboard(results: str | Path | LoadedResults, suite: str | None = None) -> pd.DataFrame:
    """The rows of ``lspc-bench leaderboard --format csv``: of all tasks together (an empty task), then of each.

    Args:
        results: what :func:`load_results` gives, or the folder.
        suite: only this suite.

    Raises:
        UserError: there are no results, or no such suite.
    """
    if not isinstance(results, LoadedResults):
        results = load_results(results, suite)
    elif suite is not None:
        if suite not in (names := [plan.suite for plan in results.plans]):
            raise UserError(f"no suite {suite!r} was loaded, only {', '.join(names)}.{nearest(suite, names)}")
        results = LoadedResults(results.results, [plan for plan in results.plans if plan.suite == suite])
    boards = [make_leaderboard(results.results, plan) for plan in results.plans]
    return pd.DataFrame(to_records(boards)).astype({"rank": "Int64", "seeds": "Int64"})
