"""Files that are whole: written so that a crash leaves the old content or the new, and sealed so that damage shows."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from harness import processes
from harness.errors import DamageError, ResultsError, UserError

DISK = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS))
"""What only a disk says, whoever was writing or reading."""
NO_SYNC = frozenset(
    (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EISDIR, errno.EACCES, errno.EPERM)
)
"""What file systems say that cannot sync a folder, or a file, or do so by themselves: no reason not to write there."""
SEAL = "sha256"
"""The last key of a sealed JSON object: the SHA-256 of the rest of it."""


@contextmanager
def replacing(path: Path, agreed: Callable[[], None] = lambda: None, settled: bool = True) -> Iterator[Path]:
    """Give a temporary file beside ``path`` that takes its place when the block ends well and goes when it does not.

    Args:
        path: the file.
        agreed: is called when all is written, at the last moment; what it raises keeps the old content.
        settled: whether, when the machine fails right after the block, the new content is sure to be there; if not it
            may be the old one, until the folder has been synced (:func:`sync`).
    """
    temporary = path.with_name(f".{path.name}.{processes.name()}.tmp")
    try:
        yield temporary
        sync(temporary)
        agreed()
        temporary.replace(path)
        if settled:
            sync(path.parent)  # the rename itself
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):  # what went wrong before is what counts
            temporary.unlink(missing_ok=True)


def is_left_over(temporary: Path) -> bool:
    """Whether nobody writes a temporary file any more that :func:`replacing` gave: its process is gone.

    Of another machine's processes that is taken for sure a day after they wrote last.
    """
    process = temporary.name.removesuffix(".tmp").rpartition(".")[2]
    if processes.gone(process):
        return True
    try:
        return time.time() - temporary.stat().st_mtime > 86_400
    except OSError:
        return False


def sync(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder; not where it cannot be asked for that.

    Raises:
        OSError: the disk does not take it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


def is_disk_fault(error: BaseException) -> bool:
    """Whether it was the disk, and nobody's mistake."""
    return type(error) is OSError and error.errno in DISK  # not of a class that a stranger wrote


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the disk refuses in this block is the disk's fault.

    Args:
        path: what is written, named where the system names nothing.

    Raises:
        UserError: a file is in a folder's place.
        ResultsError: anything else, such as ``cannot write results: No space left on device: PATH``.
    """
    try:
        yield
    except OSError as error:
        text = f"cannot write results: {error.strerror or error}: {error.filename2 or error.filename or path}"
        if isinstance(error, (FileExistsError, NotADirectoryError)):
            raise UserError(text) from error
        raise ResultsError(text) from error


@contextmanager
def where_the_user_says(path: Path) -> Iterator[None]:
    """Around writing a file, or a folder's, that is no result.

    Raises:
        ResultsError: the disk is full, or broken.
        UserError: it cannot be written there.
    """
    try:
        yield
    except OSError as error:
        text = f"cannot write {str(path)!r}: {error.strerror or error}"
        raise (ResultsError if is_disk_fault(error) else UserError)(text) from error


def write_json(path: Path, content: Any, agreed: Callable[[], None] = lambda: None, settled: bool = True) -> None:
    """Write a JSON file atomically; ``agreed`` and ``settled`` as of :func:`replacing`."""
    with replacing(path, agreed, settled) as temporary:
        temporary.write_text(_json(content) + "\n", encoding="utf-8")


def write_sealed(
    path: Path, content: Mapping[str, Any], agreed: Callable[[], None] = lambda: None, settled: bool = True
) -> None:
    """Write a JSON object as :func:`write_json` does, with the SHA-256 of what it holds as its last key."""
    write_json(path, {**content, SEAL: _digest(content)}, agreed, settled)


def read_sealed(path: Path) -> tuple[dict[str, Any], bool]:
    """Read a JSON object.

    Returns:
        What :func:`write_sealed` was given, and whether there was a seal; older versions wrote none.

    Raises:
        FileNotFoundError: it is not there.
        DamageError: it cannot be read, or is not what was written.
    """
    try:
        text = read_bytes(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamageError(path, f"it cannot be read: {error.strerror}") from error
    return parse_sealed(path, text)


def parse_sealed(path: Path, text: bytes) -> tuple[dict[str, Any], bool]:
    """:func:`read_sealed` of a file that has been read.

    Raises:
        DamageError: it is not what was written.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamageError(path, "it is no JSON") from error
    if not isinstance(content, dict):
        raise DamageError(path, "it is no JSON object")
    if SEAL not in content:
        return content, False
    seal = content.pop(SEAL)
    # The seal is of the text itself: writing the content again, to compare, takes many times as long.
    sealed = text.removesuffix(f',\n "{SEAL}": {json.dumps(seal)}\n}}\n'.encode()) + b"\n}"
    if hashlib.sha256(sealed).hexdigest() != seal:
        raise DamageError(path, "its SHA-256 is not the one it names")
    return content, True


def _json(content: Any) -> str:
    return json.dumps(content, indent=1)


def _digest(content: Any) -> str:
    return hashlib.sha256(_json(content).encode()).hexdigest()


class NoFileError(OSError):
    """A folder, pipe, socket or device in the place of a file; ``strerror`` says which."""


def require_regular(path: Path) -> None:
    """Refuse what is no file: opening a pipe would wait for somebody to write to it, and a device may have no end.

    Raises:
        NoFileError: it is none.
        OSError: it is not there, or cannot be looked at.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise NoFileError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(mode):
        raise NoFileError(errno.EINVAL, "it is a pipe, socket or device, not a file", str(path))


def read_bytes(path: Path) -> bytes:
    """What a regular file holds.

    Raises:
        OSError: it is none, or cannot be read.
    """
    require_regular(path)
    return path.read_bytes()


def file_sha256(path: Path) -> str:
    """SHA-256 of a regular file, in hexadecimal.

    Raises:
        OSError: it is none, or cannot be read.
    """
    require_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shipped(packaged: str, in_checkout: str) -> Path:
    """What ships with this project: in the wheel beside this file, in a checkout where it is written."""
    path = Path(__file__).parent / packaged
    return path if path.exists() else Path(__file__).parent.parent / in_checkout
