"""One file from Hugging Face, or from a plain mirror, through Hugging Face's own client, in a process of its own.

The client connects, follows redirects, waits and tries again, heeds ``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HUB_OFFLINE``
and proxies, and goes on where a connection broke. What its ``hf_hub_download`` does not do is done here: what came when
its process ends is kept, sizes have a bound, parts of two versions are not mixed, and a server that drips is given up.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.data.manifest import SHA256
from harness.files import write_json

REPOSITORY = "YYY-45/DSRL"
"""DSRL's data set at Hugging Face."""
LARGEST = 2**36
"""Bytes; whoever announces or sends more sends no dataset."""
RESERVE = 2**26
"""Bytes of the disk that a download leaves free."""
CHUNK = 2**14
"""Bytes that are written at a time; the client's own 10 MB would be lost with every connection."""
SLOWEST, SPAN = 1024, 60.0
"""Bytes a second, as a mean over so many seconds, below which a download is ended."""
STALLED = 75
"""Exit status of its process then."""


@dataclass(frozen=True)
class Entity:
    """What a server says of a file, ``None`` where it says nothing.

    Args:
        url: where it is; of Hugging Face, of the commit.
        size: in bytes.
        validator: what tells this version from another: an ETag, or else the time of the last change.
        sha256: in hexadecimal.
    """

    url: str
    size: int | None = None
    validator: str | None = None
    sha256: str | None = None

    def goes_on(self, other: Entity | None) -> bool:
        """Whether bytes of the other are bytes of this."""
        place = other and (other.sha256 or other.url, other.size, other.validator)
        return self.validator is not None and place == (self.sha256 or self.url, self.size, self.validator)


class Partial:
    """The bytes of a file that came so far, ``.NAME.part``, and beside them what they are a part of."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f".{path.name}.part")
        self.sidecar = path.with_name(f".{path.name}.part.json")

    @property
    def held(self) -> int:
        """How many bytes are here."""
        with suppress(FileNotFoundError):
            return self.path.stat().st_size
        return 0

    @property
    def entity(self) -> Entity | None:
        """What they are a part of, as far as that is known."""
        with suppress(FileNotFoundError, ValueError, TypeError):
            return Entity(**json.loads(self.sidecar.read_text(encoding="utf-8")))
        return None

    def remove(self) -> None:
        """It is of no use."""
        self.path.unlink(missing_ok=True)
        self.sidecar.unlink(missing_ok=True)


class RefusedError(Exception):
    """The file cannot be had, and why."""


def transfer(path: Path, mirror: str | None, use_cache: bool, span: float = SPAN) -> Entity:
    """Fetch a file to the place of its :class:`Partial`, whole.

    Args:
        path: the file's place.
        mirror: URL of a folder that holds it; ``None`` for Hugging Face.
        use_cache: take it from the client's cache, if it is there.
        span: see :data:`SPAN`.

    Raises:
        RefusedError: it cannot be had, or not be written.
    """
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # in this process; who asked for the file shows one
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import logging

    logging.set_verbosity(50)  # its warnings; we tell what comes of them
    constants.DOWNLOAD_CHUNK_SIZE = CHUNK
    part = Partial(path)
    if mirror is None and use_cache:
        cached = try_to_load_from_cache(REPOSITORY, path.name, repo_type="dataset")
        if isinstance(cached, str):
            part.remove()
            shutil.copyfile(cached, part.path)
            blob = Path(cached).resolve().name
            return Entity(_hub_url(path.name), sha256=blob if SHA256.fullmatch(blob) else None)
    entity = Entity(mirror or _hub_url(path.name))
    try:
        with _watched(part, span):
            entity = _describe(path.name, mirror)
            _receive(part, entity, mirror)
            if mirror and entity.validator and not _describe(path.name, mirror).goes_on(entity):
                part.remove()
                raise RefusedError(f"{entity.url} changed while it was downloaded; run the command again")
            return entity
    except HfHubHTTPError as error:
        response = error.response
        if response.status_code == 416:  # what is here is no part of it
            part.remove()
        said = f"{response.request.url}: status {response.status_code} {response.reason_phrase}"
        raise RefusedError(f"{said}; --mirror names another place") from error
    except OSError as error:
        if error.errno is None:  # the client's own
            raise RefusedError(str(error)) from error
        if error.errno == errno.EFBIG:
            part.remove()
            raise RefusedError(
                f"{entity.url} sends more than {LARGEST} bytes, or than the disk has room for"
            ) from error
        raise RefusedError(f"cannot write {path}: {error.strerror}") from error


def _hub_url(name: str, revision: str = "main") -> str:
    from huggingface_hub import hf_hub_url

    return str(hf_hub_url(REPOSITORY, name, repo_type="dataset", revision=revision))


def _describe(name: str, mirror: str | None) -> Entity:
    """Ask the server what it has."""
    from huggingface_hub import get_hf_file_metadata, hf_raise_for_status
    from huggingface_hub.utils import http_backoff  # type: ignore[attr-defined]  # there, but not exported

    if mirror is None:
        said = get_hf_file_metadata(_hub_url(name))
        etag = said.etag or ""
        url = _hub_url(name, said.commit_hash or "main")
        return Entity(url, said.size, said.etag, etag if SHA256.fullmatch(etag) else None)
    url = f"{mirror}/{name}"
    response = http_backoff("HEAD", url, headers={"Accept-Encoding": "identity"}, timeout=30.0)
    if response.status_code in (405, 501):  # a server that does not tell
        return Entity(url)
    hf_raise_for_status(response)
    etag, size = response.headers.get("ETag", ""), response.headers.get("Content-Length")
    validator = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
    usable = validator.isascii() and validator.isprintable() and validator
    return Entity(url, None if size is None else int(size), validator if usable else None)


def _receive(part: Partial, entity: Entity, mirror: str | None) -> None:
    """Get what is missing of a file."""
    from huggingface_hub import get_session
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # there, but not exported

    if not entity.goes_on(part.entity) or part.held > (entity.size or part.held):
        part.path.write_bytes(b"")
    write_json(part.sidecar, asdict(entity))
    headers = {"Accept-Encoding": "identity"}
    if mirror is None:
        headers |= build_hf_headers(library_name="lspc-bench")

    def require_version(request: Any) -> None:
        if mirror is not None and entity.validator is not None and "Range" in request.headers:
            request.headers["If-Range"] = entity.validator

    client = get_session()
    hooks = client.event_hooks
    client.event_hooks = {"request": [*hooks["request"], require_version], "response": [_require_continuation]}
    try:
        with _at_most(_room(part, entity)), part.path.open("ab") as file:
            http_get(entity.url, file, resume_size=part.held, headers=headers, expected_size=entity.size)
    finally:
        client.event_hooks = hooks


def _require_continuation(response: Any) -> None:
    """Refuse a part that is not the one that was asked for.

    Raises:
        RefusedError: it is not.
    """
    asked, given = response.request.headers.get("Range", ""), response.headers.get("Content-Range", "")
    if response.status_code == 206 and not given.startswith(asked.replace("=", " ")):
        raise RefusedError(f"{response.request.url}: the server does not go on where it broke off")


def _room(part: Partial, entity: Entity) -> int:
    """How many bytes a file may have.

    Raises:
        RefusedError: what is announced is no dataset's size, or more than the disk has room for.
    """
    folder = part.path.parent
    room = part.held + max(0, shutil.disk_usage(folder).free - RESERVE)
    if entity.size is not None and entity.size > LARGEST:
        raise RefusedError(f"{entity.url} announces {entity.size} bytes, and no dataset has more than {LARGEST}")
    if entity.size is not None and entity.size > room:
        raise RefusedError(f"{entity.url} has {entity.size} bytes, and {folder} has room for {room}")
    return min(LARGEST, room)


@contextmanager
def _at_most(size: int) -> Iterator[None]:
    """Let this process write no file that is larger: of many servers nothing says when their content ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def _watched(part: Partial, span: float) -> Iterator[None]:
    """End this process where next to nothing arrives: bodies and headers may drip for ever."""
    over = threading.Event()

    def watch() -> None:
        before = part.held
        while not over.wait(span):
            if (held := part.held) - before < SLOWEST * span:
                os._exit(STALLED)
            before = held

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
