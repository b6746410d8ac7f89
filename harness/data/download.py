"""Downloading DSRL's files: several at once, resumed where they broke off, checked before they get their names.

Beside the file ``NAME`` lie, until it is whole, ``.NAME.part`` with the bytes that came so far, ``.NAME.part.json``
with what the server said of them, and ``.NAME.lock``.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx

from harness import __version__
from harness.data.dataset import DOWNLOAD, read_checked
from harness.data.manifest import SHA256, manifest_path, read, record, verify
from harness.errors import UserError
from harness.files import file_sha256, replacing, write_json
from harness.tasks import Task

ATTEMPTS = 5
"""So many in a row that bring nothing new end a download."""
LONGEST_WAIT = 60.0
"""Seconds between two attempts, whatever the server asks for."""
CHECKING = threading.Lock()
"""One file is checked at a time: all of it is in memory then."""
TIMEOUT = httpx.Timeout(30.0, connect=10.0)

Moved = Callable[[Task, int, int | None], None]


class DownloadError(Exception):
    """One file could not be had; the message says why."""


class _RetryError(Exception):
    """The attempt failed in a way that another may not, after so many seconds."""

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


class _StoppedError(Exception):
    """The whole download is being broken off."""


@dataclass(frozen=True)
class Outcome:
    """How one task's download ended: whether its file is there and verified, and the same in words."""

    task: Task
    good: bool
    text: str


def download(
    tasks: Sequence[Task],
    folder: Path,
    mirror: str = DOWNLOAD,
    *,
    jobs: int = 4,
    force: bool = False,
    first_wait: float = 1.0,
    moved: Moved = lambda *_: None,
    ended: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """Fetch the tasks' files and write a manifest beside each; verify those that are there already.

    One that fails does not keep the others from going on. An interrupt keeps what came, for the next call to go on.

    Args:
        tasks: whose files.
        folder: where they go; it is made.
        mirror: URL of the folder that holds them.
        jobs: how many at once.
        force: fetch again what is there, and accept that it changed.
        first_wait: seconds after an attempt that broke off; doubled with every one in a row that brought nothing.
        moved: called from other threads with a task, the bytes of its file that are here, and their total if known.
        ended: called with every outcome as it comes.

    Returns:
        The outcomes in the order of ``tasks``.

    Raises:
        UserError: the mirror is no URL, the folder cannot be written, or the proxy that the environment sets is wrong.
    """
    _require_url(mirror)
    _require_folder(folder)
    with _Web() as web, ThreadPoolExecutor(jobs) as pool:
        downloader = _Downloader(web, folder, mirror.rstrip("/"), force, first_wait, moved)
        futures = [pool.submit(downloader.outcome, task) for task in tasks]
        try:
            for future in as_completed(futures):
                ended(future.result())
        except BaseException:  # above all an interrupt
            pool.shutdown(wait=False, cancel_futures=True)
            web.stop()
            raise
    return [future.result() for future in futures]


def _require_url(mirror: str) -> None:
    with suppress(httpx.InvalidURL):
        url = httpx.URL(mirror)
        if url.scheme in ("http", "https") and url.host:
            return
    raise UserError(f"the mirror must be the http:// or https:// URL of a folder, not {mirror!r}")


def _require_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {str(folder)!r}: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to the folder {str(folder)!r}; --folder names another")


class _Web:
    """The HTTP client that all threads share, and the means to stop them while they wait for it."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self._sockets: list[socket.socket] = []
        headers = {"Accept-Encoding": "identity", "User-Agent": f"lspc-bench/{__version__}"}
        try:
            self._client = httpx.Client(follow_redirects=True, timeout=TIMEOUT, headers=headers)
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            raise UserError(f"the proxy that the environment sets does not work: {error}") from error

    def __enter__(self) -> _Web:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def get(self, url: str, headers: dict[str, str]) -> AbstractContextManager[httpx.Response]:
        """Ask for a URL; its content is yet to be read."""
        return self._client.stream("GET", url, headers=headers, extensions={"trace": self._trace})

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        """Note the socket of every new connection."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._sockets.append(info["return_value"].get_extra_info("socket"))
            self.wait(0)

    def wait(self, seconds: float) -> None:
        """Wait, unless the download is being stopped.

        Raises:
            _StoppedError: it is.
        """
        if self.stopped.wait(seconds):
            raise _StoppedError

    def stop(self) -> None:
        """Make every thread end soon: one that waits for the network sees its connection end."""
        self.stopped.set()
        for connection in list(self._sockets):
            with suppress(OSError):  # closed long ago
                socket.socket.shutdown(connection, socket.SHUT_RDWR)  # SSLSocket's own is not safe while another reads


@dataclass(frozen=True)
class _Entity:
    """What a server said of the file it sends, ``None`` where it said nothing.

    Args:
        url: where the file was asked for.
        size: in bytes.
        validator: what tells this version from another: a strong ETag, or else the time of the last change.
        sha256: in hexadecimal.
    """

    url: str
    size: int | None
    validator: str | None
    sha256: str | None

    @classmethod
    def of(cls, url: str, response: httpx.Response) -> _Entity:
        """Read the headers of a response with status 200 or 206.

        Hugging Face's X-Linked-Size and X-Linked-ETag describe the file itself; they come with the redirect to it.
        """
        size = _total(response) if response.status_code == 206 else _number(response.headers.get("Content-Length"))
        sha256 = None
        for headers in (each.headers for each in (*response.history, response)):
            linked = _number(headers.get("X-Linked-Size"))
            if None not in (size, linked) and size != linked:
                raise DownloadError(f"{url} sends {size} bytes, though its X-Linked-Size is {linked}")
            size = linked if size is None else size
            digest = headers.get("X-Linked-ETag", "").strip('"').lower()
            sha256 = digest if SHA256.fullmatch(digest) else sha256
        return cls(url, size, _validator(response), sha256)

    def continued(self, response: httpx.Response, held: int) -> _Entity | None:
        """The same with what a response with status 206 adds; ``None`` if it does not go on after ``held`` bytes."""
        other = _Entity.of(self.url, response)
        goes_on = (
            response.headers.get("Content-Range", "").startswith(f"bytes {held}-")
            and self.size in (None, other.size)
            and other.validator in (None, self.validator)
            and other.sha256 == self.sha256
        )
        return replace(self, size=other.size) if goes_on else None


def _validator(response: httpx.Response) -> str | None:
    etag: str = response.headers.get("ETag", "")
    modified: str | None = response.headers.get("Last-Modified")
    return etag if etag.startswith('"') else modified


def _total(response: httpx.Response) -> int | None:
    """The file's size by a Content-Range such as ``bytes 5-9/10`` or ``bytes */10``."""
    return _number(response.headers.get("Content-Range", "").rpartition("/")[2])


def _number(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch("[0-9]+", text) else None


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the server asks to wait."""
    text = response.headers.get("Retry-After", "")
    with suppress(ValueError, TypeError):  # no date, or one without a time zone
        return float(text) if text.isdecimal() else (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    return 0.0


class _Partial:
    """The bytes of a file that came so far, and what they are a part of."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f".{path.name}.part")
        self.sidecar = path.with_name(f".{path.name}.part.json")

    @property
    def held(self) -> int:
        """How many bytes are here."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def entity(self, url: str) -> _Entity | None:
        """What the bytes are a part of; ``None`` where they are no good for going on with this URL."""
        try:
            entity = _Entity(**json.loads(self.sidecar.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return entity if self.held and entity.url == url and entity.validator else None

    def begin(self, entity: _Entity) -> None:
        """Drop what is here and begin another."""
        self.path.write_bytes(b"")
        write_json(self.sidecar, asdict(entity))

    def remove(self) -> None:
        """It is of no use."""
        self.path.unlink(missing_ok=True)
        self.sidecar.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Downloader:
    """Fetches files, each in the thread that asks for it."""

    web: _Web
    folder: Path
    mirror: str
    force: bool
    first_wait: float
    moved: Moved

    def outcome(self, task: Task) -> Outcome:
        """Fetch or verify a task's file."""
        path = self.folder / task.dataset_file
        try:
            with _locked(path):
                return Outcome(task, True, self._obtain(task, path))
        except DownloadError as error:
            return Outcome(task, False, str(error))
        except OSError as error:
            return Outcome(task, False, f"cannot write {error.filename or path}: {error.strerror}")

    def _obtain(self, task: Task, path: Path) -> str:
        if path.exists() and not self.force:
            return self._verify(task, path)
        expected = None if self.force else _recorded(path)
        partial = _Partial(path)
        entity = self._fetch(task, partial)
        sha256 = file_sha256(partial.path)
        problem = self._refusal(task, partial, sha256, entity, expected)
        if problem:
            partial.remove()
            raise DownloadError(f"{entity.url} does not give the data: {problem}")
        _install(partial, path)
        manifest = record(path, task, entity.url, sha256)
        return f"downloaded, {manifest['size']:,} bytes, SHA-256 {sha256}"

    def _verify(self, task: Task, path: Path) -> str:
        """Check a file that is there already."""
        known = manifest_path(path).exists()
        problem = verify(path) if known else self._data_problem(task, path)
        if problem:
            raise DownloadError(f"already there, but {problem}; delete {path}, or fetch it again with --force")
        if known:
            return "already there, verified"
        return f"already there, valid; recorded its SHA-256 {record(path, task, url=None)['sha256']}"

    def _data_problem(self, task: Task, path: Path) -> str:
        with CHECKING:
            _, problems, _ = read_checked(path, task)
        return f"it is no usable dataset of {task.name} ({'; '.join(problems)})" if problems else ""

    def _refusal(self, task: Task, partial: _Partial, sha256: str, entity: _Entity, expected: str | None) -> str:
        """Why a complete file may not get its name; empty if it may."""
        if entity.sha256 not in (None, sha256):
            return f"its SHA-256 is {sha256}, the server says {entity.sha256}"
        problem = self._data_problem(task, partial.path)
        if not problem and expected not in (None, sha256):
            return f"it changed there: its SHA-256 is {sha256}, formerly {expected}. --force accepts the new one"
        return problem

    def _fetch(self, task: Task, partial: _Partial) -> _Entity:
        """Attempt until the file is complete, and as long as attempts bring something."""
        url = f"{self.mirror}/{task.dataset_file}"
        most, failures = partial.held, 0
        while True:
            try:
                return self._attempt(task, url, partial)
            except (httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:
                raise DownloadError(f"{url} redirects to nowhere: {error}") from error
            except (httpx.HTTPError, _RetryError) as error:
                failures = 0 if partial.held > most else failures + 1
                most = max(most, partial.held)
                if failures == ATTEMPTS:
                    reason = str(error) or type(error).__name__
                    raise DownloadError(
                        f"{url}: {reason}; gave up after {ATTEMPTS} attempts without progress"
                    ) from error
                after = error.after if isinstance(error, _RetryError) else 0.0
                self.web.wait(min(max(after, self.first_wait * 2**failures), LONGEST_WAIT))

    def _attempt(self, task: Task, url: str, partial: _Partial) -> _Entity:
        """Ask once for what is missing."""
        entity, held = partial.entity(url), partial.held
        if entity and held == entity.size:
            return entity
        resume = {"Range": f"bytes={held}-", "If-Range": entity.validator or ""} if entity else {}
        with self.web.get(url, resume) as response:
            status = response.status_code
            if status == 200:
                entity = _Entity.of(url, response)
                partial.begin(entity)
            elif entity and status == 416 and entity.size is None and _total(response) == held:
                return entity
            elif status in (206, 416):
                entity = entity.continued(response, held) if entity and status == 206 else None
                if entity is None:
                    partial.remove()
                    raise _RetryError("the server does not go on where it broke off")
            elif status in (408, 429) or status >= 500:
                raise _RetryError(f"status {status} {response.reason_phrase}", _retry_after(response))
            else:
                raise DownloadError(f"{url}: status {status} {response.reason_phrase}; --mirror names another place")
            self._receive(task, response, partial, entity)
        return entity

    def _receive(self, task: Task, response: httpx.Response, partial: _Partial, entity: _Entity) -> None:
        """Append what the server sends."""
        held, size = partial.held, entity.size
        with partial.path.open("ab") as file:
            for chunk in response.iter_raw():
                held += file.write(chunk)
                if size is not None and held > size:
                    partial.remove()
                    raise DownloadError(f"{entity.url} sends more than the {size} bytes that it announced")
                self.moved(task, held, size)
                self.web.wait(0)
        self.web.wait(0)  # a connection that stop() ended can look like the end of the content
        if size is not None and held < size:
            raise _RetryError(f"it ended after {held} of {size} bytes")


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


def _recorded(path: Path) -> str | None:
    """The SHA-256 that the file had when it was here before."""
    try:
        manifest = read(path)
    except ValueError as error:
        raise DownloadError(f"{error}; delete it, or pass --force") from error
    return str(manifest["sha256"]) if manifest else None


def _install(partial: _Partial, path: Path) -> None:
    """Give a complete file its name."""
    with replacing(path) as temporary:
        partial.path.replace(temporary)
        partial.remove()
        manifest_path(path).unlink(missing_ok=True)  # of the file that goes
