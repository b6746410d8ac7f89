"""What to run: the model of a suite file, read with the line of every mistake.

Precedence of a hyperparameter, the last wins: the algorithm's default, its published setting for the task, the suite's
``steps``, the algorithm's ``hyperparameters`` in the suite, its ``tasks`` there, its ``grid``, ``--set``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from harness.data.dataset import Source
from harness.errors import UserError, nearest

Place = tuple[str | int, ...]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class AlgorithmEntry(_Model):
    """One algorithm of a suite, under a label of the suite's choice."""

    algorithm: str = Field("", description="the registered name; the label itself if left out")
    hyperparameters: dict[str, Any] = Field({}, description="settings for every task")
    tasks: dict[str, dict[str, Any]] = Field({}, description="settings by task pattern; a later pattern wins")
    grid: dict[str, list[Any]] = Field({}, description="settings of which every combination is run")


class Evaluation(_Model):
    """How policies are rolled out."""

    every: int | None = Field(None, ge=1, description="steps between the learning curve's points; null: only the end")
    episodes: int = Field(10, ge=1, description="episodes for each point of the learning curve")
    final: int = Field(20, ge=1, description="episodes for the last checkpoint, the headline number")


class Data(_Model):
    """Which data is trained on."""

    source: Source = Field("dsrl", description="dsrl, or demo: the small scripted data that ships with this project")


class Suite(_Model):
    """A whole suite file. Unknown keys are refused."""

    name: str = Field(pattern=r"^[a-z0-9]+([-_][a-z0-9]+)*$", description="names the plan in the results")
    description: str = Field("", description="what it is for")
    tasks: list[str] = Field(min_length=1, description="ids, names, families, globs, or all")
    algorithms: dict[str, AlgorithmEntry] = Field(min_length=1, description="by label")
    seeds: list[int] = Field([0, 1, 2], min_length=1, description="the seeds, or how many: n means 0 to n - 1")
    cost_limits: list[float] | None = Field(None, min_length=1, description="null: each task's own three")
    steps: int | None = Field(None, ge=1, description="gradient steps; null: each algorithm's own")
    evaluation: Evaluation = Evaluation()
    data: Data = Data()

    @field_validator("algorithms", mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        """A list of names, and a name with nothing behind it, are algorithms with their own settings."""
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            value = dict.fromkeys(value)
        if isinstance(value, dict):
            return {label: {} if entry is None else entry for label, entry in value.items()}
        return value

    @field_validator("seeds", mode="before")
    @classmethod
    def _count(cls, value: Any) -> Any:
        return list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("seeds", "cost_limits")
    @classmethod
    def _distinct(cls, value: list[Any] | None) -> list[Any] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError("names a value twice")
        if value is not None and min(value) < 0:
            raise ValueError("must not be negative")
        return value

    @model_validator(mode="after")
    def _grids_have_values(self) -> Suite:
        for label, entry in self.algorithms.items():
            for name, values in entry.grid.items():
                if not values:
                    raise ValueError(f"algorithms.{label}.grid.{name} is an empty grid: nothing would run")
        return self


class SuiteFile:
    """A suite together with the text it came from, so that whoever finds a mistake can name the line.

    Args:
        path: the file.
        overrides: ``KEY=VALUE`` of the command line, with dotted keys; they win over everything in the file.

    Raises:
        UserError: anything in it is wrong, with file and line.
    """

    def __init__(self, path: Path, overrides: Sequence[str] = ()) -> None:
        self.path = path
        self._overridden: dict[Place, str] = {}
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the suite: {error}", where=str(path)) from error
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
            self._lines = dict(_lines(root)) if root else {}
            content = yaml.safe_load(text)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise UserError(f"not valid YAML: {error.problem}", where=f"{path}:{line}") from error
        except yaml.YAMLError as error:
            raise UserError(f"not valid YAML: {error}", where=str(path)) from error
        except _DuplicateKeyError as error:
            raise UserError(f"the key {error.key!r} stands here twice", where=f"{path}:{error.line}") from error
        if not isinstance(content, dict):
            raise UserError("a suite is a mapping with keys such as tasks and algorithms", where=str(path))
        for override in overrides:
            self._override(content, override)
        self.suite = self._validate(content)

    def error(self, message: str, *place: str | int) -> UserError:
        """An error about a place in the suite, such as ``("algorithms", "lspc")``, with its line or its ``--set``."""
        for end in range(len(place), -1, -1):
            if place[:end] in self._overridden:
                return UserError(message, where=f"--set {self._overridden[place[:end]]}")
            if place[:end] in self._lines:
                return UserError(message, where=f"{self.path}:{self._lines[place[:end]]}")
        return UserError(message, where=str(self.path))

    def _override(self, content: dict[str, Any], override: str) -> None:
        key, equals, text = override.partition("=")
        place = tuple(key.split("."))
        if not equals or not all(place):
            raise UserError(f"--set wants KEY=VALUE with a dotted key such as evaluation.final=5, not {override!r}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"the value is not valid YAML: {text!r}", where=f"--set {override}") from error
        if isinstance(content.get("algorithms"), list):
            content["algorithms"] = dict.fromkeys(content["algorithms"])
        target = content
        for depth, part in enumerate(place[:-1]):
            if place[: depth + 1] == ("algorithms", part) and part not in (target or {}):
                raise UserError(
                    f"the suite has no algorithm {part!r}.{nearest(part, target or ())}", where=f"--set {override}"
                )
            if target.get(part) is None:
                target[part] = {}
            target = target[part]
            if not isinstance(target, dict):
                raise UserError(f"{'.'.join(place[: depth + 1])} is no mapping", where=f"--set {override}")
        target[place[-1]] = value
        self._overridden[place] = override
        if len(place) == 4 and place[0] == "algorithms" and place[2] == "hyperparameters":
            # Explicit always wins: what the file says of this hyperparameter elsewhere is void.
            entry = content["algorithms"][place[1]]
            (entry.get("grid") or {}).pop(place[3], None)
            for settings in (entry.get("tasks") or {}).values():
                (settings or {}).pop(place[3], None)

    def _validate(self, content: dict[str, Any]) -> Suite:
        try:
            return Suite.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            # Labels of unions and validators stand in the location too: only what stands in the file is of use.
            place: Place = tuple(first["loc"])
            name = ".".join(str(part) for part in place)
            if first["type"] == "extra_forbidden":
                model = _model_at(place[:-1])
                known = list(model.model_fields) if model else []
                message = f"unknown key {name!r}.{nearest(str(place[-1]), known)} Known here: {', '.join(known)}"
            elif first["type"] == "missing":
                message = f"the key {name!r} is missing"
            else:
                message = f"{name}: {first['msg'].removeprefix('Value error, ')}".removeprefix(": ")
                if first["type"] not in ("value_error", "missing"):
                    message += f", not {first['input']!r}"
            raise self.error(message, *place) from error


class _DuplicateKeyError(Exception):
    def __init__(self, key: str, line: int) -> None:
        super().__init__(key)
        self.key, self.line = key, line


def _lines(node: yaml.Node, place: Place = ()) -> Iterator[tuple[Place, int]]:
    """The line of every key and item of a YAML document."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            here, line = (*place, key.value), key.start_mark.line + 1
            if key.value in seen:
                raise _DuplicateKeyError(key.value, line)
            seen.add(key.value)
            yield here, line
            yield from _lines(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*place, index), value.start_mark.line + 1
            yield from _lines(value, (*place, index))


def _model_at(place: Place) -> type[BaseModel] | None:
    """The model whose keys stand at a place of the suite."""
    model: type[BaseModel] = Suite
    for part in place:
        if part not in model.model_fields:
            continue  # a label of the user's
        annotation = model.model_fields[part].annotation
        inner = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
        models = [kind for kind in inner if issubclass(kind, BaseModel)]
        if not models:
            return None
        model = models[0]
    return model


def suites_folder() -> Path:
    """Where the built-in suites lie: in the wheel beside this file, in a checkout beside the package."""
    packaged = Path(__file__).parent / "suites"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "suites"


def builtin_suites() -> dict[str, Path]:
    """The built-in suites by name."""
    return {path.stem: path for path in sorted(suites_folder().glob("*.yaml"))}


def read_suite(name: str, overrides: Sequence[str] = ()) -> SuiteFile:
    """A suite by path or by built-in name.

    Raises:
        UserError: there is no such suite, or it is wrong.
    """
    known = builtin_suites()
    if name in known:
        return SuiteFile(known[name], overrides)
    path = Path(name)
    if not path.exists():
        raise UserError(
            f"no such suite: {name!r} is neither a file nor built in ({', '.join(known)}).{nearest(name, known)}"
        )
    return SuiteFile(path, overrides)
