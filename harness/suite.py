"""What to run: the model of a suite file, read with the line of every mistake.

Precedence of a hyperparameter, the last wins: the algorithm's default, its published setting for the task, the suite's
``steps``, the algorithm's ``hyperparameters`` in the suite, its ``tasks`` there, its ``grid``, ``--set``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import AfterValidator, BaseModel, Field, JsonValue, ValidationError, field_validator

from harness.bounds import AnyHiddenSizes, BatchSize, Settings, Steps
from harness.data.dataset import FoundSource
from harness.data.filters import Filters
from harness.errors import UserError, nearest
from harness.files import shipped
from harness.yaml_text import MOST_LEVELS, Place, YamlError, read_yaml

# More than anyone runs; a larger number is a seed that was meant to stand in a list.
MOST_SEEDS = 1000
# Of names, which stand in tables and in names of files; of other texts; of a suite's description.
MOST_LETTERS, MOST_TEXT, MOST_DESCRIPTION = 100, 1000, 10_000
MOST_EPISODES = 100_000
# What gymnasium.make takes for itself.
MAKES_OWN = {"id", "max_episode_steps", "autoreset", "apply_api_compatibility", "disable_env_checker", "render_mode"}


def _distinct(values: list[Any]) -> list[Any]:
    if len(set(values)) < len(values):
        raise ValueError("names a value twice")
    if min(values) < 0:
        raise ValueError("must not be negative")
    return values


def _dividing(limits: list[float]) -> list[float]:
    """Costs are divided by them."""
    if any(0 < limit < 1e-6 for limit in limits):
        raise ValueError("must be 0, or at least 1e-6")
    return limits


Limit = Annotated[float, Field(le=1e9)]
Limits = Annotated[
    list[Limit], Field(min_length=1, max_length=100), AfterValidator(_distinct), AfterValidator(_dividing)
]
Seed = Annotated[int, Field(lt=2**32)]


class AlgorithmEntry(Settings):
    """One algorithm of a suite, under a label of the suite's choice."""

    algorithm: str = Field("", description="the registered name; the label itself if left out")
    hyperparameters: dict[str, Any] = Field({}, description="settings for every task")
    tasks: dict[str, dict[str, Any]] = Field({}, description="settings by task pattern; a later pattern wins")
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        {}, description="settings of which every combination is run"
    )


class FQE(Settings):
    """How fitted Q-evaluation judges policies by the data alone, see :mod:`harness.fqe`."""

    steps: Steps = Field(2000, description="gradient steps for each policy")
    batch_size: BatchSize = Field(256, description="transitions a step draws from the dataset")
    hidden_sizes: AnyHiddenSizes = Field((64, 64), description="hidden layers of both Q networks; []: linear")
    learning_rate: float = Field(1e-3, gt=0, description="Adam's learning rate at the first step; it falls to 0")
    gamma: float = Field(0.99, ge=0, lt=1, description="discount of rewards and costs")
    polyak: float = Field(0.05, gt=0, le=1, description="rate at which the target networks follow")


class Evaluation(Settings):
    """How policies are judged: rolled out, and by the data alone."""

    every: int | None = Field(None, ge=1, description="steps between the learning curve's points; null: only the end")
    episodes: int = Field(10, ge=1, le=MOST_EPISODES, description="episodes for each point of the learning curve")
    final: int = Field(20, ge=1, le=MOST_EPISODES, description="episodes for the last checkpoint, the headline number")
    fqe: FQE | None = Field(None, description="fitted Q-evaluation of reward and cost at the same points; null: none")


class Data(Filters):
    """Which data is trained on."""

    source: FoundSource = Field(
        "dsrl",
        description="dsrl; agents: made by 'lspc-bench data collect --agents'; demo: small, not DSRL's",
    )
    files: dict[str, str] = Field({}, description="own files by task; a relative path starts at the suite's folder")
    holdout: float = Field(0, ge=0, lt=1, description="share of whole trajectories that is kept out of training")
    holdout_seed: int = Field(0, ge=0, lt=2**32, description="which ones; the same for every algorithm and seed")
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        {}, description="filters, and what is held out, of which every combination is run"
    )

    @property
    def filters(self) -> Filters:
        """What is changed in the data; without settings that change nothing, such as a target cost alone."""
        filters = Filters(**{name: getattr(self, name) for name in Filters.model_fields})
        return filters if filters.active else Filters()


class OwnTask(Settings):
    """An environment that is not DSRL's. ``data.files`` names its dataset, which says its sizes."""

    environment: str = Field(min_length=1, description="what gymnasium makes it by: ID, or MODULE:ID to import first")
    arguments: dict[str, JsonValue] = Field({}, description="what gymnasium.make passes on to it, such as {level: 3}")
    episode_length: int = Field(ge=1, le=10**7, description="steps after which an episode is truncated")
    cost_limits: Limits = Field(description="the limits that a suite without its own evaluates at")
    reference_returns: tuple[float, float] = Field(description="the returns that are normalised to 0 and 1")

    @field_validator("arguments")
    @classmethod
    def _not_makes_own(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if taken := sorted(MAKES_OWN.intersection(value)):
            raise ValueError(f"{taken[0]} is set here; the limit is episode_length")
        return value

    @field_validator("reference_returns")
    @classmethod
    def _upwards(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] >= value[1]:
            raise ValueError("wants the lower return first")
        return value


class TimeLimits(Settings):
    """How long a plugin's or an environment's code may take. Results do not depend on it."""

    episode: float = Field(600, gt=0, description="seconds for an episode; those in lockstep share their times")
    job: float = Field(604_800, gt=0, description="seconds for the training of a job, evaluation not counted")


class Suite(Settings):
    """A whole suite file. Unknown keys are refused."""

    name: str = Field(
        pattern=r"^[a-z0-9]+([-_][a-z0-9]+)*$", max_length=MOST_LETTERS, description="names the plan in the results"
    )
    description: str = Field("", description="what it is for")
    tasks: list[str] = Field(min_length=1, description="ids, names, families, globs, or all")
    algorithms: dict[str, AlgorithmEntry] = Field(min_length=1, description="by label")
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=MOST_SEEDS), AfterValidator(_distinct)] = Field(
        [0, 1, 2], description="the seeds, or how many: n means 0 to n - 1"
    )
    cost_limits: Limits | None = Field(None, description="null: each task's own three")
    steps: Steps | None = Field(None, description="gradient steps; null: each algorithm's own")
    evaluation: Evaluation = Evaluation()
    data: Data = Data()
    own_tasks: dict[str, OwnTask] = Field({}, description="tasks beside DSRL's, by name")
    time_limits: TimeLimits = TimeLimits()

    @field_validator("algorithms", mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        """A list of names, and a name with nothing behind it, are algorithms with their own settings."""
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            if len(set(value)) < len(value):
                raise ValueError("names an algorithm twice")
            value = dict.fromkeys(value)
        if isinstance(value, dict):
            return {label: {} if entry is None else entry for label, entry in value.items()}
        return value

    @field_validator("seeds", mode="before")
    @classmethod
    def _count(cls, value: Any) -> Any:
        if not isinstance(value, int) or isinstance(value, bool):
            return value
        if not 1 <= value <= MOST_SEEDS:
            raise ValueError(f"{value} is no number of seeds from 1 to {MOST_SEEDS}; for certain seeds write a list")
        return list(range(value))


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
        except OSError as error:
            raise UserError(f"cannot read the suite: {error.strerror}", where=str(path)) from error
        except UnicodeDecodeError as error:
            raise UserError(f"cannot read the suite, it is no text: {error}", where=str(path)) from error
        try:
            content, self._lines = read_yaml(text)
        except YamlError as error:
            raise UserError(str(error), where=f"{path}:{error.line}") from error
        if not isinstance(content, dict):
            raise UserError("a suite is a mapping with keys such as tasks and algorithms", where=str(path))
        if isinstance(content.get("algorithms"), list) and overrides:
            content["algorithms"] = _by_label(content["algorithms"])
        # The general before the special: --set steps=... does not undo --set algorithms.lspc.hyperparameters.steps=...
        for override in sorted(overrides, key=lambda override: override.partition("=")[0].count(".")):
            self._override(content, override)
        self._require_lines_of_text(content)
        self.suite = self._validate(content)

    def error(self, message: str, *place: str | int) -> UserError:
        """An error about a place in the suite, such as ``("algorithms", "lspc")``, with its line or its ``--set``."""
        whole = tuple(map(str, place))
        prefixes = [whole[:end] for end in range(len(whole), 0, -1)]
        # Keys on the way to what --set sets stand in no line of the file either.
        below = [key for key in self._overridden if whole and key[: len(whole)] == whole and whole not in self._lines]
        for prefix in [*prefixes, *below]:
            if prefix in self._overridden:
                return UserError(message, where=f"--set {self._overridden[prefix]}")
        for prefix in prefixes:
            if prefix in self._lines:
                return UserError(message, where=f"{self.path}:{self._lines[prefix]}")
        return UserError(message, where=str(self.path))

    def folder(self, *place: str) -> Path:
        """Where a relative path at a place of the suite starts: in the suite's folder, or where ``--set`` was typed."""
        typed = any(place[:end] in self._overridden for end in range(1, len(place) + 1))
        return Path.cwd() if typed else self.path.parent.absolute()

    def _override(self, content: dict[str, Any], override: str) -> None:
        key, equals, text = override.partition("=")
        place = tuple(key.split("."))
        if not equals or not all(place) or len(place) > MOST_LEVELS:
            raise UserError(f"--set wants KEY=VALUE with a dotted key such as evaluation.final=5, not {override!r}")
        try:
            value, _ = read_yaml(text)
        except YamlError as error:
            raise UserError(str(error), where=f"--set {override}") from error
        target = content
        for depth, part in enumerate(place[:-1]):
            if place[: depth + 1] == ("algorithms", part) and part not in target:
                known = nearest(part, map(str, target))
                raise UserError(f"the suite has no algorithm {part!r}.{known}", where=f"--set {override}")
            if target.get(part) is None:
                target[part] = {}
            target = target[part]
            if not isinstance(target, dict):
                raise UserError(f"{'.'.join(place[: depth + 1])} is no mapping", where=f"--set {override}")
        target[place[-1]] = value
        self._overridden[place] = override
        # Explicit always wins: what the file says of the same hyperparameter in stronger places is void.
        if place == ("steps",):
            for entry in _mappings(content.get("algorithms")):
                _void(entry, ["steps"], "hyperparameters", "tasks", "grid")
        elif place[0] == "algorithms" and place[2:3] == ("hyperparameters",):
            names = [place[3]] if len(place) > 3 else list(value) if isinstance(value, dict) else []
            _void(content["algorithms"][place[1]], names, "tasks", "grid")
        elif place[0] == "data" and len(place) == 2:
            _void(content["data"], [place[1]], "grid")

    def _require_lines_of_text(self, content: Any, place: Place = ()) -> None:
        """Refuse texts that would break a table, a name of a file or a terminal, or that are endless.

        Raises:
            UserError: a text, or a key, has control characters or other letters that cannot be printed, or is too long.
        """
        if isinstance(content, str):
            described = place == ("description",)
            shown = content.replace("\n", " ").replace("\t", " ") if described else content
            self._require_text(shown, MOST_DESCRIPTION if described else MOST_TEXT, ".".join(place), place)
        elif isinstance(content, dict):
            for key, value in content.items():
                if isinstance(key, str):
                    self._require_text(key, MOST_LETTERS, "a key", (*place, key))
                self._require_lines_of_text(value, (*place, str(key)))
        elif isinstance(content, list):
            for index, value in enumerate(content):
                self._require_lines_of_text(value, (*place, str(index)))

    def _require_text(self, text: str, most: int, name: str, place: Place) -> None:
        if not text.isprintable():
            message = "must be one line of letters that can be printed, without control characters"
            raise self.error(f"{name}: {message}, not {text!r}", *place)
        if len(text) > most:
            raise self.error(f"{name}: of {len(text)} letters, at most {most} are read: {text!r}", *place)

    def _validate(self, content: dict[str, Any]) -> Suite:
        try:
            return Suite.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            place = tuple(str(part) for part in first["loc"] if part != "[key]")
            name = ".".join(place)
            if first["type"] == "extra_forbidden":
                model = _model_at(place[:-1])
                known = list(model.model_fields)
                message = f"unknown key {name!r}.{nearest(place[-1], known)} Known here: {', '.join(known)}"
            elif first["type"] == "missing":
                message = f"the key {name!r} is missing"
            else:
                reason = _REASONS.get(first["type"], first["msg"].removeprefix("Value error, "))
                message = f"{name}: {reason}" if name else reason
                if first["type"] not in ("value_error", "too_short"):
                    message += f", not {first['input']!r}"
            raise self.error(message, *place) from error


_REASONS = {
    "model_type": "must be a mapping",
    "dict_type": "must be a mapping",
    "too_short": "must not be empty: nothing would run",
}
"""What pydantic says less well."""


def _by_label(names: list[Any]) -> Any:
    """A list of different algorithm names as a mapping; anything else as it is, to be refused later."""
    simple = all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
    return dict.fromkeys(names) if simple else names


def _mappings(content: Any) -> list[dict[str, Any]]:
    """The mappings among a mapping's values; what else may stand there is refused when the suite is validated."""
    return [value for value in content.values() if isinstance(value, dict)] if isinstance(content, dict) else []


def _void(entry: dict[str, Any], names: list[str], *sections: str) -> None:
    """Remove hyperparameters from sections of an algorithm's entry."""
    for section in sections:
        settings = _mappings(entry.get(section)) if section == "tasks" else _mappings({"": entry.get(section)})
        for mapping in settings:
            for name in names:
                mapping.pop(name, None)


def _model_at(place: Place) -> type[BaseModel]:
    """The model whose keys stand at a place of the suite."""
    model: type[BaseModel] = Suite
    parts = iter(place)
    for part in parts:
        annotation = model.model_fields[part].annotation
        (model,) = (
            kind
            for kind in (annotation, *get_args(annotation))
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        )
        if get_origin(annotation) is dict:
            next(parts)  # a label of the user's
    return model


def suites_folder() -> Path:
    """Where the built-in suites lie: in the wheel beside this file, in a checkout beside the package."""
    return shipped("suites", "suites")


def builtin_suites() -> dict[str, Path]:
    """The built-in suites by name."""
    return {path.stem: path for path in sorted(suites_folder().glob("[!.]*.yaml"))}


def read_suite(name: str, overrides: Sequence[str] = ()) -> SuiteFile:
    """A suite by path or by built-in name.

    Raises:
        UserError: there is no such suite, or it is wrong.
    """
    known = builtin_suites()
    if name in known:
        return SuiteFile(known[name], overrides)
    path = Path(name)
    try:
        exists = path.exists()
    except OSError:  # too long for a file's name
        exists = False
    if not exists:
        raise UserError(
            f"no such suite: {name!r} is neither a file nor built in ({', '.join(known)}).{nearest(name, known)}"
        )
    return SuiteFile(path, overrides)
