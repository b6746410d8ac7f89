"""What is sent to trackers (:mod:`harness.trackers`): every number that a cell's results hold as a mean, as it comes.

Live and afterwards, from the results, the same rows are sent. Each tracker runs in a process of its own, which training
only hands rows to: a tracker that raises, hangs or ends its process is told of once and left out from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

from harness.guard import UserCodeError
from harness.notes import Note
from harness.plan import Cell, Plan, PlannedCell
from harness.pool import Pool
from harness.store import Results, Status
from harness.tasks import normalize_cost
from harness.trackers import Run
from harness.trackers.process import apart, call

PATIENCE = 300.0
"""Seconds that a tracker may take for a few rows, and at the end of a run for all that is left."""
FOLDER = "trackers"
"""In the results folder, where trackers may write."""

Values = dict[str, float]
Point = tuple[int, Values]
"""A step, and numbers of that step by name."""
Call = tuple[Any, ...]
"""A method of a tracker, and its arguments."""


# Rows


def metrics(row: Mapping[str, Any]) -> Point:
    """One row of a cell's training metrics, as results hold it."""
    return int(row["step"]), {f"train/{name}": float(value) for name, value in row.items() if name != "step"}


def evaluations(cell: Cell, episodes: Iterable[Mapping[str, Any]]) -> Iterator[Point]:
    """The means over the episodes of each evaluation, whose episodes come in order."""
    for (step, policy, limit), rows in _together(episodes).items():
        at = f"evaluation/{policy}" + ("" if limit is None else f"/limit_{limit:g}")
        episode_return, cost, length = (_mean(rows, column) for column in ("episode_return", "cost", "length"))
        values = {
            f"{at}/return": episode_return,
            f"{at}/normalized_return": float(cell.definition.normalize_reward(episode_return)),
            f"{at}/cost": cost,
            f"{at}/length": length,
        }
        for judged in cell.evaluation_limits if limit is None else (limit,):
            values[f"evaluation/{policy}/limit_{judged:g}/normalized_cost"] = float(normalize_cost(cost, judged))
        yield step, values


def diagnostics(rows: Iterable[Mapping[str, Any]]) -> Iterator[Point]:
    """What was measured by the data alone, a number a row (:data:`harness.store.DIAGNOSTICS`)."""
    for (step, policy, limit), found in _together(rows).items():
        parts = ["diagnostics", *([policy] if policy else []), *([] if limit is None else [f"limit_{limit:g}"])]
        yield step, {"/".join([*parts, row["metric"]]): float(row["value"]) for row in found}


def _together(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[int, str, float | None], list[Mapping[str, Any]]]:
    """Rows by step, policy and limit; where there is no limit, data frames hold NaN."""
    found: dict[tuple[int, str, float | None], list[Mapping[str, Any]]] = {}
    for row in rows:
        limit = row.get("cost_limit")
        limit = None if limit is None or limit != limit else float(limit)
        found.setdefault((int(row["step"]), row.get("policy", ""), limit), []).append(row)
    return found


def _mean(rows: Sequence[Mapping[str, Any]], column: str) -> float:
    return sum(float(row[column]) for row in rows) / len(rows)


def runs(plan: Plan) -> dict[str, list[Run]]:
    """What trackers call a plan's cells, by the cell's hash; a cell under two labels is two runs."""
    found: dict[str, list[Run]] = {}
    for planned in plan.cells:
        found.setdefault(planned.cell.hash, []).append(_run(plan.suite, planned))
    return found


def _run(suite: str, planned: PlannedCell) -> Run:
    cell = planned.cell
    about = {
        "seed": cell.seed,
        "cost_limit": cell.cost_limit,
        "evaluation_limits": list(cell.evaluation_limits),
        "algorithm_name": cell.algorithm,
        "algorithm_version": cell.algorithm_version,
        "data": cell.data.describe(),
        "hyperparameters": cell.model_dump(mode="json", include={"hyperparameters"})["hyperparameters"],
    }
    digest = sha256("\n".join([suite, planned.label, cell.hash]).encode()).hexdigest()[:16]
    return Run(digest, suite, cell.definition.name, planned.label, cell.hash, cell.seed, cell.cost_limit, about)


# Sending


class Tracking:
    """Sends what happens to the cells of a plan to trackers.

    Args:
        runs: what trackers call the cells, see :func:`runs`; of others nothing is sent.
        senders: to the trackers.
    """

    def __init__(self, runs: Mapping[str, Sequence[Run]], senders: Sequence[Sender]) -> None:
        self._runs, self._senders = runs if senders else {}, senders
        self._final: dict[str, Point] = {}
        """The last evaluation of each cell that has begun and not ended."""

    def begin(
        self,
        cell: Cell,
        curve: Iterable[Mapping[str, Any]] = (),
        episodes: Iterable[Mapping[str, Any]] = (),
        diagnosed: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        """A cell begins, or goes on: with what there is of it already, as its results will hold it."""
        if cell.hash not in self._runs:
            return
        self._final[cell.hash] = (0, {})
        self._send(cell, lambda run: [("begin", run)])
        self._log(cell, map(metrics, curve))
        self.evaluated(cell, episodes)
        self.diagnosed(cell, diagnosed)

    def trained(self, cell: Cell, row: Mapping[str, Any]) -> None:
        """A row of training metrics is there."""
        if cell.hash in self._final:
            self._log(cell, [metrics(row)])

    def evaluated(self, cell: Cell, episodes: Iterable[Mapping[str, Any]]) -> None:
        """Evaluations are back, all episodes of each."""
        if cell.hash in self._final:
            points = list(evaluations(cell, episodes))
            for step, values in points:
                last, held = self._final[cell.hash]
                if step >= last:
                    self._final[cell.hash] = (step, {**(held if step == last else {}), **values})
            self._log(cell, points)

    def diagnosed(self, cell: Cell, rows: Iterable[Mapping[str, Any]]) -> None:
        """Something was measured by the data alone."""
        if cell.hash in self._final:
            self._log(cell, diagnostics(rows))

    def end(self, cell: Cell, status: Status) -> None:
        """A cell is over, for this time."""
        if cell.hash not in self._runs:
            return
        if cell.hash not in self._final:
            self.begin(cell)
        _, last = self._final.pop(cell.hash)
        final: dict[str, float | str] = {"state": status.state}
        if status.brief:
            final["reason"] = status.brief
        if status.state == "done":
            final |= {name.replace("evaluation/", "final/", 1): value for name, value in last.items()}
        self._send(cell, lambda run: [("end", run, final)])

    def settle(self) -> None:
        """Wait until all that was sent is taken in."""
        for sender in self._senders:
            sender.settle()

    def _log(self, cell: Cell, points: Iterable[Point]) -> None:
        points = list(points)
        self._send(cell, lambda run: [("log", run, step, values) for step, values in points])

    def _send(self, cell: Cell, calls: Callable[[Run], list[Call]]) -> None:
        found = [call for run in self._runs[cell.hash] for call in calls(run)]
        for sender in self._senders if found else ():
            sender.send(found)


NOWHERE = Tracking({}, ())
"""Where nobody tracks."""


def folder_of(results: Path, name: str) -> Path:
    """Where a tracker of a results folder may write."""
    return results / FOLDER / name.replace(":", ".")


class Sender:
    """A tracker in a process of its own, begun when there is something to send, and what is said of it if it fails.

    Args:
        name: of the tracker, as ``--track`` has it.
        results: the results folder.
        note: is told why it failed, once.
    """

    def __init__(self, name: str, results: Path, note: Note) -> None:
        self.name, self._note = name, note
        self._pool = Pool(1, start=apart)
        self._last: Future[None] | None = None
        self._reason = ""
        self.failed = False
        self._made: Call = ("__init__", name, str(folder_of(results, name).absolute()))

    def send(self, calls: Sequence[Call]) -> None:
        """Hand over calls of the tracker; they are made later, in this order."""
        if self._reason and not self.failed:
            self._fail()
        if not self.failed:
            first = [self._made] if self._last is None else []
            self._last = self._pool.submit(call, [*first, *calls], seconds=PATIENCE, tries=1)
            self._last.add_done_callback(self._done)

    def _done(self, future: Future[None]) -> None:
        """Runs in the pool's thread."""
        try:
            error = future.exception()
        except CancelledError:
            return
        if error is not None and not self._reason:
            self._reason = error.reason if isinstance(error, UserCodeError) else str(error)

    def _fail(self) -> None:
        self.failed = True
        self._pool.close(at_once=True)
        self._note(f"the tracker {self.name} failed and is left out from here on: {self._reason}")

    def settle(self) -> None:
        """Wait until all that was sent is taken in."""
        if self._last is not None:
            wait_for([self._last])

    def finish(self) -> None:
        """Wait until the tracker has taken in everything, for :data:`PATIENCE` at most."""
        if self._last is not None:
            self.send([("close",)])
        if self._last is not None and not self.failed:
            if not wait_for([self._last], PATIENCE).done and not self._reason:
                self._reason = f"at the end it did not take in all that was left within {PATIENCE:g} s"
            self.stop()
            if self._reason:
                self._fail()

    def stop(self) -> None:
        """End its process."""
        self._pool.close(at_once=bool(self._reason))


@contextmanager
def tracking(plan: Plan, names: Iterable[str], results: Path, note: Note) -> Iterator[Tracking]:
    """Trackers for the length of a run.

    Args:
        plan: whose cells are run.
        names: of the trackers, which can be had (:func:`harness.trackers.require`).
        results: the results folder.
        note: is told of each tracker that fails, once.
    """
    senders: list[Sender] = []
    try:
        senders.extend(Sender(name, results, note) for name in dict.fromkeys(names))
        yield Tracking(runs(plan), senders) if senders else NOWHERE
        for sender in senders:
            sender.finish()
    finally:
        for sender in senders:
            sender.stop()


def send_results(results: Results, plan: Plan, tracked: Tracking, note: Note) -> int:
    """Send all that is stored of a plan's finished cells, and how the others that have ended stand.

    Args:
        results: where they are.
        plan: whose cells.
        tracked: to where.
        note: is told of cells that are damaged, of which nothing is sent.

    Returns:
        How many cells were sent.
    """
    count = 0
    for cell in {planned.cell.hash: planned.cell for planned in plan.cells}.values():
        status = results.status(cell)
        if status.state == "damaged":
            note(f"{cell.describe()}: {status.reason}")
        if status.state == "done":
            frames = (results.training(cell), results.episodes(cell), results.diagnostics(cell))
            curve, episodes, diagnosed = (cast("list[dict[str, Any]]", frame.to_dict("records")) for frame in frames)
            tracked.begin(cell, curve, episodes, diagnosed)
        if status.state in ("done", "failed", "diverged"):
            tracked.end(cell, status)
            tracked.settle()
            count += 1
    return count
