"""From a suite to its plan: which cells, with which settings, and what tables call them."""

from __future__ import annotations

import itertools
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from harness import registry
from harness.data.dataset import known_label
from harness.errors import SuiteError, UserError, at, nearest
from harness.files import file_sha256
from harness.guard import UserCodeError, guard
from harness.plan import MARK, MOST_CELLS, Cell, CellData, Plan, PlannedCell
from harness.suite import FILES, Data, Origin, Suite, SuiteFile
from harness.suite_tasks import chosen_tasks, own_task
from harness.tasks import Task, matches, select_tasks

if TYPE_CHECKING:
    from harness.algorithm import Algorithm, Hyperparameters

MOST_POINTS = 10_000
"""Of a grid: more than anyone runs."""


def make_plan(file: SuiteFile) -> Plan:
    """What a suite's file asks for, see :func:`plan_suite`.

    Raises:
        UserError: something in it is wrong, with file and line.
    """
    with file.located():
        return plan_suite(file.suite, file.folder, file.origin)


def plan_suite(suite: Suite, folder: Path, origin: Origin | None = None) -> Plan:
    """The cells of a suite, in a stable order: by task, algorithm, grid point, point of the data's grid, limit, seed.

    Args:
        suite: with whole paths of own files.
        folder: where the code of its own tasks is looked for.
        origin: what the suite was read from.

    Raises:
        SuiteError: a task, algorithm or hyperparameter is unknown or wrong.
    """
    own = [own_task(suite, name, folder) for name in suite.own_tasks]  # run or not
    tasks = chosen_tasks(suite, own)
    data = {task.id: _data(suite, task) for task in tasks}
    planned: list[_Named] = []
    for task in tasks:
        for label in suite.algorithms:
            with at("algorithms", label, also=UserCodeError):
                planned += _cells(suite, label, task, own, data[task.id], MOST_CELLS - len(planned))
    return Plan(
        suite=suite.name,
        description=suite.description,
        cells=_with_rows(planned),
        origin=origin,
        time_limits=suite.time_limits,
        track=tuple(suite.track),
    )


def _cells(
    suite: Suite, label: str, task: Task, own: Sequence[Task], data: Sequence[tuple[CellData, _Point]], most: int
) -> Iterator[_Named]:
    """The cells of one label on one task; more than ``most`` are refused."""
    entry = suite.algorithms[label]
    count = 0
    for settings, point in _settings(suite, label, task, own):
        algorithm = registry.load(entry.algorithm or label)
        config = _validate(suite, label, task, algorithm, settings)
        limits = suite.limits_of(task)
        trained_for = limits if algorithm.depends_on_cost_limit(config) else (None,)
        count += len(data) * len(trained_for) * len(suite.seeds)
        if count > most:
            raise SuiteError(f"the suite has more than {MOST_CELLS} cells", "algorithms", label)
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


def _data(suite: Suite, task: Task) -> list[tuple[CellData, _Point]]:
    """What a task's cells are trained on, for every point of the data's grid."""
    key = next((key for key in suite.data.files if key in task.names), None)
    found: dict[str, Any] = {"source": suite.data.source}
    if key is not None:
        path = Path(suite.data.files[key])
        try:
            found = {"source": "own", "file": str(path), "sha256": file_sha256(path), "label": known_label(path)}
        except OSError as error:
            message = f"cannot read the dataset of {task.name}, {str(path)!r}: {error.strerror}"
            raise SuiteError(message, *FILES, key) from error
    points = []
    for data, point in _data_points(suite):
        with at(*_data_place(suite, "density")):
            data.filters.thinning(task)
        held_out = {"holdout": data.holdout, "holdout_seed": data.holdout_seed}
        points.append((CellData(**found, filters=data.filters, **held_out), point))
    return points


def _data_points(suite: Suite) -> Iterator[tuple[Data, _Point]]:
    """The suite's ``data`` at every point of its grid.

    Raises:
        UserError: with the line of a key that is none, or of a value that is wrong.
    """
    data = suite.data
    gridded = [name for name in Data.model_fields if name not in ("source", "files", "grid")]
    for key in data.grid:
        if key not in gridded:
            message = f"the data's grid has no {key!r}.{nearest(key, gridded)} Known here: {', '.join(gridded)}"
            raise SuiteError(message, "data", "grid", key)
    for point in _points(data.grid, "data", "grid"):
        try:
            yield Data.model_validate({**data.model_dump(exclude={"grid"}), **point}), _Point.of(point)
        except ValidationError as error:
            first = error.errors()[0]
            key = str(first["loc"][0]) if first["loc"] else next(reversed(point))  # of several together
            message = f"data at {_Point.of(point).name}: {first['msg'].removeprefix('Value error, ')}"
            raise SuiteError(message, *_data_place(suite, key)) from error


def _data_place(suite: Suite, key: str) -> tuple[str, ...]:
    """Where a suite sets a key of its data."""
    return ("data", "grid", key) if key in suite.data.grid else ("data", key)


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


def _points(grid: Mapping[str, Sequence[Any]], *place: str) -> Iterator[dict[str, Any]]:
    """Every combination of a grid's values.

    Raises:
        UserError: there are too many.
    """
    if (count := math.prod(map(len, grid.values()))) > MOST_POINTS:
        raise SuiteError(f"{'.'.join(place)}: {count} combinations, at most {MOST_POINTS} are planned", *place)
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _settings(suite: Suite, label: str, task: Task, own: Sequence[Task]) -> Iterator[tuple[dict[str, Any], _Point]]:
    """What the suite sets for one label and task, for every point of the label's grid."""
    entry = suite.algorithms[label]
    name = entry.algorithm or label
    with at("algorithms", label, *(["algorithm"] if entry.algorithm else [])):
        algorithm = registry.load(name)
    base = algorithm.published(task)
    if suite.steps is not None:
        base["steps"] = suite.steps
    base |= entry.hyperparameters
    for pattern, values in entry.tasks.items():
        _require_pattern(label, pattern, own)
        if matches(task, pattern):
            base |= values
    for point in _points(entry.grid, "algorithms", label, "grid"):
        yield base | point, _Point.of(point)


def _require_pattern(label: str, pattern: str, own: Sequence[Task]) -> None:
    """Refuse a per-task setting whose pattern names no task at all.

    Raises:
        SuiteError: with the place of the pattern.
    """
    with at("algorithms", label, "tasks", pattern):
        select_tasks([pattern], own)


def _validate(
    suite: Suite, label: str, task: Task, algorithm: type[Algorithm[Any]], settings: dict[str, Any]
) -> Hyperparameters:
    """The settings as the algorithm's own model.

    Raises:
        UserError: they are refused, with the line.
        UserCodeError: the model raises something else, or cannot be stored as JSON.
    """
    name = suite.algorithms[label].algorithm or label
    with guard(registry.named(name), "Hyperparameters"):
        try:
            config = algorithm.Hyperparameters.model_validate(settings)
        except ValidationError as error:
            raise _refusal(suite, label, task, algorithm, error) from error
        stored = json.dumps(config.model_dump(mode="json"), allow_nan=False)
        if algorithm.Hyperparameters.model_validate(json.loads(stored)) != config:
            raise ValueError(f"settings change when they are stored as JSON: {stored}")
        return config


def _refusal(
    suite: Suite, label: str, task: Task, algorithm: type[Algorithm[Any]], error: ValidationError
) -> UserError:
    """What is wrong with a setting, with its line."""
    name = suite.algorithms[label].algorithm or label
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
    return SuiteError(message, *(_place(suite, label, task, key) if key else ("algorithms", label)))


def _place(suite: Suite, label: str, task: Task, key: str) -> tuple[str, ...]:
    """Where a suite sets a hyperparameter for a task."""
    entry = suite.algorithms[label]
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


def _with_rows(planned: list[_Named]) -> list[PlannedCell]:
    """Name the leaderboard's rows after the policies.

    Where labels or grid points share a policy, they are added; points of the data's grid always are.

    Raises:
        UserError: a cell comes twice under different names, or a name would stand for two experiments, or for results
            that were not made here.
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
            if seen.casefold().endswith(MARK):
                message = (
                    f"{one.label!r} would stand in tables as {shown!r}, as if it was imported: call it differently"
                )
                raise SuiteError(message, "algorithms", one.label)
            other, theirs = owners.setdefault(seen, (one, mine))
            if theirs != mine:
                both = f"{other.label!r} and {one.label!r}, at points of grids," if other.label != one.label else ""
                both = both or f"two points of the grids of {one.label!r}"
                message = f"{both} would both stand in tables as {shown!r}: call one differently"
                raise SuiteError(message, "algorithms", one.label)
        known = cells.setdefault(one.cell.hash, PlannedCell(cell=one.cell, label=label, rows=rows))
        if known.label != label:
            raise SuiteError(f"{label!r} and {known.label!r} are the same experiment", "algorithms", one.label)
    return list(cells.values())


def _joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)
