"""What to run: the model of a suite file, read with the line of every mistake.

Precedence of a hyperparameter, the last wins: the algorithm's default, its published setting for the task, the suite's
``steps``, the algorithm's ``hyperparameters`` in the suite, its ``tasks`` there, its ``grid``, ``--set``.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    field_validator,
)

from harness.bounds import AnyHiddenSizes, BatchSize, Settings, Steps
from harness.config import LIST, MAPPING, ConfigFile
from harness.data.dataset import FoundSource
from harness.data.filters import Filters
from harness.errors import SuiteError, UserError, nearest
from harness.files import shipped
from harness.tasks import FAMILIES, Task
from harness.trackers import check_name
from harness.yaml_text import MOST_LEVELS, Place, YamlError, read_yaml

# More than anyone runs; a larger number is a seed that was meant to stand in a list.
MOST_SEEDS = 1000
# Of names, which stand in tables and in names of files; of other texts; of a suite's description.
MOST_LETTERS, MOST_TEXT, MOST_DESCRIPTION = 100, 1000, 10_000
MOST_EPISODES = 100_000
FILES = ("data", "files")
"""Where a suite names own files."""
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


SuiteName = Annotated[str, Field(pattern=r"^[a-z0-9]+([-_][a-z0-9]+)*$", max_length=MOST_LETTERS)]


def _families(limits: dict[str, list[float]]) -> dict[str, list[float]]:
    for family in limits:
        if family not in (*FAMILIES, "own"):
            raise ValueError(
                f"no family is called {family!r}.{nearest(family, FAMILIES)} Known: {', '.join(FAMILIES)}, own"
            )
    return limits


# A list, or lists by family.
SuiteLimits = Annotated[
    Annotated[Limits, Tag(LIST)]
    | Annotated[dict[str, Limits], Field(min_length=1), AfterValidator(_families), Tag(MAPPING)],
    Discriminator(lambda value: MAPPING if isinstance(value, dict) else LIST),
]


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


FQE_METRICS = ("fqe_return", "fqe_cost")
"""What fitted Q-evaluation's two numbers are called in results."""


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
            raise ValueError("needs the lower return first")
        return value


class TimeLimits(Settings):
    """How long a plugin's or an environment's code may take. Results do not depend on it."""

    episode: float = Field(600, gt=0, description="seconds for an episode; those in lockstep share their times")
    job: float = Field(604_800, gt=0, description="seconds for the training of a job, evaluation not counted")


class Suite(Settings):
    """A whole suite file. Unknown keys are refused."""

    name: SuiteName = Field(description="names the plan in the results")
    description: str = Field("", description="what it is for")
    tasks: list[str] = Field(min_length=1, description="ids, names, families, globs, or all")
    algorithms: dict[str, AlgorithmEntry] = Field(min_length=1, description="by label")
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=MOST_SEEDS), AfterValidator(_distinct)] = Field(
        [0, 1, 2], description="the seeds, or how many: n means 0 to n - 1"
    )
    cost_limits: SuiteLimits | None = Field(
        None,
        description="for all tasks, or by family; null, and for families that are not named: each task's own three",
    )
    steps: Steps | None = Field(None, description="gradient steps; null: each algorithm's own")
    evaluation: Evaluation = Evaluation()
    data: Data = Data()
    own_tasks: dict[str, OwnTask] = Field({}, description="tasks beside DSRL's, by name")
    time_limits: TimeLimits = TimeLimits()
    track: list[Annotated[str, AfterValidator(check_name)]] = Field(
        [], description="where numbers are sent as they come: wandb, tensorboard, csv, MODULE:CLASS"
    )

    def limits_of(self, task: Task) -> tuple[float, ...]:
        """The cost limits of one of its tasks."""
        limits = self.cost_limits.get(task.family) if isinstance(self.cost_limits, dict) else self.cost_limits
        return tuple(limits or task.cost_limits)

    @field_validator("algorithms", mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        """A list of names, and a name with nothing behind it, are algorithms with their own settings."""
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            if len(set(value)) < len(value):
                raise ValueError("names an algorithm twice")
            value = dict.fromkeys(value)
        if isinstance(value, dict):
            if any(isinstance(label, str) and not label.strip() for label in value):
                raise ValueError("an algorithm needs a label, its name in tables")
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


class Origin(BaseModel):
    """What a plan was made from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Of the suite on the command line: a built-in one's, or its file's without the folder."""
    text: str
    """What the suite's file holds."""
    overrides: tuple[str, ...] = ()
    """What ``--set`` changed in it."""

    @property
    def command(self) -> str:
        """What runs the same suite."""
        changes = [part for override in self.overrides for part in ("--set", override)]
        return shlex.join(["lspc-bench", "run", self.name, *changes])


class SuiteFile(ConfigFile[Suite]):
    """A suite together with the text it came from, which gives a mistake its line.

    Args:
        path: the file.
        overrides: ``KEY=VALUE`` of the command line, with dotted keys; they win over everything in the file.
        name: a built-in suite's; ``None`` means the file's.

    Raises:
        UserError: anything in it is wrong, with file and line.
    """

    def __init__(self, path: Path, overrides: Sequence[str] = (), name: str | None = None) -> None:
        super().__init__(path, Suite)
        self.overrides, self.name = overrides, name or path.name
        self._overridden: dict[Place, str] = {}
        content = self.content
        if isinstance(content.get("algorithms"), list) and overrides:
            content["algorithms"] = _by_label(content["algorithms"])
        # The general before the special: --set steps=... does not undo --set algorithms.lspc.hyperparameters.steps=...
        for override in sorted(overrides, key=lambda override: override.partition("=")[0].count(".")):
            self._override(content, override)
        with self.located():
            self._require_lines_of_text(content)
            self.suite = self._with_whole_paths(self.check())

    @property
    def origin(self) -> Origin:
        """What a plan of it is made from."""
        return Origin(name=self.name, text=self.text, overrides=tuple(self.overrides))

    @property
    def folder(self) -> Path:
        """Where the file lies."""
        return self.path.parent.absolute()

    @contextmanager
    def located(self) -> Iterator[None]:
        """Around what finds mistakes in the suite: each is told with its line, or its ``--set``.

        Raises:
            UserError: in the place of a :class:`~harness.errors.SuiteError`.
        """
        try:
            yield
        except SuiteError as error:
            raise UserError(str(error), where=self.where(tuple(map(str, error.place)))) from error

    def where(self, place: Place) -> str:
        """The ``--set`` that is to blame for the place, or the file's line."""
        prefixes = [place[:end] for end in range(len(place), 0, -1)]
        # Keys on the way to what --set sets stand in no line of the file either.
        below = [key for key in self._overridden if place and key[: len(place)] == place and place not in self.lines]
        for prefix in [*prefixes, *below]:
            if prefix in self._overridden:
                return f"--set {self._overridden[prefix]}"
        return super().where(place)

    def _with_whole_paths(self, suite: Suite) -> Suite:
        """The suite with its own files' whole paths: relative ones start in its folder, or where --set was typed."""
        whole = {}
        for key, name in suite.data.files.items():
            place = (*FILES, key)
            typed = any(place[:end] in self._overridden for end in range(1, len(place) + 1))
            try:
                whole[key] = str((Path.cwd() if typed else self.folder) / Path(name).expanduser())
            except RuntimeError as error:
                raise SuiteError(f"{name!r} names the folder of a user who is not here", *place) from error
        return suite.model_copy(update={"data": suite.data.model_copy(update={"files": whole})})

    def _override(self, content: dict[str, Any], override: str) -> None:
        key, equals, text = override.partition("=")
        place = tuple(key.split("."))
        if not equals or not all(place) or len(place) > MOST_LEVELS:
            raise UserError(f"--set needs KEY=VALUE with a dotted key such as evaluation.final=5, not {override!r}")
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
            raise SuiteError(f"{name}: {message}, not {text!r}", *place)
        if len(text) > most:
            raise SuiteError(f"{name}: of {len(text)} letters, at most {most} are read: {text!r}", *place)


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


def suites_folder() -> Path:
    """Where the built-in suites lie: in the wheel beside this file, in a checkout beside the package."""
    return shipped("suites", "suites")


def builtin_suites() -> dict[str, Path]:
    """The built-in suites by name."""
    return {path.stem: path for path in sorted(suites_folder().glob("[!.]*.yaml"), key=lambda path: path.stem)}


def read_suite(name: str, overrides: Sequence[str] = ()) -> SuiteFile:
    """A suite by path or by built-in name.

    Raises:
        UserError: there is no such suite, or it is wrong.
    """
    known = builtin_suites()
    if name in known:
        return SuiteFile(known[name], overrides, name)
    path = Path(name)
    try:
        exists = path.exists()
    except OSError:  # too long for a file's name
        exists = False
    if not exists:
        raise UserError(
            f"no such suite: {name!r} is neither a file nor built in.{nearest(name, known)} 'lspc-bench suites' lists "
            "those that are built in"
        )
    return SuiteFile(path, overrides)
