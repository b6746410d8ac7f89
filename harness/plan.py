"""From a suite to cells, and from cells to jobs."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from harness import registry
from harness.algorithm import Hyperparameters, Replica
from harness.data.dataset import Dataset, Source, load_dataset, require_file, sizes
from harness.data.filters import Filters, apply
from harness.errors import UserError, nearest
from harness.files import file_sha256
from harness.guard import TookTooLong, UserCodeError, guard, within
from harness.simulators import require_simulator
from harness.suite import Data, Evaluation, SuiteFile
from harness.tasks import FAMILIES, Task, all_names, all_tasks, find_task, matches, select_tasks

if TYPE_CHECKING:
    from harness.algorithm import Algorithm

FILES = ("data", "files")
"""Where a suite names own files."""
JUDGED_BY = {f"{end}_episode_{what}" for end in ("min", "max") for what in ("reward", "cost")} | {"cost_limits"}
"""What of an own task only matters when results are read."""
LATER = ("arguments", "code")
"""What own tasks did not have at first: no part of a cell's hash where it is empty."""

MOST_POINTS, MOST_CELLS = 10_000, 50_000
"""Of a grid; of a suite: an hour of planning at most, and more than anyone runs."""
OWN_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
"""What an own task may be called."""

# Raised when what a cell's results contain changes, so that older ones are not reused.
SCHEMA = 5


class CellData(BaseModel):
    """The data that a cell is trained on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Source = "dsrl"
    file: str | None = None
    """Where a file of the user's lies; no part of the cell's hash, as what it holds is."""
    sha256: str | None = None
    """What a file of the user's holds."""
    filters: Filters = Filters()
    holdout: float = 0.0
    """The share of the filtered data's trajectories that nothing is trained on."""
    holdout_seed: int = 0

    @property
    def name(self) -> str:
        """For people, whose data it is: ``DSRL``, or ``own file my.hdf5``."""
        names = {"dsrl": "DSRL", "agents": "agent-collected data, not DSRL", "demo": "demo data, not DSRL"}
        return f"own file {Path(self.file).name}" if self.file else names[self.source]

    def describe(self) -> str:
        """For people: ``DSRL``, or ``own file my.hdf5, filtered: noise 0.1, seed 1234``."""
        filtered = f", filtered: {self.filters.describe()}" if self.filters.active else ""
        held_out = f", {100 * self.holdout:g}% of trajectories held out" if self.holdout else ""
        return self.name + filtered + held_out

    def load(self, task: Task) -> tuple[Dataset, Dataset | None]:
        """Read, check, filter and split it.

        Returns:
            What is trained on, and what is held out, if anything is.

        Raises:
            UserError: something is wrong with the file, it changed since it was planned, a filter finds nothing, or
                there are too few trajectories to hold any out.
        """
        dataset = load_dataset(task, self.source, Path(self.file) if self.file else None)
        if self.sha256 not in (None, dataset.sha256):
            raise UserError("it has changed since the suite was planned; run the suite again", where=str(dataset.path))
        dataset = apply(self.filters, dataset)
        return dataset.split(self.holdout, self.holdout_seed) if self.holdout else (dataset, None)


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
        content = self.model_dump(mode="json", exclude=without)
        content["data"] = self.data.model_dump(mode="json", exclude={"file"}, exclude_defaults=True)
        content["evaluation"] = self.evaluation.model_dump(mode="json", exclude_defaults=True)
        return _digest(content)

    @property
    def definition(self) -> Task:
        """The task."""
        return self.own_task or find_task(self.task)

    @property
    def config(self) -> Hyperparameters:
        """The hyperparameters as the algorithm's own model."""
        algorithm = registry.load(self.algorithm)
        with guard(registry.named(self.algorithm), "Hyperparameters"):
            return algorithm.Hyperparameters.model_validate(self.hyperparameters)

    @property
    def replica(self) -> Replica:
        """The agent that this cell trains.

        Its random numbers depend on task, algorithm, seed and training limit, not on hyperparameters or evaluation:
        settings are compared on the same draws.
        """
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

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """The tasks by id, in order."""
        return {planned.cell.task: planned.cell.definition for planned in self.cells}

    @cached_property
    def data(self) -> dict[str, list[CellData]]:
        """What each task's cells are trained on, once each."""
        data: dict[str, dict[CellData, None]] = {}
        for planned in self.cells:
            data.setdefault(planned.cell.task, {})[planned.cell.data] = None
        return {task: list(used) for task, used in data.items()}

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
        return Plan(suite=self.suite, description=self.description, cells=cells)


class Job(BaseModel):
    """Cells that train side by side, as replicas of one group."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cells: tuple[Cell, ...]

    @cached_property
    def id(self) -> str:
        """Names the job's checkpoint."""
        return _digest([cell.hash for cell in self.cells])

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


def make_plan(file: SuiteFile) -> Plan:
    """The cells of a suite, in a stable order: by task, algorithm, grid point, point of the data's grid, limit, seed.

    Raises:
        UserError: a task, algorithm or hyperparameter is unknown or wrong.
    """
    suite = file.suite
    own = _own_tasks(file)
    tasks = _tasks(file, own)
    data = {task.id: _data(file, task) for task in tasks}
    planned: list[_Named] = []
    for task in tasks:
        for label in suite.algorithms:
            try:
                planned += _cells(file, label, task, own, data[task.id], MOST_CELLS - len(planned))
            except UserCodeError as error:
                raise file.error(str(error), "algorithms", label) from error
    return Plan(suite=suite.name, description=suite.description, cells=_with_rows(file, planned))


def _cells(
    file: SuiteFile, label: str, task: Task, own: Sequence[Task], data: Sequence[tuple[CellData, _Point]], most: int
) -> Iterator[_Named]:
    """The cells of one label on one task; more than ``most`` are refused."""
    suite, entry = file.suite, file.suite.algorithms[label]
    count = 0
    for settings, point in _settings(file, label, task, own):
        algorithm = registry.load(entry.algorithm or label)
        config = _validate(file, label, task, algorithm, settings)
        limits = tuple(suite.cost_limits or task.cost_limits)
        trained_for = limits if algorithm.depends_on_cost_limit(config) else (None,)
        count += len(data) * len(trained_for) * len(suite.seeds)
        if count > most:
            raise file.error(f"the suite has more than {MOST_CELLS} cells", "algorithms", label)
        for (used, data_point), limit, seed in itertools.product(data, trained_for, suite.seeds):
            cell = Cell(
                task=task.id,
                own_task=task if task.family == "own" else None,
                algorithm=entry.algorithm or label,
                algorithm_version=algorithm.version,
                hyperparameters=config.model_dump(mode="json"),
                seed=seed,
                cost_limit=limit,
                evaluation_limits=limits if limit is None else (limit,),
                told_limit=algorithm.acts_on_cost_limit(config),
                evaluation=suite.evaluation,
                data=used,
            )
            yield _Named(cell, label, point, data_point, algorithm.policy_names(config))


def _tasks(file: SuiteFile, own: Sequence[Task]) -> list[Task]:
    """The suite's tasks, its own behind DSRL's.

    Raises:
        UserError: a pattern names none, or an own task is wrong.
    """
    known = all_names((*all_tasks().values(), *own))
    for key in file.suite.data.files:
        if key not in known:
            raise file.error(
                f"a file goes with one task, and none is called {key!r}.{nearest(key, known)}", *FILES, key
            )
    chosen: set[str] = set()
    for index, pattern in enumerate(file.suite.tasks):
        try:
            chosen |= {task.id for task in select_tasks([pattern], own)}
        except UserError as error:
            raise file.error(str(error), "tasks", index) from error
    return [_with_code(file, task) if task.family == "own" else task for task in select_tasks(chosen, own)]


def _own_tasks(file: SuiteFile) -> list[Task]:
    """All that the suite describes, run or not."""
    return [_own_task(file, name) for name in file.suite.own_tasks]


def _with_code(file: SuiteFile, task: Task) -> Task:
    from harness.simulators import own

    try:
        return replace(task, code=own.code(task))
    except UserError as error:
        raise file.error(str(error), "own_tasks", task.name, "environment") from error


def _own_task(file: SuiteFile, name: str) -> Task:
    _require_own_name(file, name)
    try:
        return _as_task(file, name, *sizes(_own_file(file, name)))
    except UserError as error:
        raise file.error(str(error), *FILES, name) from error


def task_to_collect(file: SuiteFile, name: str) -> tuple[Task, Path]:
    """An own task of a suite whose dataset may not be there yet, and where the suite looks for it.

    Raises:
        UserError: the suite has no such own task, or its environment cannot be made.
    """
    from harness.simulators.own import fill_in

    own = file.suite.own_tasks
    if name not in own:
        raise file.error(f"own_tasks has no {name!r}.{nearest(name, own)}", "own_tasks")
    _require_own_name(file, name)
    try:
        with guard(f"the environment {own[name].environment!r}", "make"):
            filled = fill_in(_as_task(file, name, 0, 0))
        return filled, _own_file(file, name)
    except (UserError, UserCodeError) as error:
        raise file.error(str(error), "own_tasks", name, "environment") from error


def tasks_to_check(file: SuiteFile, patterns: Sequence[str]) -> list[tuple[Task, Path | None]]:
    """The tasks that the patterns name, a suite's own beside DSRL's, and the file that the suite names for each.

    An own task has no sizes yet (0): its file, which may be wrong, says them.

    Raises:
        UserError: a pattern names no task, or an own task is wrong.
    """
    for name in file.suite.own_tasks:
        _require_own_name(file, name)
    own = [_as_task(file, name, 0, 0) for name in file.suite.own_tasks]
    return [
        (task, next((_own_file(file, key) for key in task.names if key in file.suite.data.files), None))
        for task in select_tasks(patterns, own)
    ]


def _require_own_name(file: SuiteFile, name: str) -> None:
    if not OWN_NAME.fullmatch(name) or name in ("all", "own", *FAMILIES):
        raise file.error(f"{name!r} cannot be a task's name: letters, digits, '_', '.', '-'", "own_tasks", name)
    if name in all_names(all_tasks().values()):
        raise file.error(f"{name!r} is a task of DSRL: call yours something else", "own_tasks", name)
    if name not in file.suite.data.files:
        raise file.error(f"which file holds the dataset of {name}? Say so under data.files", "own_tasks", name)


def _as_task(file: SuiteFile, name: str, observation_size: int, action_size: int) -> Task:
    given = file.suite.own_tasks[name]
    return Task(
        id=name,
        name=name,
        family="own",
        max_episode_steps=given.episode_length,
        observation_size=observation_size,
        action_size=action_size,
        cost_limits=tuple(given.cost_limits),
        min_episode_reward=given.reference_returns[0],
        max_episode_reward=given.reference_returns[1],
        min_episode_cost=0.0,
        max_episode_cost=max(given.cost_limits),
        dataset_file="",
        environment=given.environment,
        arguments=given.arguments,
        folder=str(file.path.parent.absolute()),
    )


def _own_file(file: SuiteFile, key: str) -> Path:
    """The path of an own file."""
    return file.folder(*FILES, key) / Path(file.suite.data.files[key]).expanduser()


def _data(file: SuiteFile, task: Task) -> list[tuple[CellData, _Point]]:
    """What a task's cells are trained on, for every point of the data's grid."""
    key = next((key for key in file.suite.data.files if key in task.names), None)
    found: dict[str, Any] = {"source": file.suite.data.source}
    if key is not None:
        path = _own_file(file, key)
        try:
            found = {"source": "own", "file": str(path), "sha256": file_sha256(path)}
        except OSError as error:
            message = f"cannot read the dataset of {task.name}, {str(path)!r}: {error.strerror}"
            raise file.error(message, *FILES, key) from error
    points = []
    for data, point in _data_points(file):
        try:
            data.filters.thinning(task)
        except UserError as error:
            raise file.error(str(error), *_data_place(file, "density")) from error
        held_out = {"holdout": data.holdout, "holdout_seed": data.holdout_seed}
        points.append((CellData(**found, filters=data.filters, **held_out), point))
    return points


def _data_points(file: SuiteFile) -> Iterator[tuple[Data, _Point]]:
    """The suite's ``data`` at every point of its grid.

    Raises:
        UserError: with the line of a key that is none, or of a value that is wrong.
    """
    data = file.suite.data
    gridded = [name for name in Data.model_fields if name not in ("source", "files", "grid")]
    for key in data.grid:
        if key not in gridded:
            message = f"the data's grid has no {key!r}.{nearest(key, gridded)} Known here: {', '.join(gridded)}"
            raise file.error(message, "data", "grid", key)
    for point in _points(file, data.grid, "data", "grid"):
        try:
            yield Data.model_validate({**data.model_dump(exclude={"grid"}), **point}), _Point.of(point)
        except ValidationError as error:
            first = error.errors()[0]
            key = str(first["loc"][0]) if first["loc"] else next(reversed(point))  # of several together
            message = f"data at {_Point.of(point).name}: {first['msg'].removeprefix('Value error, ')}"
            raise file.error(message, *_data_place(file, key)) from error


def _data_place(file: SuiteFile, key: str) -> tuple[str, ...]:
    """Where a suite sets a key of its data."""
    return ("data", "grid", key) if key in file.suite.data.grid else ("data", key)


@dataclass(frozen=True)
class _Point:
    """A point of a grid.

    Args:
        name: for people, such as ``mode=all batch_size=16``; empty without a grid.
        key: tells it from any other, also from one of the same name: 16 from "16".
    """

    name: str
    key: str

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> _Point:
        return cls(" ".join(f"{key}={value}" for key, value in settings.items()), repr(settings))


def _points(file: SuiteFile, grid: Mapping[str, Sequence[Any]], *place: str) -> Iterator[dict[str, Any]]:
    """Every combination of a grid's values.

    Raises:
        UserError: there are too many.
    """
    if (count := math.prod(map(len, grid.values()))) > MOST_POINTS:
        raise file.error(f"{'.'.join(place)}: {count} combinations, at most {MOST_POINTS} are planned", *place)
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def require_inputs(file: SuiteFile, plan: Plan, note: Callable[[str], None] = lambda _: None) -> None:
    """Refuse a plan whose datasets, simulators or packages are not there. Own environments are tried.

    Args:
        file: the suite.
        plan: what is to run of it.
        note: is told what is tried, which may take a while.

    Raises:
        UserError: says which is missing first, how many more, and how to get it.
    """
    used = {planned.cell.algorithm for planned in plan.cells}
    for label, entry in file.suite.algorithms.items():
        if (name := entry.algorithm or label) not in used:
            continue
        try:
            registry.require_packages(name)
        except (UserError, UserCodeError) as error:
            raise file.error(str(error), "algorithms", label) from error
    missing = []
    for task in plan.tasks.values():
        try:
            for source in {used.source for used in plan.data[task.id]}:
                if source != "own":
                    require_file(task, source)
            if task.family == "own":
                note(f"trying {task.environment}")
            limit = file.suite.time_limits.episode
            trial = within(limit, f"the {limit:g} s that an episode may take (time_limits.episode)")
            with trial, guard(f"the environment {task.environment!r}", "a trial"):
                require_simulator(task)
        except TookTooLong as error:
            missing.append(f"the environment {task.environment!r} in a trial {error}")
        except (UserError, UserCodeError) as error:
            missing.append(str(error))
    if missing:
        more = (
            f" ({len(missing) - 1} more of the suite's {len(plan.tasks)} tasks cannot run)" if len(missing) > 1 else ""
        )
        raise file.error(missing[0] + more, "tasks")


def make_jobs(cells: Iterable[Cell]) -> list[Job]:
    """Group cells that may train side by side, in the cells' order, at most ``max_replicas`` to a job."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.group, []).append(cell)
    jobs = []
    for group in groups.values():
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


def _settings(file: SuiteFile, label: str, task: Task, own: Sequence[Task]) -> Iterator[tuple[dict[str, Any], _Point]]:
    """What the suite sets for one label and task, for every point of the label's grid."""
    entry = file.suite.algorithms[label]
    name = entry.algorithm or label
    try:
        algorithm = registry.load(name)
    except UserError as error:
        raise file.error(str(error), "algorithms", label, *(["algorithm"] if entry.algorithm else [])) from error
    base = algorithm.published(task)
    if file.suite.steps is not None:
        base["steps"] = file.suite.steps
    base |= entry.hyperparameters
    for pattern, values in entry.tasks.items():
        _require_pattern(file, label, pattern, own)
        if matches(task, pattern):
            base |= values
    for point in _points(file, entry.grid, "algorithms", label, "grid"):
        yield base | point, _Point.of(point)


def _require_pattern(file: SuiteFile, label: str, pattern: str, own: Sequence[Task]) -> None:
    """Refuse a per-task setting whose pattern names no task at all.

    Raises:
        UserError: with the line of the pattern.
    """
    try:
        select_tasks([pattern], own)
    except UserError as error:
        raise file.error(str(error), "algorithms", label, "tasks", pattern) from error


def _validate(
    file: SuiteFile, label: str, task: Task, algorithm: type[Algorithm[Any]], settings: dict[str, Any]
) -> Hyperparameters:
    """The settings as the algorithm's own model.

    Raises:
        UserError: they are refused, with the line.
        UserCodeError: the model raises something else, or cannot be stored as JSON.
    """
    name = file.suite.algorithms[label].algorithm or label
    with guard(registry.named(name), "Hyperparameters"):
        try:
            config = algorithm.Hyperparameters.model_validate(settings)
        except ValidationError as error:
            raise _refusal(file, label, task, algorithm, error) from error
        stored = json.dumps(config.model_dump(mode="json"), allow_nan=False)
        if algorithm.Hyperparameters.model_validate(json.loads(stored)) != config:
            raise ValueError(f"settings change when they are stored as JSON: {stored}")
        return config


def _refusal(
    file: SuiteFile, label: str, task: Task, algorithm: type[Algorithm[Any]], error: ValidationError
) -> UserError:
    """What is wrong with a setting, with its line."""
    name = file.suite.algorithms[label].algorithm or label
    first = error.errors()[0]
    key = str(first["loc"][0]) if first["loc"] else ""
    known = list(algorithm.Hyperparameters.model_fields)
    if first["type"] == "extra_forbidden":
        message = (
            f"{name} has no hyperparameter {key!r}.{nearest(key, known)} 'lspc-bench algorithms {name}' lists them."
        )
    elif first["type"] == "missing":
        message = f"hyperparameter {key!r} of {name} has no default: the suite must set it"
    elif not key:  # of several together
        message = f"{name}: {first['msg'].removeprefix('Value error, ')}"
    else:
        message = f"hyperparameter {key!r} of {name}: {first['msg']}, not {first['input']!r}"
    return file.error(message, *(_place(file, label, task, key) if key else ("algorithms", label)))


def _place(file: SuiteFile, label: str, task: Task, key: str) -> tuple[str, ...]:
    """Where a suite sets a hyperparameter for a task."""
    entry = file.suite.algorithms[label]
    if key in entry.grid:
        return ("algorithms", label, "grid", key)
    for pattern, values in reversed(entry.tasks.items()):
        if key in values and matches(task, pattern):
            return ("algorithms", label, "tasks", pattern, key)
    if key == "steps" and key not in entry.hyperparameters:
        return ("steps",)
    return ("algorithms", label, "hyperparameters", key)


@dataclass(frozen=True)
class _Named:
    """A cell with what its rows are named after."""

    cell: Cell
    label: str
    point: _Point
    """Of the algorithm's grid."""
    data_point: _Point
    policies: tuple[str, ...]

    @property
    def name(self) -> str:
        """The label with the point of the algorithm's grid."""
        return _joined(self.label, self.point.name)


def _with_rows(file: SuiteFile, planned: list[_Named]) -> list[PlannedCell]:
    """Name the leaderboard's rows after the policies.

    Where labels or grid points share a policy, they are added; points of the data's grid always are.

    Raises:
        UserError: a cell comes twice under different names, or a name would stand for two experiments.
    """
    names = {(one.label, one.point.key, policy) for one in planned for policy in one.policies}
    shared = {policy for policy, count in Counter(policy for *_, policy in names).items() if count > 1}
    cells: dict[str, PlannedCell] = {}
    owners: dict[str, tuple[_Named, tuple[str, ...]]] = {}
    for one in planned:
        behind = {policy: _joined(one.name if policy in shared else "", one.data_point.name) for policy in one.policies}
        rows = {policy: f"{policy} [{added}]" if added else policy for policy, added in behind.items()}
        label = _joined(one.name, one.data_point.name)
        origin = (one.label, one.point.key, one.data_point.key)
        # Of cells and of rows: what looks alike in a table is one experiment's alone.
        for shown, mine in ((label, origin), *((row, (*origin, policy)) for policy, row in rows.items())):
            seen = f"{len(mine)} {' '.join(unicodedata.normalize('NFKC', shown).split())}"
            other, theirs = owners.setdefault(seen, (one, mine))
            if theirs != mine:
                both = f"{other.label!r} and {one.label!r}, at points of grids," if other.label != one.label else ""
                both = both or f"two points of the grids of {one.label!r}"
                message = f"{both} would both stand in tables as {shown!r}: call one differently"
                raise file.error(message, "algorithms", one.label)
        known = cells.setdefault(one.cell.hash, PlannedCell(cell=one.cell, label=label, rows=rows))
        if known.label != label:
            raise file.error(f"{label!r} and {known.label!r} are the same experiment", "algorithms", one.label)
    return list(cells.values())


def _joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
