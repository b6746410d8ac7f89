"""Downloading DSRL's files: several at once, resumed where they broke off, checked before they get their names.

Beside the file ``NAME`` lie, until it is whole, ``.NAME.part`` with the bytes that came so far, ``.NAME.part.json``
with what the server said of them, and ``.NAME.lock``.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx

from harness import __version__
from harness.data.dataset import DOWNLOAD, read_checked
from harness.data.manifest import SHA256, manifest_path, read, record, require_place, verify
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
LARGEST = 2**36
"""Bytes; whoever announces or sends more sends no dataset."""
RESERVE = 2**26
"""Bytes of the disk that a download leaves free."""
REDIRECTS = 20
"""One behind the other; more lead nowhere."""
DIGITS = 18
"""A header's number with more of them means nothing."""

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
            self._client = httpx.Client(timeout=TIMEOUT, headers=headers)
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            raise UserError(f"the proxy that the environment sets does not work: {error}") from error

    def __enter__(self) -> _Web:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    @contextmanager
    def get(self, url: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """Ask for a URL; its content is yet to be read, and that of redirects, which may be endless, is not.

        Raises:
            httpx.HTTPError: of any kind; ``TooManyRedirects`` among them.
        """
        request = self._client.build_request("GET", url, headers=headers, extensions={"trace": self._trace})
        history: list[httpx.Response] = []
        while True:
            response = self._client.send(request, stream=True)
            try:
                response.history = list(history)
                if response.next_request is None:
                    yield response
                    return
                history.append(response)
                if len(history) > REDIRECTS:
                    raise httpx.TooManyRedirects(f"more than {REDIRECTS} redirects", request=request)
                request = response.next_request
                request.extensions = {**request.extensions, "trace": self._trace}
            finally:
                response.close()

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
    """What can be sent back to the server to name this version."""
    etag: str = response.headers.get("ETag", "")
    validator: str = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
    return validator if validator.isascii() and validator.isprintable() and validator else None


def _total(response: httpx.Response) -> int | None:
    """The file's size by a Content-Range such as ``bytes 5-9/10`` or ``bytes */10``."""
    return _number(response.headers.get("Content-Range", "").rpartition("/")[2])


def _number(text: str | None) -> int | None:
    """A header's number of bytes.

    Raises:
        DownloadError: nothing is of that size.
    """
    if not text or not re.fullmatch("[0-9]+", text):
        return None
    digits = text.lstrip("0") or "0"
    if len(digits) > DIGITS:
        raise DownloadError(f"the server announces a size of {len(digits)} digits")
    return int(digits)


def _shown(text: object) -> str:
    """What a server said, or an exception, in one line of bearable length."""
    line = "".join(character if character.isprintable() else " " for character in str(text))
    return line if len(line) <= 1500 else f"{line[:1500]}..."


def _retry_after(response: httpx.Response) -> float:
    """Seconds that the server asks to wait."""
    text = response.headers.get("Retry-After", "")
    with suppress(ValueError, TypeError, OverflowError):  # no date, or one without a time zone, or of no calendar
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
        if not isinstance(entity.size, int | None):
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
        except _StoppedError:
            raise
        except DownloadError as error:
            return Outcome(task, False, _shown(error))
        except OSError as error:
            return Outcome(task, False, f"cannot write {error.filename or path}: {error.strerror}")
        except Exception as error:  # whatever a server can bring about ends this file alone
            return Outcome(task, False, _shown(f"{self.mirror}: {type(error).__name__}: {error}"))

    def _obtain(self, task: Task, path: Path) -> str:
        if path.exists() and not self.force:
            return self._verify(task, path)
        expected = _recorded(path, self.force)
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
        try:
            known = read(path) is not None
        except ValueError:
            known = True  # and wrong
        problem = verify(path) if known else self._data_problem(task, path)
        if problem:
            raise DownloadError(f"already there, but {problem}; delete {path}, or fetch it again with --force")
        if known:
            return "already there, verified"
        try:
            return f"already there, valid; recorded its SHA-256 {record(path, task, url=None)['sha256']}"
        except FileExistsError as error:
            return f"already there, valid; its SHA-256 is not kept, as {error.strerror}"

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
                    reason = _shown(error) or type(error).__name__
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
        most = self._require_room(entity, held, partial)
        with partial.path.open("ab") as file:
            for chunk in response.iter_raw():
                held += len(chunk)
                if held > most:
                    partial.remove()
                    announced = f"the {size} bytes that it announced" if size is not None else f"{most} bytes"
                    raise DownloadError(f"{entity.url} sends more than {announced}")
                file.write(chunk)
                self.moved(task, held, size)
                self.web.wait(0)
        self.web.wait(0)  # a connection that stop() ended can look like the end of the content
        if size is not None and held < size:
            raise _RetryError(f"it ended after {held} of {size} bytes")

    def _require_room(self, entity: _Entity, held: int, partial: _Partial) -> int:
        """How many bytes a file may have: as many as are announced, or what the disk has room for.

        Raises:
            DownloadError: what is announced is no dataset's size, or more than the disk has room for.
        """
        room = held + max(0, shutil.disk_usage(self.folder).free - RESERVE)
        if entity.size is None:
            return min(LARGEST, room)
        if entity.size > LARGEST:
            partial.remove()
            raise DownloadError(f"{entity.url} announces {entity.size} bytes, and no dataset has more than {LARGEST}")
        if entity.size > room:
            raise DownloadError(f"{entity.url} has {entity.size} bytes, and {self.folder} has room for {room}")
        return entity.size


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


def _install(partial: _Partial, path: Path) -> None:
    """Give a complete file its name."""
    with replacing(path) as temporary:
        partial.path.replace(temporary)
        partial.remove()
        manifest_path(path).unlink(missing_ok=True)  # of the file that goes
