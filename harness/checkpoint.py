"""Checkpoint files: torch's own, with a seal at their end.

Torch writes a zip file and a CRC-32 of every tensor in it, which it never checks. The seal is the SHA-256 of all the
rest, those checksums among it, so that every byte is covered and writing takes no second pass over the tensors.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from harness.errors import DamageError
from harness.files import replacing, require_regular

MARK = b"\nSHA-256 of all but what has a CRC-32: "
TRAILER = len(MARK) + 64
PADDING = 128
"""More than torch puts between the name of a file in the zip file and its content."""
LIMIT = (1 << 16) - 1, (1 << 32) - 1
"""Of files and bytes in a zip file of the plain format."""


def save(path: Path, content: Mapping[str, Any], agreed: Callable[[], None] = lambda: None) -> None:
    """Write a checkpoint atomically; ``agreed`` as of :func:`harness.files.replacing`.

    Raises:
        OSError: the disk does not take it.
    """
    import torch

    with replacing(path, agreed) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError:
            with temporary.open("ab") as file:  # torch does not say why; if it was the disk, that says it again
                file.write(bytes(1 << 20))
            raise
        seal = MARK + _digest(temporary, temporary.stat().st_size).encode()
        with temporary.open("ab") as file:
            file.write(seal)


def load(path: Path) -> dict[str, Any]:
    """Read what :func:`save` wrote; no code of the file is run.

    Raises:
        OSError: the disk does not give it.
        DamageError: it is not what was written, or cannot be read without running code.
    """
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise DamageError(path, "it cannot be read without running code") from error
    if not isinstance(content, dict):
        raise DamageError(path, "it is no checkpoint of a job")
    return content


def verify(path: Path) -> None:
    """Compare a checkpoint with its checksums. Older versions wrote no seal: then there are only those of tensors.

    Raises:
        OSError: the disk does not give it.
        DamageError: it is not what was written.
    """
    require_regular(path)
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TRAILER))
        trailer = file.read()
    sealed = trailer.startswith(MARK)
    try:
        if sealed and trailer[len(MARK) :] != _digest(path, path.stat().st_size - TRAILER).encode():
            raise DamageError(path, "its SHA-256 is not the one it names")
        if not sealed and trailer[-22:-18] != b"PK\5\6":  # a zip file's end
            raise DamageError(path, "it is cut, or no checkpoint")
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, struct.error) as error:
        raise DamageError(path, "it is no checkpoint") from error
    if wrong is not None:
        raise DamageError(path, f"the CRC-32 of {wrong} is not the one it names")


def _digest(path: Path, size: int) -> str:
    """SHA-256 of the first bytes of a zip file but for the content of the files in it.

    Raises:
        ValueError: it is no zip file; so does ``struct.error`` mean.
    """
    covered, done = [], 0
    with path.open("rb", buffering=0) as file:
        read = partial(os.pread, file.fileno())
        for header, label, length in _members(path, read, size):
            if not done <= header < size:
                raise ValueError("its parts overlap")
            # As much as torch puts before content: reads cost less than mapping a page for every tensor.
            start = read(header + 30 + label + PADDING - done, done)
            name, extra = struct.unpack_from("<HH", start, header - done + 26)
            begin = header + 30 + name + extra
            covered.append(start[: begin - done] if begin - done <= len(start) else read(begin - done, done))
            done = begin + length
        if done > size:
            raise ValueError("its parts overlap")
        covered.append(read(size - done, done))
    return hashlib.sha256(b"".join(covered)).hexdigest()


def _members(path: Path, read: Callable[[int, int], bytes], size: int) -> Iterator[tuple[int, int, int]]:
    """Where each file in a zip file has its header, how long its name is, and how long its content."""
    count, length, entry = struct.unpack("<H2L", read(10, max(0, size - 12)))
    if count == LIMIT[0] or entry == LIMIT[1]:  # zip64: the standard library knows it, and takes longer
        with zipfile.ZipFile(path) as archive:
            found = sorted((one.header_offset, len(one.filename), one.compress_size) for one in archive.infolist())
        yield from found
        return
    directory, entry = read(length, entry), 0
    for _ in range(count):
        length, name, extra, comment, header = struct.unpack_from("<L4x3H8xL", directory, entry + 20)
        yield header, name, length
        entry += 46 + name + extra + comment
