"""What is to be done in a results folder, job by job, beside other workers that do the same."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from harness.claims import Claims, workers
from harness.executors.local import LocalExecutor, Progress, resume
from harness.forecast import find_measurement, forecast
from harness.options import Options
from harness.plan import Cell, Job, grouped, make_jobs
from harness.pool import Submitting
from harness.store import Status, Store
from harness.suite import TimeLimits
from harness.tracking import NOWHERE, Tracking
from harness.trained import is_trained

PATIENCE = 1.0
"""Seconds between two looks at what other workers have."""

LOOKS = 2
"""After so many at which nobody trains, one that only evaluates ends: between two groups a worker has none."""

Overwrite = Literal["only-missing", "always", "never"]
LEFT = {
    "only-missing": ("done",),
    "always": (),
    "never": ("done", "trained", "failed", "diverged", "running", "damaged"),
}
"""The states in which a cell is left as it is."""


def open_cells(store: Store, cells: Iterable[Cell], overwrite: Overwrite, no_evaluation: bool = False) -> list[Cell]:
    """The cells that are to be run; what is damaged is said.

    Args:
        store: where they are.
        cells: that are wanted.
        overwrite: which of them are run.
        no_evaluation: whether one that is trained is left as it is, too, if its policies are there.
    """
    found = {cell.hash: (cell, store.status(cell)) for cell in cells}
    kept = store.checkpointed_groups() if no_evaluation and overwrite == "only-missing" else set()
    for cell, status in found.values():
        if status.state == "damaged":
            store.note(f"{cell.describe()}: {status.reason}")
    return [
        cell
        for cell, status in found.values()
        if status.state not in LEFT[overwrite] and not (status.state == "trained" and cell.group in kept)
    ]


@dataclass(frozen=True)
class Backlog:
    """What was to be done when a run began; the same for all of its workers, whenever they start.

    Args:
        cells: that were to be run, in the order in which groups of them are to be taken.
        before: what :meth:`harness.store.Store.written` said of them, by hash.
        ended: groups with cells of which none was to be run.
        fresh: whether what there is of the cells is not to be used.
    """

    cells: tuple[Cell, ...]
    before: Mapping[str, tuple[int, int] | None]
    ended: frozenset[str]
    fresh: bool

    @classmethod
    def of(cls, store: Store, cells: Iterable[Cell], overwrite: Overwrite, options: Options) -> Backlog:
        """What is to be done now, the longest group first."""
        wanted = list(cells)
        before = {cell.hash: store.written(cell) for cell in wanted}  # first: another may end one at any moment
        pending = longest_first(open_cells(store, wanted, overwrite, options.no_evaluation), options)
        ended = {cell.group for cell in wanted} - {cell.group for cell in pending}
        return cls(
            tuple(pending), {cell.hash: before[cell.hash] for cell in pending}, frozenset(ended), overwrite == "always"
        )

    @property
    def groups(self) -> dict[str, list[Cell]]:
        """The cells by the group that they belong to."""
        return grouped(self.cells)


def longest_first(cells: Iterable[Cell], options: Options) -> list[Cell]:
    """Cells group by group, the groups that take longest first, so that no long one is left to the last worker.

    Groups of which nobody knows how long they take come before those, as they stand: each of them may be the longest.
    Where nothing is known the order stays. It is known where ``benchmarks/throughput.py`` measured this machine.
    """
    cells = list(cells)
    groups, measured = grouped(cells), find_measurement(options.device)
    if measured is None or len(groups) < 2:
        return cells
    expected = {group: forecast(make_jobs(groups[group]), measured, options.processes) for group in groups}
    if not any(one.jobs for one in expected.values()):
        return cells
    seconds = {group: one.wall_seconds if one.jobs else math.inf for group, one in expected.items()}
    return [cell for group in sorted(groups, key=seconds.__getitem__, reverse=True) for cell in groups[group]]


class Work:
    """Jobs to run, each claimed before it is given and to be given back with :meth:`over`.

    A cell that another worker has ended since the run began is not run again, and so a failure is tried again once.

    Args:
        store: the results, prepared; its claims are set.
        claims: of this worker.
        backlog: what is to be run.
        wait: whether to wait for what others have, in case that they die.
        options: of the run: whether it trains and evaluates.
        has: is told which groups this worker has, whenever these change.
    """

    def __init__(
        self,
        store: Store,
        claims: Claims,
        backlog: Backlog,
        wait: bool = True,
        options: Options | None = None,
        has: Callable[[Iterable[str]], None] = lambda groups: None,
    ) -> None:
        self.store, self.claims, self.backlog, self.wait, self._has = store, claims, backlog, wait, has
        self.options = options or Options()
        self._unended = {"missing", "running", "damaged"} | (set() if self.options.no_evaluation else {"trained"})

    def __iter__(self) -> Iterator[list[Job]]:
        """The jobs of one group after the other; none while others have all that is left."""
        groups = self.backlog.groups
        self._tidy(self.backlog.ended)
        alone = 0
        while groups and alone < LOOKS:
            looked, given = time.monotonic(), False
            kept = self.store.checkpointed_groups() if self.options.only_evaluation else groups.keys()
            for group in list(groups):
                if not any(map(self._open, groups[group])):
                    del groups[group]
                elif group not in kept:
                    continue  # somebody may train it
                elif self.claims.acquire(group):
                    cells = [cell for cell in groups.pop(group) if self._open(cell)]  # seen by nobody else now
                    if self.backlog.fresh:
                        self._forget(group, cells)
                    jobs = resume(self.store, cells, group)
                    if self.options.only_evaluation:
                        jobs = [job for job in jobs if is_trained(self.store.read_checkpoint(job))]
                    if jobs:
                        given = True
                        self._has(self.claims.held)
                        yield jobs
                    else:
                        self.over(group)
            if groups and not self.wait:
                return
            if self.options.only_evaluation:
                alone = 0 if given or self._others_have(groups) else alone + 1
            while groups and not given and time.monotonic() - looked < PATIENCE:
                yield []

    def _others_have(self, groups: Collection[str]) -> bool:
        """Whether another worker has one of these groups."""
        others = (worker for worker in workers(self.store.root) if worker.name != self.claims.name)
        return any(group in groups for worker in others for group in worker.claims)

    def over(self, group: str) -> None:
        """Give a group of cells back."""
        self.claims.release(group)
        self._has(self.claims.held)

    def _tidy(self, ended: frozenset[str]) -> None:
        """Remove the checkpoints of groups that were killed between their last result and the removal."""
        for group in sorted(ended & self.store.checkpointed_groups()):
            if self.claims.acquire(group):
                resume(self.store, [], group)
                self.over(group)

    def _open(self, cell: Cell) -> bool:
        """Whether a cell is still to be run."""
        if self.store.status(cell).state in self._unended:
            return True
        return self.store.written(cell) == self.backlog.before[cell.hash]  # or else another worker has ended it since

    def _forget(self, group: str, cells: Iterable[Cell]) -> None:
        """Run cells afresh, as if nothing had been there."""
        chosen = {cell.hash for cell in cells}
        for job in self.store.unfinished_jobs(group):
            if any(cell.hash in chosen for cell in job.cells):
                self.store.remove_checkpoint(job)
        for cell in cells:
            self.store.forget(cell)


def take_part(
    store: Store,
    backlog: Backlog,
    progress: Progress,
    options: Options,
    time_limits: TimeLimits,
    wait: bool = True,
    pool: Submitting | None = None,
    has: Callable[[Iterable[str]], None] = lambda groups: None,
    tracking: Tracking = NOWHERE,
) -> dict[str, Status]:
    """Be one of the workers that run a backlog, in this process, until nothing of it is left.

    Args:
        store: the results, prepared.
        backlog: what is to be run.
        progress: who is told how it goes.
        options: with a device that is there.
        time_limits: of episodes and of training.
        wait: for what others have, in case that they die.
        pool: of evaluation processes that are there already; ``None``: its own.
        has: is told which groups of cells it has, whenever these change.
        tracking: is told what results will hold, as it comes.

    Returns:
        How each cell ended that this worker ended, by its hash.

    Raises:
        Interrupted: the user asked to stop, or the time is up.
        ResultsError: results cannot be written.
    """
    executor = LocalExecutor(store, progress, options, time_limits, pool, tracking)
    with Claims(store.root) as claims:
        store.claims = claims
        try:
            work = Work(store, claims, backlog, wait, options, has)
            return executor.run(work, work.over)
        finally:
            store.claims = None
