"""Who trains what in a results folder that many workers share, on one machine or on several.

::

    <root>/workers/<name>.json    a worker: where it runs and what it does, written again every half minute
    <root>/claims/<group>         the name of the worker that has the cells of this group

A claim is a file that is created exclusively: network file systems keep to that, too, where they refuse locks. A worker
is taken for dead when its file has not changed for five minutes, by the clock of the file server, or when its process
was on this machine and is gone. What it had claimed may then be taken: the claim is renamed, looked at, and removed.
Before it writes anything a worker reads its claim. One that was only paused finds another's name there, or nothing, and
writes no more of that job; what it had begun goes on elsewhere from its last checkpoint.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from harness import processes
from harness.files import writing

LEASE = 300.0
"""Seconds after which a silent worker is dead; far more than network file systems take to tell each other."""
BEAT = 30.0
"""Seconds between two signs of life."""


class ClaimLost(Exception):  # noqa: N818 - nobody's error
    """Another worker has what this one was training: this one was silent for too long."""


@dataclass(frozen=True)
class Worker:
    """One that has a results folder's jobs to do.

    Args:
        name: of its process.
        host: the machine's name.
        process: its number there.
        started: by its clock, seconds of the epoch.
        silent: for how many seconds it has given no sign of life.
        about: what it says of itself: device, job, step, steps.
        claims: the groups that it has.
    """

    name: str
    host: str
    process: int
    started: float
    silent: float
    about: Mapping[str, Any]
    claims: tuple[str, ...] = field(default=())


class Claims:
    """This process as a worker, until the block ends.

    Args:
        root: the results folder.
        lease: see :data:`LEASE`.
        beat: see :data:`BEAT`.

    Raises:
        ResultsError: the folder cannot be written; so do most methods.
    """

    def __init__(self, root: Path, lease: float | None = None, beat: float | None = None) -> None:
        self.root = root
        self.lease, self.beat = LEASE if lease is None else lease, BEAT if beat is None else beat
        self.name = processes.name()
        self.about: dict[str, Any] = {}
        """What others may read of this worker."""
        self._folder, self._mine = root / "claims", _workers(root) / f"{self.name}.json"
        self._since = time.time()
        self._held: set[str] = set()
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._live, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        with writing(self.root):
            for folder in (self._folder, self._mine.parent):
                folder.mkdir(parents=True, exist_ok=True)
            self._say()
            self._bury()
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._heart.join()
        for group in list(self._held):
            self.release(group)
        with suppress(OSError):  # a worker's file without a worker is no harm
            self._mine.unlink()

    @property
    def held(self) -> frozenset[str]:
        """The groups that this worker has, as far as it knows."""
        return frozenset(self._held)

    def acquire(self, group: str) -> bool:
        """Take a group of cells, unless another worker has it."""
        with writing(self._folder):
            for _ in range(10):
                if self._create(group, self.name):
                    self._held.add(group)
                    return True
                holder = self._read(group)
                if holder == self.name:
                    return True
                if holder is None:
                    continue
                if not self._dead(group, holder):
                    return False
                self._remove(group, holder)
        return False

    def release(self, group: str) -> None:
        """Give it back."""
        self._held.discard(group)
        with writing(self._folder):
            self._remove(group, self.name)

    def require(self, group: str) -> None:
        """Ask, before anything is written, whether it is still this worker's.

        Raises:
            ClaimLost: it is not.
        """
        if self._read(group) != self.name:
            self._held.discard(group)
            raise ClaimLost(f"another worker has taken over, since this one gave no sign of life for {self.lease:g} s")

    def holder(self, group: str) -> str | None:
        """The worker that has it, for people; ``None`` where nobody alive does."""
        holder = self._read(group)
        if holder is None or self._dead(group, holder):
            return None
        worker = _described(_workers(self.root) / f"{holder}.json", time.time())
        return f"process {worker.process} on {worker.host}" if worker else "another worker"

    # Claims

    def _create(self, group: str, name: str) -> bool:
        path = self._folder / group
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(name)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return True

    def _read(self, group: str) -> str | None:
        """Who has a group: the empty name where somebody is just about to write theirs; ``None`` where nobody has."""
        for _ in range(5):
            try:
                return (self._folder / group).read_text(encoding="utf-8", errors="replace")
            except FileNotFoundError:
                return None
            except OSError as error:
                if error.errno != errno.ESTALE:  # another machine replaced it while it was being read
                    raise
        return ""

    def _remove(self, group: str, holder: str) -> None:
        """Remove a claim that is ``holder``'s; of several that try, one does."""
        path, aside = self._folder / group, self._folder / f".{group}.{self.name}.tmp"
        try:
            path.rename(aside)
        except FileNotFoundError:
            return
        found = aside.read_text(encoding="utf-8", errors="replace")
        if found != holder:
            # Taken by another in between, who may be about to write its name into this very file. Where a third is
            # quicker than this, the other will find that out.
            try:
                os.link(aside, path)
            except FileExistsError:
                pass
            except OSError:  # a file system without hard links
                self._create(group, found)
        aside.unlink()

    def _dead(self, group: str, holder: str) -> bool:
        if processes.gone(holder):
            return True
        sign = _workers(self.root) / f"{holder}.json" if holder else self._folder / group
        try:
            last = sign.stat().st_mtime
        except FileNotFoundError:  # it left in good order, and was stopped before its claims were gone
            return bool(holder)
        return self._now() - last > self.lease

    def _bury(self) -> None:
        """Remove what dead workers left."""
        for path in sorted(self._folder.glob("[!.]*")):
            holder = self._read(path.name)
            if holder is not None and self._dead(path.name, holder):
                self._remove(path.name, holder)
        for path in sorted(self._mine.parent.glob("*.json")):
            if processes.gone(path.stem):
                path.unlink(missing_ok=True)

    # Signs of life

    def _now(self) -> float:
        """By the clock of whoever keeps the folder: that of a file which is written now."""
        os.utime(self._mine)
        return self._mine.stat().st_mtime

    def _live(self) -> None:
        while not self._over.wait(self.beat):
            with suppress(OSError):  # a disk that is full now may have room in the next half minute
                self._say()

    def _say(self) -> None:
        content = {"host": socket.gethostname(), "process": os.getpid(), "started": self._since, "about": self.about}
        temporary = self._mine.with_name(f".{self.name}.tmp")
        temporary.write_text(json.dumps(content), encoding="utf-8")
        temporary.replace(self._mine)


def _workers(root: Path) -> Path:
    return root / "workers"


def workers(root: Path) -> list[Worker]:
    """The workers of a results folder that are alive, the longest first."""
    held: dict[str, list[str]] = {}
    for path in sorted((root / "claims").glob("[!.]*")):
        with suppress(OSError):  # released meanwhile
            held.setdefault(path.read_text(encoding="utf-8", errors="replace"), []).append(path.name)
    now, found = time.time(), []
    for path in sorted(_workers(root).glob("[!.]*.json")):
        worker = _described(path, now, tuple(held.get(path.stem, ())))
        if worker is not None and worker.silent <= LEASE and not processes.gone(worker.name):
            found.append(worker)
    return sorted(found, key=lambda worker: worker.started)


def _described(path: Path, now: float, claims: tuple[str, ...] = ()) -> Worker | None:
    """A worker by its file; ``None`` where it is gone, or no such file."""
    try:
        content, last = json.loads(path.read_text(encoding="utf-8")), path.stat().st_mtime
        host, process, started = str(content["host"]), int(content["process"]), float(content["started"])
        return Worker(path.stem, host, process, started, max(0.0, now - last), dict(content["about"]), claims)
    except (OSError, ValueError, KeyError, TypeError):
        return None
