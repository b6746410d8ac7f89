"""The dataset of a task: where its file lies, in DSRL's format, and what it holds."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from harness.data import manifest
from harness.data.checks import Shape, examine, shape_problems
from harness.data.convert import foreign_layout
from harness.data.hdf5 import UnusableError, find_array, label, opened, require_room
from harness.data.trajectories import Trajectories
from harness.errors import UserError
from harness.files import file_sha256
from harness.tasks import Task

if TYPE_CHECKING:
    import h5py

FoundSource = Literal["dsrl", "agents", "demo"]
"""Whose files are found by the task alone."""
Source = Literal[FoundSource, "own"]
"""Where data comes from."""
LABELS: Mapping[str, str] = {
    "dsrl": "DSRL",
    "agents": "agent-collected data, not DSRL",
    "demo": "demo data, not DSRL",
}
"""By source, whose data it is, for people. Files that are made here say it of themselves, and so do their manifests."""
KEYS = ("observations", "next_observations", "actions", "rewards", "costs", "terminals", "timeouts")
"""The arrays of a file in DSRL's format."""
COLUMNS = (
    "observations",
    "next_observations",
    "actions",
    "rewards",
    "costs",
    "terminals",
    "done",
    "initial",
    "reward_returns",
    "cost_returns",
    "rewards_to_go",
    "costs_to_go",
    "next_costs_to_go",
    "safe",
)
"""What a batch can hold. ``done`` is terminals OR timeouts, ``initial`` marks a trajectory's first step. Returns are
undiscounted, of the whole trajectory; to go means from this step on, next to go from the step behind it on, 0 at the
end. ``safe`` marks the steps of trajectories that cost no more than the middle one of the task's limits."""


@dataclass(frozen=True)
class Dataset:
    """One task's logged transitions, N in a row.

    Args:
        task: the task that the data belongs to.
        path: the file it was read from.
        source: ``dsrl``; ``agents`` for what agents trained here did; ``demo`` for small data that ships or is
            scripted; ``own`` for a file of the user's.
        arrays: the seven keys of DSRL's format: (N, dim) or (N,), float32, flags bool.
        sha256: of the file.
        warnings: what is odd in the file but no reason to refuse it.
    """

    task: Task
    path: Path
    source: Source
    arrays: dict[str, NDArray[Any]] = field(repr=False)
    sha256: str = ""
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.arrays["rewards"])

    @cached_property
    def done(self) -> NDArray[np.bool_]:
        """(N,) terminals OR timeouts. (The LSPC authors take the sum: a row with both would count -1.)"""
        return np.asarray(self.arrays["terminals"] | self.arrays["timeouts"])

    @cached_property
    def trajectories(self) -> Trajectories:
        """Where trajectories begin and end."""
        return Trajectories.split(self.done, self.arrays["rewards"], self.arrays["costs"])

    @cached_property
    def observation_range(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The least and the largest value of every dimension of the observations, (dim,) each."""
        observations = self.arrays["observations"]
        return observations.min(0), observations.max(0)

    @cached_property
    def sealed(self) -> Dataset:
        """The same, to be looked at: its arrays cannot be written to, for others train on them too."""
        arrays = {key: values.view() for key, values in self.arrays.items()}
        for values in arrays.values():
            values.flags.writeable = False
        return replace(self, arrays=arrays)

    def split(self, share: float, seed: int) -> tuple[Dataset, Dataset]:
        """Cut it in two by whole trajectories: what is trained on, and what is held out.

        Args:
            share: of the trajectories that is held out, rounded to whole ones.
            seed: says which; what a smaller share holds out, a larger one does too.

        Raises:
            UserError: one of the two would be empty.
        """
        count = len(self.trajectories)
        number = round(share * count)
        if not 0 < number < count:
            left = "none to train on" if number else "none held out"
            message = f"a holdout of {share:g} of its {count} trajectories leaves {left}"
            raise UserError(message, where=str(self.path))
        held_out = np.isin(np.arange(count), np.random.default_rng(seed).permutation(count)[:number])
        return self.subset(~held_out), self.subset(held_out)

    def subset(self, chosen: NDArray[np.bool_]) -> Dataset:
        """The chosen trajectories (T,) alone, in their order."""
        rows = self.trajectories.spread(chosen)
        return replace(self, arrays={key: values[rows] for key, values in self.arrays.items()})

    def column(self, name: str) -> NDArray[np.float32]:
        """One of :data:`COLUMNS` as float32, (N,) or (N, dim)."""
        derived: dict[str, Callable[[], NDArray[Any]]] = {
            "done": lambda: self.done,
            "initial": lambda: self.trajectories.initial(),
            "reward_returns": lambda: self.trajectories.spread(self.trajectories.reward_returns()),
            "cost_returns": lambda: self.trajectories.spread(self.trajectories.cost_returns()),
            "rewards_to_go": lambda: self.trajectories.to_go(self.arrays["rewards"]),
            "costs_to_go": lambda: self.trajectories.to_go(self.arrays["costs"]),
            "next_costs_to_go": lambda: self.trajectories.next_to_go(self.arrays["costs"]),
            "safe": lambda: self.trajectories.spread(self.trajectories.cost_returns() <= self.task.middle_limit),
        }
        values = derived[name]() if name in derived else self.arrays[name]
        return values.astype(np.float32, copy=False)


def data_folder() -> Path:
    """Where DSRL's files lie: ``$DSRL_DATASET_DIR`` or ``~/.dsrl/datasets``."""
    folder = os.environ.get("DSRL_DATASET_DIR")
    return Path(folder) if folder else Path.home() / ".dsrl" / "datasets"


def shipped_demo(task: Task) -> Path:
    """Where a task's demo data lies among those that ship with this project."""
    return Path(__file__).parent / "demo" / f"{task.id}.hdf5"


def dataset_path(task: Task, source: FoundSource) -> Path:
    """Where a task's file is looked for: in :func:`data_folder`, or its ``agents`` or, what does not ship, ``demo``."""
    if source == "dsrl":
        return data_folder() / task.dataset_file
    shipped = shipped_demo(task)
    if source == "agents":
        return data_folder() / "agents" / shipped.name
    return shipped if shipped.exists() else data_folder() / "demo" / shipped.name


def require_file(task: Task, source: FoundSource) -> Path:
    """The path of a task's file.

    Raises:
        UserError: the file is missing, or says itself that it is other data; says what to do.
    """
    path = dataset_path(task, source)
    if path.exists():
        require_label(task, source, path)
        return path
    if source == "dsrl":
        raise UserError(
            f"the dataset of {task.name} is missing: {path}. 'lspc-bench data download {task.name}' gets it; where the "
            "file lies elsewhere, set DSRL_DATASET_DIR to its folder"
        )
    if source == "agents":
        command = f"lspc-bench data collect {task.name} --agents"
        raise UserError(f"the agent-collected data of {task.name} is missing: {path}. '{command}' makes it")
    from harness.data.behaviours import COLLECTABLE

    if task.id in COLLECTABLE:
        raise UserError(f"the demo data of {task.name} is missing: 'lspc-bench data collect {task.name}' makes it")
    raise UserError(
        f"there is no demo data for {task.id}, only for {', '.join(COLLECTABLE)}. Use 'data: {{source: dsrl}}'"
    )


def stated_label(path: Path) -> str | None:
    """What a file's manifest, or the file itself, says that it holds.

    Raises:
        ValueError: the manifest cannot be read.
        UnusableError: the file cannot.
    """
    return (manifest.read(path) or {}).get("label") or label(path)


def known_label(path: Path) -> str | None:
    """Which of :data:`LABELS` a file has, by its manifest or by itself; ``None`` where neither can tell."""
    try:
        said = stated_label(path)
    except (ValueError, UnusableError):  # whoever reads it all says what is wrong
        return None
    return next((one for one in LABELS.values() if one == said), None)


def require_label(task: Task, source: FoundSource, path: Path) -> None:
    """Refuse a file that lies where other data is looked for; demo data is of either kind.

    Raises:
        UserError: says where it belongs.
    """
    said = known_label(path)
    if said is None or source == "demo" or said == LABELS[source]:
        return
    way = "move it elsewhere"
    if said == LABELS["agents"]:
        way = f"move it and its manifest to {dataset_path(task, 'agents')}, and use 'data: {{source: agents}}'"
    elif said == LABELS["demo"]:
        way += f", and name it: 'data: {{files: {{{task.name}: FILE}}}}'"
    raise UserError(f"it is labelled {said!r}, but lies where source {source!r} is looked for: {way}", where=str(path))


def sizes(path: Path) -> tuple[int, int]:
    """The sizes of observations and actions in a file, without reading either.

    Raises:
        UserError: it cannot be read, or has none.
    """
    shapes: dict[str, Shape] = {}

    def judge(found: Mapping[str, Shape]) -> list[str]:
        shapes.update(found)
        return [f"{key} has shape {shape}, not two axes" for key, shape in found.items() if len(shape) != 2]

    _, problems = read_arrays(path, judge, ("observations", "actions"), content=False)
    if problems:
        raise UserError("not a usable dataset: " + "; ".join(problems), where=str(path))
    return shapes["observations"][1], shapes["actions"][1]


def task_of_file(name: str) -> Task:
    """A task of which nothing is known but that its file says its sizes (0 until then)."""
    return Task(
        id=name,
        name=name,
        family="own",
        max_episode_steps=sys.maxsize,
        observation_size=0,
        action_size=0,
        cost_limits=(),
        min_episode_reward=0.0,
        max_episode_reward=1.0,
        min_episode_cost=0.0,
        max_episode_cost=0.0,
        dataset_file="",
    )


def load_dataset(task: Task, source: Source = "dsrl", path: Path | None = None) -> Dataset:
    """Read and check a task's dataset, also against its manifest if it has one; DSRL's file gets one at its first use.

    Args:
        task: the task.
        source: where its file is looked for.
        path: this file instead.

    Raises:
        UserError: the file is missing or anything is wrong with it; every problem is in the message.
    """
    first_use = path is None and source == "dsrl"
    if path is None:
        assert source != "own", "a file of the user's has a path"
        path = require_file(task, source)
    arrays, problems, warnings = read_checked(path, task)
    sha256 = file_sha256(path) if arrays else ""
    changed = manifest.verify(path, sha256) if arrays else None
    if changed:
        problems.append(f"{changed} (if this file is meant, delete the manifest)")
    if problems:
        raise UserError("not a usable dataset: " + "; ".join(problems), where=str(path))
    if first_use and manifest.read(path) is None:
        try:
            manifest.record(path, task, url=None, sha256=sha256)
        except OSError as error:
            warnings.append(f"its SHA-256 cannot be kept beside it, so that changes go unnoticed: {error.strerror}")
    return Dataset(task, path, source, arrays, sha256, tuple(warnings))


def read_checked(path: Path, task: Task) -> tuple[dict[str, NDArray[Any]], list[str], list[str]]:
    """The seven arrays of a file, float32 and bool, what is wrong with them for a task, and what is odd about them."""
    arrays, problems = read_arrays(path, partial(shape_problems, task=task))
    if problems:
        return arrays, problems, []
    try:
        return arrays, *examine(arrays, task)
    except MemoryError:
        return {}, ["there is not enough memory to check it"], []


def read_arrays(
    path: Path, judge: Callable[[Mapping[str, Shape]], list[str]], keys: Sequence[str] = KEYS, content: bool = True
) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """The arrays of a file, or what kept them from being read.

    Args:
        path: the file.
        judge: says what is wrong with the arrays' shapes, before any content is read.
        keys: the arrays' names.
        content: read it; else the arrays are left out.
    """
    problems, missing = [], []
    try:
        with opened(path) as file:
            found = {}
            for key in keys:
                try:
                    array = find_array(file, key)
                except UnusableError as error:
                    problems.append(f"{key} {error}")
                    continue
                if array is None:
                    missing.append(key)
                else:
                    found[key] = array
            problems += [f"the key {key!r} is missing" for key in missing]
            if missing and (layout := foreign_layout(file)):
                problems.append(f"{layout}: 'lspc-bench data convert {path} NEW.hdf5' makes DSRL's format of it")
            problems = problems or judge({key: _shape(key, array) for key, array in found.items()})
            if problems:
                return {}, problems
            require_room(path, found.values())
            if not content:
                return {}, []
            return {key: np.asarray(array[()]).reshape(_shape(key, array)) for key, array in found.items()}, []
    except UnusableError as error:
        return {}, [str(error)]


def _shape(key: str, array: h5py.Dataset) -> Shape:
    """An array's shape; a column of one number a row counts as numbers."""
    shape: Shape = array.shape
    return shape[:1] if len(shape) == 2 and shape[1] == 1 and key not in KEYS[:3] else shape
