"""Engines that start workers: on the devices of one machine, on a SLURM cluster, on a Ray cluster.

A worker is ``lspc-bench work``, wherever it runs; all that a launcher does is to start so many of them, to say how they
are, and to end them. Which of them does what is between the workers, see :mod:`harness.claims`, so whatever an engine
does to one, kill it, move it or start it again, costs no result.

A launcher is a module of this package that has a class ``Launcher`` of :class:`Launcher`'s form, or where ``submit`` is
to offer it, of :class:`Submitter`'s; adding one is adding that file. Its package is imported when it is asked for, with
:func:`require_extra`.
"""

from __future__ import annotations

import pkgutil
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from harness import extras
from harness.errors import UserError, nearest
from harness.files import read_sealed, write_sealed, writing
from harness.notes import Note
from harness.options import Options

if TYPE_CHECKING:
    import click


@dataclass(frozen=True)
class Workload:
    """What is to be run.

    Args:
        results: the folder, prepared, with the suite's plan in it.
        suite: its name there.
        options: of every worker.
        workers: how many; ``None`` means as many as the launcher finds right.
        wait: whether a worker waits for what others have, in case that they die.
    """

    results: Path
    suite: str
    options: Options
    workers: int | None = None
    wait: bool = True

    @property
    def words(self) -> list[str]:
        """Behind ``lspc-bench``, what a worker of it is started with."""
        from harness.cli.options import option_words

        wait = [] if self.wait else ["--no-wait"]
        return ["work", str(self.results.absolute()), "--suite", self.suite, *option_words(self.options), *wait]

    @property
    def command(self) -> list[str]:
        """A worker of it as a process of its own, with this Python."""
        return [sys.executable, "-m", "lspc_bench", *self.words]


@dataclass(frozen=True)
class Launched:
    """Workers that have been started, as a results folder remembers them.

    Args:
        launcher: the name of the module that did.
        suite: which they work on.
        jobs: what the engine calls each of them.
        about: whatever else the launcher needs to find them again.
        since: when, in ISO 8601.
        name: of this launch, in its folder.
    """

    launcher: str
    suite: str
    jobs: tuple[str, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    since: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    name: str = field(default_factory=lambda: secrets.token_hex(4))

    def describe(self) -> str:
        """In one line: how many workers, on which suite, since when, by what name."""
        since = self.since.replace("T", " ").removesuffix("+00:00")
        plural = "" if len(self.jobs) == 1 else "s"
        return f"{len(self.jobs)} worker{plural} on {self.suite} by {self.launcher} since {since} UTC"


class Launcher(Protocol):
    """What an engine is asked to do; its settings are the instance's own.

    ``launch`` and the others raise :class:`harness.errors.UserError` where the engine is not there or refuses, and
    leave nothing running then.
    """

    def launch(self, work: Workload) -> Launched:
        """Start the workers, and come back."""

    @staticmethod
    def states(launched: Launched) -> dict[str, str]:
        """How its jobs are that have not ended, in the engine's words, by job."""

    @staticmethod
    def cancel(launched: Launched) -> None:
        """End its jobs; each keeps what is under way, as after Ctrl-C. Those that have ended are passed over."""


class Submitter(Launcher, Protocol):
    """A launcher that ``lspc-bench submit`` offers."""

    options: ClassVar[Sequence[click.Option]]
    """Those of the command that choose it and say how."""

    @classmethod
    def chosen(cls, given: Mapping[str, Any]) -> Submitter | None:
        """The launcher that a command's values ask for; ``None`` where they ask for none of its kind."""

    def require(self) -> None:
        """Ask, before anything is written, whether the engine is there."""


def launchers() -> list[str]:
    """Their names."""
    return [module.name for module in pkgutil.iter_modules(__path__)]


def find_launcher(name: str) -> type[Launcher]:
    """A launcher by its name.

    Raises:
        UserError: there is none.
    """
    if name not in launchers():
        raise UserError(f"no launcher is called {name!r}.{nearest(name, launchers())} Known: {', '.join(launchers())}")
    found: type[Launcher] = import_module(f"{__name__}.{name}").Launcher
    return found


def submitters() -> list[type[Submitter]]:
    """The launchers that ``lspc-bench submit`` offers."""
    found: list[Any] = [find_launcher(name) for name in launchers()]
    return [one for one in found if hasattr(one, "chosen")]


def require_extra(package: str, extra: str) -> ModuleType:
    """The package that an engine comes in.

    Raises:
        UserError: it is not installed, or cannot be imported.
    """
    try:
        return import_module(package)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == package
        reason = "is not installed" if missing else f"cannot be imported: {error}"
        raise UserError(f"{package} {reason}. This installs it: {extras.install(extra)}") from error


# What a results folder remembers: <root>/launched/<name>.json


def remember(root: Path, launched: Launched) -> None:
    """Note in a results folder what was started for it.

    Raises:
        ResultsError: it cannot be written.
    """
    path = _path(root, launched.name)
    content = {key: getattr(launched, key) for key in Launched.__dataclass_fields__ if key != "name"}
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(path, content)


def remembered(root: Path, note: Note) -> list[Launched]:
    """What was started for a results folder and not forgotten, the oldest first; what cannot be read is noted."""
    found = []
    for path in sorted((root / "launched").glob("[!.]*.json")):
        try:
            content, _ = read_sealed(path)
            found.append(Launched(**{**content, "jobs": tuple(content["jobs"])}, name=path.stem))
        except FileNotFoundError:
            continue
        except (UserError, KeyError, TypeError) as error:
            note(f"what was launched cannot be told: {error}")
    return sorted(found, key=lambda launched: launched.since)


def forget(root: Path, launched: Launched) -> None:
    """Remove the note: nothing of it runs any more."""
    path = _path(root, launched.name)
    with writing(path):
        path.unlink(missing_ok=True)


def _path(root: Path, name: str) -> Path:
    return root / "launched" / f"{name}.json"
