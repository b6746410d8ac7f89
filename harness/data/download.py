"""Downloading DSRL's files: several at once, resumed where they broke off, checked before they get their names.

Hugging Face's client does the downloading (:mod:`harness.data.transfer`), in processes that can be ended whatever a
server does. Beside the file ``NAME`` lie, until it is whole, ``.NAME.part``, ``.NAME.part.json`` and ``.NAME.lock``.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from harness import extras
from harness.data.dataset import LABELS, read_checked, require_label
from harness.data.hdf5 import label
from harness.data.manifest import manifest_path, read, record, require_place, verify
from harness.data.transfer import SLOWEST, SPAN, STALLED, Entity, Partial, transfer
from harness.errors import UserError
from harness.files import file_sha256, replacing
from harness.guard import UserCodeError
from harness.pool import Pool, WorkerDied
from harness.tasks import Task

ATTEMPTS = 5
"""Processes that may be ended because next to nothing arrived, or die, before a download counts as failed."""
LOOK = 0.1
"""Seconds between two looks at how far downloads are."""

Moved = Callable[[Task, int, int | None], None]


class DownloadError(Exception):
    """One file could not be had; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """How one task's download ended: whether its file is there and verified, and the same in words."""

    task: Task
    good: bool
    text: str


def download(
    tasks: Sequence[Task],
    folder: Path,
    mirror: str | None = None,
    *,
    jobs: int = 4,
    force: bool = False,
    moved: Moved = lambda *_: None,
    ended: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """Fetch the tasks' files and write a manifest beside each; verify those that are there already.

    One that fails does not keep the others from going on. An interrupt keeps what came, for the next call to go on.

    Args:
        tasks: whose files.
        folder: where they go; it is made.
        mirror: URL of a folder that holds them; ``None`` for DSRL's data set at Hugging Face.
        jobs: how many at once.
        force: fetch again what is there, and accept that it changed.
        moved: called with a task, the bytes of its file that are here, and their total if known.
        ended: called with every outcome as it comes.

    Returns:
        The outcomes in the order of ``tasks``.

    Raises:
        UserError: the mirror is no URL, the folder cannot be written, or Hugging Face's client is not installed.
    """
    _require_url(mirror)
    _require_folder(folder)
    if find_spec("huggingface_hub") is None:
        raise UserError(f"downloading needs huggingface-hub, not installed here: {extras.install('download')}")
    outcomes: dict[str, Outcome] = {}

    def has_ended(fetch: _Fetch, step: Callable[[], str | None]) -> bool:
        outcome = _told(fetch, step)
        if outcome is not None:
            outcomes[fetch.task.id] = outcome
            ended(outcome)
        return outcome is not None

    with ExitStack() as locks, Pool(jobs) as pool:
        fetches = [_Fetch(task, folder / task.dataset_file, mirror and mirror.rstrip("/"), force) for task in tasks]
        running: dict[Future[Entity], _Fetch] = {}
        for fetch in sorted(fetches, key=lambda one: one.path.exists()):  # the network is slower than the disk
            if not has_ended(fetch, partial(fetch.begin, locks)):
                running[pool.submit(transfer, fetch.path, fetch.mirror, not force, SPAN, tries=ATTEMPTS)] = fetch
        while running:
            done, _ = wait(running, LOOK, FIRST_COMPLETED)
            for future, fetch in list(running.items()):
                if held := fetch.part.held:
                    entity = fetch.part.entity
                    moved(fetch.task, held, entity.size if entity else None)
                if future in done:
                    del running[future]
                    has_ended(fetch, partial(fetch.finish, future))
    return [outcomes[task.id] for task in tasks]


def _told(fetch: _Fetch, step: Callable[[], str | None]) -> Outcome | None:
    """Take a step of a download; how it ended, if it did."""
    try:
        text = step()
        return None if text is None else Outcome(fetch.task, True, text)
    except DownloadError as error:
        return Outcome(fetch.task, False, _shown(error))
    except OSError as error:
        return Outcome(fetch.task, False, f"cannot write {error.filename or fetch.path}: {error.strerror}")
    except Exception as error:  # whatever a file can bring about ends it alone
        return Outcome(fetch.task, False, _shown(f"{fetch.path}: {type(error).__name__}: {error}"))


def _require_url(mirror: str | None) -> None:
    try:
        parts = urlsplit(mirror or "")
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        right = False
    if mirror is not None and not right:
        raise UserError(f"the mirror must be the http:// or https:// URL of a folder, not {mirror!r}")


def _require_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {str(folder)!r}: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to the folder {str(folder)!r}; --folder names another")


def _shown(text: object) -> str:
    """What a server said, or an exception, in one line of bearable length."""
    line = "".join(character if character.isprintable() else " " for character in str(text))
    return line if len(line) <= 1500 else f"{line[:1500]}..."


@dataclass
class _Fetch:
    """The download of one task's file."""

    task: Task
    path: Path
    mirror: str | None
    force: bool
    expected: str | None = None
    """The SHA-256 that it must have."""

    @property
    def part(self) -> Partial:
        """What came so far."""
        return Partial(self.path)

    def begin(self, locks: ExitStack) -> str | None:
        """Take the file's lock and verify what is there; ``None`` if the file is to be fetched."""
        locks.enter_context(_locked(self.path))
        if self.path.exists() and not self.force:
            return self._verify()
        self.expected = _recorded(self.path, self.force)
        return None

    def finish(self, future: Future[Entity]) -> str:
        """Check what came, and give it its name."""
        entity = _result(future, self.mirror)
        sha256 = file_sha256(self.part.path)
        problem = self._refusal(sha256, entity)
        if problem:
            self.part.remove()
            raise DownloadError(f"{entity.url} does not give the data: {problem}")
        _install(self.part, self.path)
        manifest = record(self.path, self.task, entity.url, sha256)
        return f"downloaded, {manifest['size']:,} bytes, SHA-256 {sha256}"

    def _verify(self) -> str:
        """Check a file that is there already."""
        try:
            require_label(self.task, "dsrl", self.path)
        except UserError as error:
            raise DownloadError(f"already there, but {error}") from error
        try:
            known = read(self.path) is not None
        except ValueError:
            known = True  # and wrong
        problem = verify(self.path) if known else self._data_problem(self.path)
        if problem:
            raise DownloadError(f"already there, but {problem}; delete {self.path}, or fetch it again with --force")
        if known:
            return "already there, verified"
        try:
            sha256 = record(self.path, self.task, url=None)["sha256"]
        except FileExistsError as error:
            return f"already there, valid; its SHA-256 is not kept, as {error.strerror}"
        return f"already there, valid; recorded its SHA-256 {sha256}"

    def _data_problem(self, path: Path) -> str:
        _, problems, _ = read_checked(path, self.task)
        if problems:
            return f"it is no usable dataset of {self.task.name} ({'; '.join(problems)})"
        said = label(path)
        return f"it is labelled {said!r}" if said in (LABELS["agents"], LABELS["demo"]) else ""

    def _refusal(self, sha256: str, entity: Entity) -> str:
        """Why a complete file may not get its name; empty if it may."""
        if entity.sha256 not in (None, sha256):
            return f"its SHA-256 is {sha256}, the server says {entity.sha256}"
        problem = self._data_problem(self.part.path)
        if not problem and self.expected not in (None, sha256):
            return f"it changed there: its SHA-256 is {sha256}, formerly {self.expected}. --force accepts the new one"
        return problem


def _result(future: Future[Entity], mirror: str | None) -> Entity:
    """What the process of a download gives, its failures in the user's words."""
    try:
        return future.result()
    except UserCodeError as error:
        kind, _, reason = error.reason.partition(": ")
        said = reason if kind == "RefusedError" else f"{mirror or 'Hugging Face'}: {error.reason}"
        raise DownloadError(said) from error
    except WorkerDied as error:
        slow = f"less than {SLOWEST} bytes a second arrived for {SPAN:g} s, {error.times} times in a row"
        raise DownloadError(slow if error.exitcode == STALLED else str(error)) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep others from downloading the same file; the lock goes with the process, however it ends."""
    lock = path.with_name(f".{path.name}.lock")
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DownloadError("another process is downloading it") from error
        if not os.fstat(file.fileno()).st_nlink:  # whoever held it removed it before we got it
            raise DownloadError("another process has been downloading it; run the command again")
        try:
            yield
        finally:
            lock.unlink()


def _recorded(path: Path, force: bool) -> str | None:
    """The SHA-256 that the file had when it was here before, ``None`` if it was not or may be another."""
    try:
        require_place(path)
        manifest = read(path)
    except FileExistsError as error:
        raise DownloadError(f"{error.filename} is in the way: it is no manifest. Move it elsewhere") from error
    except ValueError as error:
        if force:
            return None
        raise DownloadError(f"{error}; delete it, or pass --force") from error
    return None if force or manifest is None else str(manifest["sha256"])


def _install(part: Partial, path: Path) -> None:
    """Give a complete file its name."""
    with replacing(path) as temporary:
        part.path.replace(temporary)
        part.remove()
        manifest_path(path).unlink(missing_ok=True)  # of the file that goes
