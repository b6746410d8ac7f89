"""Files that are whole: written so that a crash leaves the old content or the new, and sealed so that damage shows."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

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
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file beside ``path`` that takes its place when the block ends well and goes when it does not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)  # the rename itself
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):  # what went wrong before is what counts
            temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
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


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(_json(content) + "\n", encoding="utf-8")


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, with the SHA-256 of what it holds as its last key."""
    write_json(path, {**content, SEAL: _digest(content)})


def read_sealed(path: Path) -> tuple[dict[str, Any], bool]:
    """Read a JSON object.

    Returns:
        What :func:`write_sealed` was given, and whether there was a seal; older versions wrote none.

    Raises:
        FileNotFoundError: it is not there.
        DamageError: it cannot be read, or is not what was written.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamageError(path, f"it cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DamageError(path, "it is no JSON") from error
    if not isinstance(content, dict):
        raise DamageError(path, "it is no JSON object")
    sealed, exact = SEAL in content, text == _json(content) + "\n"
    if sealed and (content.pop(SEAL) != _digest(content) or not exact):
        raise DamageError(path, "its SHA-256 is not the one it names")
    return content, sealed


def _json(content: Any) -> str:
    return json.dumps(content, indent=1)


def _digest(content: Any) -> str:
    return hashlib.sha256(_json(content).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shipped(packaged: str, in_checkout: str) -> Path:
    """What ships with this project: in the wheel beside this file, in a checkout where it is written."""
    path = Path(__file__).parent / packaged
    return path if path.exists() else Path(__file__).parent.parent / in_checkout
