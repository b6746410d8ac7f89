"""Opening HDF5 files that anybody may have written: what a file is, what it claims, and only then what it holds.

A file's SHA-256 covers that file alone, so content that lies elsewhere is refused, before it is looked for. Nothing but
a regular file is opened, and nothing is read whose size is not bounded.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
from numpy.typing import NDArray

from harness.files import NoFileError, require_regular

STUMBLES = (OSError, KeyError, RuntimeError, ValueError, TypeError, OverflowError, MemoryError)
"""What h5py raises over damaged files."""
BEGINNINGS = {
    b"version https://git-lfs": "a Git LFS pointer; 'git lfs pull' gets the file that it stands for",
    b"/annex/objects/": "a git-annex pointer; 'git annex get' gets the file that it stands for",
    b"\x93NUMPY": "a NumPy array (.npy)",
    b"PK\x03\x04": "a ZIP archive, as .npz files are",
    b"\x1f\x8b": "compressed with gzip; unpack it",
    b"BZh": "compressed with bzip2; unpack it",
    b"\xfd7zXZ\x00": "compressed with xz; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with Zstandard; unpack it",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive; unpack it",
    b"\x0e\x03\x13\x01": "an HDF4 file; 'h4toh5' makes HDF5 of it",
    b"PAR1": "a Parquet file",
    b"\x80\x04\x95": "a Python pickle",
    b"\x80\x05\x95": "a Python pickle",
    b"<!doctype html": "a web page, such as a login or an error; download the file itself",
    b"<html": "a web page, such as a login or an error; download the file itself",
    b"<?xml": "an XML document, such as a server's error; download the file itself",
    b"{": "a JSON document",
}
"""How files begin that are taken for datasets, and what they are."""
DENSEST = 1032
"""What deflate can make of a byte, at the most."""
SMALL = 2**28
"""Bytes that every machine has."""
DETOURS = 16
"""Soft links that may lead from one to the next."""


class UnusableError(Exception):
    """A file, or an array in it, is not usable; the message is a sentence's part: ``it is empty``."""


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file to read from.

    Raises:
        UnusableError: it is none, or whatever the block does stumbles over damage.
    """
    _require_hdf5(path)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except MemoryError as error:
        raise UnusableError("there is not enough memory to read it") from error
    except STUMBLES as error:
        raise UnusableError(_stumble(error)) from error


def _require_hdf5(path: Path) -> None:
    try:
        require_regular(path)
        if not os.access(path, os.R_OK):
            raise UnusableError("no permission to read it")
        with path.open("rb") as file:
            beginning = file.read(512)
    except FileNotFoundError as error:
        raise UnusableError("there is no such file") from error
    except NoFileError as error:
        raise UnusableError(error.strerror) from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise UnusableError(f"it cannot be read ({error})") from error
    if not beginning:
        raise UnusableError("it is empty")
    if not h5py.is_hdf5(path):
        text = beginning.lstrip().lower()
        kinds = (kind for first, kind in BEGINNINGS.items() if beginning.startswith(first) or text.startswith(first))
        kind = next(kinds, None)
        raise UnusableError(f"it is no HDF5 file but {kind}" if kind else "it is no HDF5 file")


def _stumble(error: Exception) -> str:
    """What an exception of h5py's means."""
    text = " ".join(str(error).split())
    if "unable to lock file" in text:
        return (
            "it is locked: another program has it open for writing, or its file system knows no locks, and then "
            f"HDF5_USE_FILE_LOCKING=FALSE helps ({text})"
        )
    if "already open for write" in text:
        return f"whoever wrote it has not closed it; 'h5clear -s' repairs it once nobody writes any more ({text})"
    return f"it is truncated or damaged ({text})"


def find_array(file: h5py.File, name: str) -> h5py.Dataset | None:
    """An array of numbers of known size whose content lies in the file, unread; ``None`` if there is no such array.

    Args:
        file: where to look.
        name: of the array, with slashes between groups.

    Raises:
        UnusableError: its content is not in the file, or not usable. The message goes on from the array's name.
    """
    found = _follow(file, file, name, DETOURS)
    if not isinstance(found, h5py.Dataset):
        return None
    if found.dtype.kind not in "buif":
        raise UnusableError(f"holds {found.dtype}, not numbers")
    if found.shape is None:
        raise UnusableError("holds nothing")
    properties = found.id.get_create_plist()
    if properties.get_layout() == h5py.h5d.VIRTUAL:
        raise UnusableError("is virtual: its content lies in other files, which this one's SHA-256 does not cover")
    if properties.get_external_count():
        raise UnusableError("lies in another file, which this one's SHA-256 does not cover")
    for index in range(properties.get_nfilters()):
        code, _, _, label = properties.get_filter(index)
        if not h5py.h5z.filter_avail(code):
            described = f"{label.decode(errors='replace')!r} ({code})" if label else str(code)
            raise UnusableError(
                f"is compressed by HDF5's filter {described}, which is not installed here; where it is, "
                "'h5repack -f GZIP=4 OLD NEW' makes a file that everybody can read"
            )
    if found.chunks is None:
        if found.id.get_storage_size() < _claimed(found):
            raise UnusableError("was never written: the file holds its shape alone")
    else:
        written, expected = found.id.get_num_chunks(), _chunks(found)
        if written < expected:
            raise UnusableError(f"was never written in full: {written} of its {expected} chunks are in the file")
    return found


def _follow(file: h5py.File, here: h5py.Group, name: str, detours: int) -> object | None:
    """What a name means, found link by link: h5py itself would open whatever a link points to, and wait for it."""
    found: object = file if name.startswith("/") else here
    for part in name.split("/"):
        if part in ("", "."):
            continue
        if not isinstance(found, h5py.Group):
            return None
        link = found.get(part, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise UnusableError(f"lies in another file, {link.filename!r}, which this one's SHA-256 does not cover")
        if isinstance(link, h5py.SoftLink):
            if not detours:
                raise UnusableError("is a link that leads nowhere")
            found = _follow(file, found, link.path, detours - 1)
        else:
            found = None if link is None else found[part]
    return found


def require_room(path: Path, arrays: Collection[h5py.Dataset]) -> None:
    """Refuse arrays that cannot be in a file of this size, or would not fit into memory.

    Raises:
        UnusableError: they cannot, or would not.
    """
    sizes, size = [_claimed(array) for array in arrays], path.stat().st_size
    claimed, needed = sum(sizes), sum(sizes) + max(sizes, default=0)  # one after another is copied to float32
    if claimed <= DENSEST * size and needed <= SMALL:
        return
    from harness.capacity import host_memory, readable  # slow to import: torch comes with it

    if claimed > DENSEST * size:
        raise UnusableError(f"it claims to hold {readable(claimed)}, and a file of {readable(size)} cannot")
    _, free = host_memory()
    if needed > free:
        raise UnusableError(f"reading it takes {readable(needed)} of memory, and {readable(free)} are free")


def _claimed(array: h5py.Dataset) -> int:
    """Bytes that an array's content is to have, those included that fill its chunks up."""
    count = math.prod(array.shape) if array.chunks is None else _chunks(array) * math.prod(array.chunks)
    return int(count * array.dtype.itemsize)


def _chunks(array: h5py.Dataset) -> int:
    """How many chunks an array is to have."""
    return math.prod(-(-size // chunk) for size, chunk in zip(array.shape, array.chunks, strict=True))


def label(path: Path) -> str | None:
    """Whose data a file says that it holds, if it says so.

    Raises:
        UnusableError: it cannot be read.
    """
    with opened(path) as file:
        said = file.attrs.get("label")
    return said if isinstance(said, str) and said.isprintable() else None


def write(path: Path, arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, str]) -> None:
    """Write arrays and the file's attributes as HDF5; equal content gives equal bytes."""
    with h5py.File(path, "w") as file:
        file.attrs.update(attributes)
        for key, array in arrays.items():
            # Without the filter that sorts bytes by significance floats hardly compress.
            file.create_dataset(
                key, data=array, compression="gzip", compression_opts=9, shuffle=True, track_times=False
            )
