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
    """What cannot be written is lost: there is no other place to say it."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError:
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
        lossy = io.BufferedWriter(_Lossy(before.fileno(), "w", closefd=False))
        sys.stderr = io.TextIOWrapper(lossy, before.encoding, errors="replace", line_buffering=True)
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
