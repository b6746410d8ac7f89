"""What a suite runs: its plan, the cells of which that is made, and the jobs in which they are trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from harness import registry
from harness.data.dataset import LABELS, Dataset, Source, dataset_path, load_dataset
from harness.data.filters import Filters, apply
from harness.errors import UserError
from harness.guard import guard
from harness.suite import Evaluation, Origin, TimeLimits
from harness.tasks import Task, find_task

if TYPE_CHECKING:
    from harness.algorithm import Hyperparameters, Replica

JUDGED_BY = {f"{end}_episode_{what}" for end in ("min", "max") for what in ("reward", "cost")} | {"cost_limits"}
"""What of an own task only matters when results are read."""
LATER = ("arguments", "code")
"""What own tasks did not have at first: no part of a cell's hash where it is empty."""

MOST_CELLS = 50_000
"""Of a suite: an hour of planning at most, and more than anyone runs."""
MARK = " [imported]"
"""Ends the name of every row of results that were not made here, and of no other."""

# Raised when what a cell's results contain changes, so that older ones are not reused.
SCHEMA = 5


class CellData(BaseModel):
    """The data that a cell is trained on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Source | Literal["unknown"] = "dsrl"
    """``unknown`` where the results are imported."""
    file: str | None = None
    """Where a file of the user's lies; no part of the cell's hash, as what it holds is."""
    sha256: str | None = None
    """What a file of the user's holds."""
    label: str | None = None
    """Of ``LABELS``, what a file of the user's says that it is; no part of the cell's hash, as what it holds is.
    ``None`` in plans from before it was kept, too."""
    filters: Filters = Filters()
    holdout: float = 0.0
    """The share of the filtered data's trajectories that nothing is trained on."""
    holdout_seed: int = 0

    @property
    def name(self) -> str:
        """For people, whose data it is: ``DSRL``, or ``own file my.hdf5``, with the label that it has."""
        if self.file:
            return f"own file {Path(self.file).name}" + (f", {self.label}" if self.label else "")
        names = {**LABELS, "unknown": "not known, as the results are imported"}
        return names[self.source]

    def describe(self) -> str:
        """For people: ``DSRL``, or ``own file my.hdf5, filtered: noise 0.1, seed 1234``."""
        filtered = f", filtered: {self.filters.describe()}" if self.filters.active else ""
        held_out = f", {100 * self.holdout:g}% of trajectories held out" if self.holdout else ""
        return self.name + filtered + held_out

    def path(self, task: Task) -> Path | None:
        """Where its file is looked for; ``None`` where that is not known."""
        if self.file is not None:
            return Path(self.file)
        return None if self.source == "own" or self.source == "unknown" else dataset_path(task, self.source)

    def load(self, task: Task) -> tuple[Dataset, Dataset | None]:
        """Read, check, filter and split it.

        Returns:
            What is trained on, and what is held out, if anything is.

        Raises:
            UserError: something is wrong with the file, it changed since it was planned, a filter finds nothing, or
                there are too few trajectories to hold any out.
        """
        if self.source == "unknown":
            raise UserError("what imported results were trained on is not known")
        dataset = load_dataset(task, self.source, Path(self.file) if self.file else None)
        if self.sha256 not in (None, dataset.sha256):
            raise UserError("it has changed since the suite was planned; run the suite again", where=str(dataset.path))
        dataset = apply(self.filters, dataset)
        return dataset.split(self.holdout, self.holdout_seed) if self.holdout else (dataset, None)


class Imported(BaseModel):
    """Where results come from that were not made here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: str
    """What the source calls it."""
    content: str = ""
    """SHA-256 of the cell's episodes; empty where the source has none, but has some of this policy elsewhere."""
    file: str = ""
    """The source's name; no part of the cell's hash, like the next."""
    sha256: str = ""
    """Of the source."""


class Cell(BaseModel):
    """One line of the experiment's grid, with everything that determines its results. Its hash names them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA
    task: str
    own_task: Task | None = None
    """The task itself, where it is none of DSRL's."""
    algorithm: str
    algorithm_version: int
    hyperparameters: dict[str, Any]
    seed: int
    cost_limit: float | None
    """The limit that training aims at; ``None`` where it ignores the limit."""
    evaluation_limits: tuple[float, ...]
    """The limits at which its policies are evaluated."""
    told_limit: bool = False
    """Whether the policies act on the limit, so that each limit needs roll-outs of its own."""
    evaluation: Evaluation
    data: CellData
    imported: Imported | None = None
    """Where its results come from, if they were not made here."""

    @cached_property
    def hash(self) -> str:
        """16 hexadecimal digits of the content's SHA-256.

        Limits by which results are only judged, when they are read, are no part of it: others need no new run. Nor are
        settings of data and evaluation at their defaults, so that a new setting leaves old results their names.
        """
        return self._digest(*(() if self.told_limit else ("evaluation_limits",)))

    @cached_property
    def group(self) -> str:
        """Equal for cells that may train side by side: all but seed and limits is the same."""
        return self._digest("seed", "cost_limit", "evaluation_limits")

    def _digest(self, *excluded: str) -> str:
        ignored = JUDGED_BY | {"folder"} | {name for name in LATER if not getattr(self.own_task, name, None)}
        without: Any = {"data": True, "evaluation": True, "own_task": ignored, **dict.fromkeys(excluded, True)}
        without["imported"] = {"file", "sha256"} if self.imported else True
        content = self.model_dump(mode="json", exclude=without)
        content["data"] = self.data.model_dump(mode="json", exclude={"file", "label"}, exclude_defaults=True)
        content["evaluation"] = self.evaluation.model_dump(mode="json", exclude_defaults=True)
        return _digest(content)

    @property
    def definition(self) -> Task:
        """The task."""
        return self.own_task or find_task(self.task)

    @property
    def config(self) -> Hyperparameters:
        """The hyperparameters as the algorithm's own model."""
        if self.imported:
            raise UserError(f"{self.describe(self.imported.policy)} was imported: no algorithm here stands behind it")
        algorithm = registry.load(self.algorithm)
        with guard(registry.named(self.algorithm), "Hyperparameters"):
            return algorithm.Hyperparameters.model_validate(self.hyperparameters)

    @property
    def replica(self) -> Replica:
        """The agent that this cell trains.

        Its random numbers depend on task, algorithm, seed and training limit, not on hyperparameters or evaluation:
        settings are compared on the same draws.
        """
        from harness.algorithm import Replica  # slow to import: torch comes with it

        return Replica(self.seed, self.cost_limit, f"{self.task}|{self.algorithm}")

    def describe(self, name: str = "") -> str:
        """For people: ``BallRun bc seed 0 limit 10``, or with another name in the algorithm's place."""
        limit = "" if self.cost_limit is None else f" limit {self.cost_limit:g}"
        return f"{self.definition.name} {name or self.algorithm} seed {self.seed}{limit}"


class PlannedCell(BaseModel):
    """A cell, and what the suite calls its rows in tables."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cell: Cell
    label: str
    """The algorithm's label in the suite, with the point of its grid and of the data's."""
    rows: dict[str, str]
    """Row names of the leaderboard by policy."""


class Plan(BaseModel):
    """Everything that a suite runs. It is stored beside the results, which it alone can tell complete or not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: str
    description: str
    cells: list[PlannedCell]
    origin: Origin | None = None
    """``None`` where an older version wrote the plan."""
    time_limits: TimeLimits = TimeLimits()
    track: tuple[str, ...] = ()
    """The suite's trackers; results do not depend on them."""

    @cached_property
    def imported(self) -> frozenset[str]:
        """The rows of results that were not made here."""
        return frozenset(row for planned in self.cells if planned.cell.imported for row in planned.rows.values())

    @cached_property
    def sources(self) -> list[tuple[str, str]]:
        """The files that imported results come from, each with its SHA-256, once each."""
        origins = [planned.cell.imported for planned in self.cells if planned.cell.imported]
        return list(dict.fromkeys((one.file, one.sha256) for one in origins if one.content))

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """The tasks by id, in order."""
        return {planned.cell.task: planned.cell.definition for planned in self.cells}

    @cached_property
    def limits(self) -> dict[str, tuple[float, ...]]:
        """The limits at which each task's policies are evaluated, the tightest first."""
        found: dict[str, set[float]] = {}
        for planned in self.cells:
            found.setdefault(planned.cell.task, set()).update(planned.cell.evaluation_limits)
        return {task: tuple(sorted(limits)) for task, limits in found.items()}

    @cached_property
    def data(self) -> dict[str, list[CellData]]:
        """What each task's cells are trained on, once each."""
        data: dict[str, dict[CellData, None]] = {}
        for planned in self.cells:
            data.setdefault(planned.cell.task, {})[planned.cell.data] = None
        return {task: list(used) for task, used in data.items()}

    def of(self, cells: Sequence[PlannedCell]) -> Plan:
        """The suite with other cells."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in Plan.model_fields}
        return Plan(**fields | {"cells": list(cells)})

    def only(self, beginnings: Sequence[str]) -> Plan:
        """The plan of certain cells, in its own order; the whole plan for none.

        Args:
            beginnings: of the cells' hashes, each of one cell alone.

        Raises:
            UserError: one is of no cell, or of several.
        """
        chosen = set()
        for beginning in beginnings:
            found = [planned.cell for planned in self.cells if planned.cell.hash.startswith(beginning.lower())]
            if not found:
                raise UserError(
                    f"suite {self.suite} has no cell {beginning!r} with these settings; --dry-run lists its cells"
                )
            if len(found) > 1:
                some = ", ".join(f"{cell.hash} ({cell.describe()})" for cell in found[:3])
                raise UserError(f"{len(found)} cells of suite {self.suite} begin with {beginning!r}: {some}, ...")
            chosen.add(found[0].hash)
        if not chosen:
            return self
        cells = [one for one in self.cells if one.cell.hash in chosen]
        return self.of(cells)


class Job(BaseModel):
    """Cells that train side by side, as replicas of one group."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cells: tuple[Cell, ...]

    @cached_property
    def id(self) -> str:
        """Names the job's checkpoint."""
        return _digest([cell.hash for cell in self.cells])

    @property
    def group(self) -> str:
        """Of the cells: what a worker claims."""
        return self.cells[0].group

    @property
    def task(self) -> Task:
        """The task of every cell."""
        return self.cells[0].definition

    @property
    def algorithm(self) -> str:
        """The algorithm of every cell."""
        return self.cells[0].algorithm

    def describe(self) -> str:
        """For people: ``BallRun bc (bc-safe), 3 replicas``."""
        count = f"{len(self.cells)} replicas" if len(self.cells) > 1 else "1 replica"
        policies = registry.load(self.algorithm).policy_names(self.cells[0].config)
        return f"{self.task.name} {self.algorithm} ({', '.join(policies)}), {count}"


def grouped(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """Cells by the group that they belong to, in their order."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.group, []).append(cell)
    return groups


def make_jobs(cells: Iterable[Cell]) -> list[Job]:
    """Group cells that may train side by side, in the cells' order, at most ``max_replicas`` to a job."""
    jobs = []
    for group in grouped(cells).values():
        size = registry.load(group[0].algorithm).max_replicas or len(group)
        jobs += [Job(cells=tuple(group[start : start + size])) for start in range(0, len(group), size)]
    return jobs


def expected_episodes(job: Job) -> int:
    """Episodes that the job's cells are evaluated on, from the first step to the last."""
    config, evaluation = job.cells[0].config, job.cells[0].evaluation
    points = (config.steps - 1) // evaluation.every if evaluation.every else 0
    per_policy = points * evaluation.episodes + evaluation.final
    policies = len(registry.load(job.algorithm).policy_names(config))
    return sum(len(cell.evaluation_limits) if cell.told_limit else 1 for cell in job.cells) * policies * per_policy


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
