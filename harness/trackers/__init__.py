"""Trackers: where a run's numbers go beside the results, as they come.

A tracker of one's own is a class that derives from :class:`Tracker`, given as ``--track MODULE:CLASS``::

    class Printer(Tracker):
        def log(self, run, step, values):
            print(run.name, step, values)

Each tracker lives in a process of its own (:mod:`harness.tracking`), so whatever it does, a run goes on and its results
stay as they are.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness import extras
from harness.errors import UserError, nearest
from harness.guard import UserCodeError, guard, restored


@dataclass(frozen=True)
class Run:
    """One agent of a suite: a cell under the suite's label.

    Args:
        id: 16 hexadecimal digits, of suite, label and cell.
        suite: its name.
        task: the task's name, such as ``BallRun``.
        algorithm: the suite's label, with the point of its grid and of the data's.
        cell: the cell's hash, after which its folder in the results is called.
        seed: of the agent.
        cost_limit: that it is trained for, ``None`` where training ignores the limit.
        config: what else determines its results: hyperparameters, data, evaluation.
    """

    id: str
    suite: str
    task: str
    algorithm: str
    cell: str
    seed: int
    cost_limit: float | None
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """For people: ``BallRun lspc seed 0 limit 10``."""
        limit = "" if self.cost_limit is None else f" limit {self.cost_limit:g}"
        return f"{self.task} {self.algorithm} seed {self.seed}{limit}"

    @property
    def group(self) -> str:
        """Of all seeds and limits: ``suite/task/algorithm``."""
        return f"{self.suite}/{self.task}/{self.algorithm}"

    @property
    def path(self) -> Path:
        """Where a tracker that writes files puts those of the run: a relative path, grouped as :attr:`group` is."""
        parts = (self.suite, self.task, self.algorithm)
        limit = "" if self.cost_limit is None else f"-limit-{self.cost_limit:g}"
        return Path(*(re.sub(r"[^\w.=+-]+", "_", part)[:100] for part in parts)) / f"seed-{self.seed}{limit}-{self.id}"


class Tracker(ABC):
    """Takes in the numbers of many runs at once.

    It is made with the folder in which it may write, ``RESULTS/trackers/NAME``; the folder is there. Its methods are
    called one after the other, in the tracker's own process. What one of them raises ends the tracker, not the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, run: Run) -> None:  # noqa: B027 - a tracker need not care
        """A run begins, or begins again: after an interruption everything comes anew, from its first step on.

        What was sent of the same :attr:`Run.id` before is to be dropped, so that no step is there twice.
        """

    @abstractmethod
    def log(self, run: Run, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step, by name; any may be NaN. Steps of evaluations may come after later steps of training.

        Args:
            run: that has begun.
            step: gradient steps made.
            values: ``train/METRIC``, or of one evaluation ``evaluation/POLICY/...``, or ``diagnostics/...``.
        """

    def end(self, run: Run, final: Mapping[str, float | str]) -> None:  # noqa: B027
        """A run is over.

        Args:
            run: that has begun.
            final: its row: ``state`` (``done``, ``failed`` or ``diverged``), ``reason`` where there is one, and where
                it is done what its last evaluation measured, ``final/POLICY/...``.
        """

    def close(self) -> None:  # noqa: B027
        """Nothing comes any more; runs that have not ended were interrupted."""


@dataclass(frozen=True)
class _Builtin:
    """A tracker that comes with the harness.

    Args:
        target: ``module:class``.
        package: what it needs beside the harness, an extra of the same name as the tracker.
    """

    target: str
    package: str | None = None


BUILTINS = {
    "csv": _Builtin("harness.trackers.csv_files:CsvFiles"),
    "tensorboard": _Builtin("harness.trackers.tensorboard:TensorBoard", "tensorboard"),
    "wandb": _Builtin("harness.trackers.weights_and_biases:WeightsAndBiases", "wandb"),
}
TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def check_name(name: str) -> str:
    """The name, if a tracker may be called so; nothing is imported.

    Raises:
        ValueError: it is neither a built-in tracker nor ``MODULE:CLASS``.
    """
    if name not in BUILTINS and not TARGET.fullmatch(name):
        known = f"Known: {', '.join(BUILTINS)}, and MODULE:CLASS"
        raise ValueError(f"no tracker is called {name!r}.{nearest(name, BUILTINS)} {known}")
    return name


def require(name: str) -> None:
    """Refuse a tracker that cannot be had. A built-in one's package is looked for, a class of the user's imported.

    Raises:
        UserError: it is not there, with the line that installs it, or is no tracker.
    """
    builtin = BUILTINS.get(name)
    if builtin is None:
        load(name)
    elif builtin.package is not None and find_spec(builtin.package) is None:
        raise UserError(f"the tracker {name} needs {builtin.package}, not installed here: {extras.install(name)}")


def load(name: str) -> type[Tracker]:
    """The class of a tracker.

    Args:
        name: as :func:`check_name` takes it.

    Raises:
        UserError: it cannot be imported, or is no tracker.
    """
    module, _, attribute = (BUILTINS[name].target if name in BUILTINS else name).partition(":")
    try:
        with guard(f"the tracker {name!r}", "import"), restored():
            found = getattr(import_module(module), attribute)
    except UserCodeError as error:
        raise UserError(f"the tracker {name!r} cannot be imported: {error.reason}") from error
    if not (isinstance(found, type) and issubclass(found, Tracker)):
        raise UserError(f"the tracker {name!r} is no subclass of harness.trackers.Tracker")
    if missing := sorted(found.__abstractmethods__):
        raise UserError(f"the tracker {name!r} does not implement {', '.join(missing)}")
    return found
