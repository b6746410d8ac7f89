"""Standard streams that cannot cost any work: closed, full, or of an encoding that lacks a letter."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click


def note(text: str) -> None:
    """Tell the user, beside a command's output."""
    click.echo(f"note: {text}", err=True)


class _Lossy(io.FileIO):
    """What cannot be written is lost: there is no other place to say it.

    Text goes to it directly. A buffer would refuse what a signal's handler says while it writes.
    """

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        with suppress(OSError):
            while rest and (written := super().write(rest)):  # none where it would have to wait, and may not
                rest = rest[written:]
        return len(data)


@contextmanager
def standard_streams() -> Iterator[None]:
    """Make standard streams safe for the length of a command.

    Closed ones lead nowhere, so that no file of ours takes their number. What an encoding lacks becomes a question
    mark. Standard error, on which progress is told, never fails.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    before = sys.stderr
    if isinstance(before, io.TextIOWrapper) and before is sys.__stderr__:
        lossy = _Lossy(before.fileno(), "w", closefd=False)
        sys.stderr = io.TextIOWrapper(lossy, before.encoding, errors="replace", write_through=True)
    try:
        yield
    finally:
        sys.stderr = before
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError:  # said already; when Python ends it would try again
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
