"""Which process this is, among those of many machines that share a folder."""

from __future__ import annotations

import hashlib
import os
import secrets
import signal
import socket
from contextlib import suppress
from functools import cache
from pathlib import Path


@cache
def machine() -> str:
    """This machine since it was started, and this container on it: what process numbers are good for. 8 hex digits."""
    parts = [socket.gethostname()]
    for path, read in (("/proc/sys/kernel/random/boot_id", Path.read_text), ("/proc/self/ns/pid", os.readlink)):
        try:
            parts.append(str(read(Path(path))))
        except OSError:  # not Linux
            parts.append("")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def started(process: int) -> str | None:
    """When a process of this machine was started, in ticks of its clock; ``None`` where it is gone, or a zombie.

    Raises:
        OSError: the system does not tell.
    """
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except ProcessLookupError:
        return None
    fields = text.rpartition(")")[2].split()  # behind the name, which may hold anything
    return None if fields[0] in "ZX" else fields[19]


_names: dict[int, str] = {}


def name() -> str:
    """This process, as no other has ever been called: machine, number, when it was started, and chance."""
    process = os.getpid()
    if process not in _names:  # a fork is another
        _names[process] = name_of(process)
    return _names[process]


def name_of(process: int) -> str:
    """A name for a process of this machine, as of :func:`name`."""
    try:
        since = started(process) or "0"
    except OSError:
        since = "0"
    return f"{machine()}-{process}-{since}-{secrets.token_hex(4)}"


def number_here(process: str) -> int | None:
    """The number of a process of such a name; ``None`` where it is gone, or of another machine."""
    where, number, *_ = process.split("-")
    return int(number) if where == machine() and not gone(process) else None


def end(process: str) -> None:
    """Ask a process of such a name to end in good order, if it is here."""
    number = number_here(process)
    if number is not None:
        with suppress(ProcessLookupError):  # it ended at this very moment
            os.kill(number, signal.SIGTERM)


def gone(process: str) -> bool:
    """Whether a process with such a name was of this machine and is no more; of others nothing can be told.

    Args:
        process: what :func:`name` gave it.
    """
    try:
        where, number, since, _ = process.split("-")
        return where == machine() and since != "0" and started(int(number)) != since
    except (OSError, ValueError):
        return False
