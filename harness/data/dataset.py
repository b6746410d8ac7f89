"""Reading DSRL's HDF5 files, and everything that can be wrong with one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from harness.data import manifest
from harness.data.trajectories import Trajectories
from harness.errors import UserError
from harness.files import file_sha256
from harness.tasks import Task

FoundSource = Literal["dsrl", "agents", "demo"]
"""Whose files are found by the task alone."""
Source = Literal[FoundSource, "own"]
KEYS = ("observations", "next_observations", "actions", "rewards", "costs", "terminals", "timeouts")
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
    "safe",
)
"""What a batch can hold. ``done`` is terminals OR timeouts, ``initial`` marks a trajectory's first step. Returns are
undiscounted, of the whole trajectory; to go means from this step on. ``safe`` marks the steps of trajectories that cost
no more than the middle one of the task's limits."""

# Logged actions of unbounded Gaussian policies may leave [-1, 1] a little (the simulator clips them); actions that
# were never scaled to it leave it by far.
GROSS_ACTION = 10.0
DOWNLOAD = "https://huggingface.co/datasets/YYY-45/DSRL/resolve/main"


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
        UserError: the file is missing; says how to get it.
    """
    path = dataset_path(task, source)
    if path.exists():
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


def sizes(path: Path) -> tuple[int, int]:
    """The sizes of observations and actions in a file.

    Raises:
        UserError: it cannot be read, or has none.
    """
    arrays, problems = read_arrays(path, ("observations", "actions"))
    problems += [f"{key} has shape {values.shape}, not two axes" for key, values in arrays.items() if values.ndim != 2]
    if problems:
        raise UserError("not a usable dataset: " + "; ".join(problems), where=str(path))
    return arrays["observations"].shape[1], arrays["actions"].shape[1]


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
    arrays, problems = read_arrays(path)
    warnings: list[str] = []
    if not problems:
        problems, warnings = examine(arrays, task)
    sha256 = file_sha256(path) if arrays else ""
    changed = manifest.verify(path, sha256) if arrays else None
    if changed:
        problems.append(f"{changed} (if this file is meant, delete the manifest)")
    if problems:
        raise UserError("not a usable dataset: " + "; ".join(problems), where=str(path))
    if first_use and not manifest.manifest_path(path).exists():
        try:
            manifest.record(path, task, url=None, sha256=sha256)
        except OSError as error:
            warnings.append(f"its SHA-256 cannot be kept beside it, so that changes go unnoticed: {error.strerror}")
    return Dataset(task, path, source, arrays, sha256, tuple(warnings))


def read_arrays(path: Path, keys: Sequence[str] = KEYS) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """The arrays of a file, or what kept them from being read."""
    import h5py

    if path.is_dir():
        return {}, ["it is a folder"]
    if not path.exists():
        return {}, ["there is no such file"]
    if not os.access(path, os.R_OK):
        return {}, ["no permission to read it"]
    if not h5py.is_hdf5(path):
        return {}, ["it is no HDF5 file"]
    arrays: dict[str, NDArray[Any]] = {}
    problems = []
    try:
        with h5py.File(path, "r") as file:
            for key in keys:
                if key not in file or not isinstance(file[key], h5py.Dataset):
                    problems.append(f"the key {key!r} is missing")
                    continue
                values = np.asarray(file[key][()])
                if values.ndim == 2 and values.shape[1] == 1 and key not in KEYS[:3]:
                    values = values[:, 0]
                if values.dtype.kind not in "buif":
                    problems.append(f"{key} holds {values.dtype}, not numbers")
                    continue
                arrays[key] = values
    except (OSError, KeyError, RuntimeError, ValueError) as error:  # whichever of them h5py stumbles with
        return {}, [f"it is truncated or damaged ({error})"]
    return arrays, problems


def examine(arrays: dict[str, NDArray[Any]], task: Task) -> tuple[list[str], list[str]]:
    """Check shapes and values, and bring the arrays to float32 and bool in place.

    Returns:
        Problems, for which the data is refused, and warnings.
    """
    rows = len(arrays["observations"]) if arrays["observations"].ndim else 0
    widths = {
        "observations": task.observation_size,
        "next_observations": task.observation_size,
        "actions": task.action_size,
    }
    problems = []
    for key, values in arrays.items():
        shape = (rows, widths[key]) if key in widths else (rows,)
        if values.shape != shape:
            problems.append(f"{key} has shape {values.shape}, {task.name} wants {shape}")
    if rows == 0:
        problems.append("it holds no transition")
    if problems:
        return problems, []
    warnings = []
    for key, values in arrays.items():
        if key in ("terminals", "timeouts"):
            if not np.isin(values, (0, 1)).all():
                problems.append(f"{key} holds other values than 0 and 1")
            arrays[key] = values.astype(bool)
            continue
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is found
            arrays[key] = values.astype(np.float32)
        wrong = int((~np.isfinite(arrays[key])).sum())
        if wrong:
            problems.append(f"{key} holds {wrong} values that are not finite in float32")
    if problems:
        return problems, []
    extreme = float(np.abs(arrays["actions"]).max())
    if extreme > GROSS_ACTION:
        problems.append(f"actions reach {extreme:g}; they are to lie in [-1, 1]")
    elif extreme > 1 + 1e-6:
        outside = int((np.abs(arrays["actions"]) > 1 + 1e-6).any(1).sum())
        warnings.append(f"{outside} of {rows} actions leave [-1, 1] (up to {extreme:g})")
    if (arrays["costs"] < 0).any():
        problems.append("costs are negative in places")
    both = int((arrays["terminals"] & arrays["timeouts"]).sum())
    if both:
        warnings.append(f"{both} rows carry both terminal flags; they count as one end")
    if not (arrays["terminals"][-1] or arrays["timeouts"][-1]):
        warnings.append("the last trajectory has no end; it counts as a trajectory of its own")
    return problems, warnings
