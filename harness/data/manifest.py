"""The manifest beside a data file: what the file was when it came, so that any change to it is noticed."""

from __future__ import annotations

import errno
import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.files import file_sha256, write_json
from harness.tasks import Task

SHA256 = re.compile("[0-9a-f]{64}")
OURS = {"task", "file"}
"""Keys of a manifest of ours, beside its SHA-256."""
BEGINNING = re.compile(rb'\{\n "(file|task)":')
"""Of a manifest of ours: another JSON file of the same name is somebody else's."""

Manifest = dict[str, Any]


def manifest_path(path: Path) -> Path:
    """Where the manifest of a data file lies: beside it."""
    return path.with_name(f"{path.name}.json")


def record(path: Path, task: Task, url: str | None, sha256: str | None = None) -> Manifest:
    """Write down what a data file is now.

    Args:
        path: the file.
        task: whose data it is.
        url: where it came from, ``None`` if that is not known.
        sha256: of the file, where the caller has it already.

    Returns:
        What was written: file, task, size (bytes), sha256, url, recorded (UTC).

    Raises:
        OSError: it cannot be written, or somebody else's file has its name.
    """
    require_place(path)
    manifest = {
        "file": path.name,
        "task": task.id,
        "size": path.stat().st_size,
        "sha256": sha256 or file_sha256(path),
        "url": url,
        "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(manifest_path(path), manifest)
    return manifest


def read(path: Path) -> Manifest | None:
    """The manifest of a data file, ``None`` if it has none. Its ``sha256`` is there, other keys may be missing.

    Raises:
        ValueError: it cannot be read; the message is a sentence's part, ``its manifest ...``.
    """
    place = manifest_path(path)
    if not place.is_file():  # a pipe, say, would let the reader wait
        return None
    try:
        content = place.read_bytes()
    except OSError as error:
        raise ValueError(f"its manifest {place} cannot be read ({error})") from error
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError) as error:
        if BEGINNING.match(content):
            raise ValueError(f"its manifest {place} cannot be read ({error})") from error
        return None
    if not isinstance(manifest, dict) or not ("sha256" in manifest or manifest.keys() >= OURS):
        return None
    if not SHA256.fullmatch(str(manifest.get("sha256"))):
        raise ValueError(f"its manifest {place} holds no SHA-256")
    return manifest


def current(path: Path) -> Manifest | None:
    """The manifest of a data file, with its SHA-256 alone where it has none; ``None`` where no file can be read."""
    try:
        return (read(path) or {"sha256": file_sha256(path)}) if path.is_file() else None
    except (OSError, ValueError):
        return None


def require_place(path: Path) -> None:
    """Refuse to write a data file's manifest over what is none.

    Raises:
        FileExistsError: somebody else's file has its name.
        ValueError: as :func:`read`.
    """
    place = manifest_path(path)
    if os.path.lexists(place) and read(path) is None:
        raise FileExistsError(errno.EEXIST, f"{place.name} is there, and is no manifest", str(place))


def verify(path: Path, sha256: str | None = None) -> str | None:
    """Compare a data file with its manifest.

    Args:
        path: the file.
        sha256: of the file, where the caller has it already.

    Returns:
        What is wrong, the manifest's own faults included; ``None`` if nothing is, or there is no manifest to go by.
    """
    try:
        manifest = read(path)
        if manifest is None:
            return None
        size = path.stat().st_size
        if size != manifest.get("size", size):
            return f"it has {size} bytes, its manifest {manifest_path(path).name} says {manifest['size']}"
        found = sha256 or file_sha256(path)
    except ValueError as error:
        return str(error)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    if found != manifest["sha256"]:
        return f"its SHA-256 is {found}, its manifest {manifest_path(path).name} says {manifest['sha256']}"
    return None
