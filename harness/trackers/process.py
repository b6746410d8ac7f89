"""The process in which a tracker lives."""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.guard import STOP_SIGNALS
from harness.trackers import Tracker, load

_trackers: list[Tracker] = []
"""The one of this process."""


def apart() -> None:
    """Signals are the run's to handle, standard output is the command's, and training goes first."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.dup2(2, 1)
    os.nice(5)


def call(calls: Sequence[tuple[Any, ...]]) -> None:
    """Call the tracker's methods one after the other; the first of all calls, ``__init__``, makes it."""
    for name, *arguments in calls:
        if name == "__init__":
            tracker, folder = arguments
            Path(folder).mkdir(parents=True, exist_ok=True)
            _trackers.append(load(tracker)(Path(folder)))
            atexit.register(_close)  # where the run was killed
        elif name == "close":
            _close()
        else:
            getattr(_trackers[0], name)(*arguments)


def _close() -> None:
    while _trackers:
        _trackers.pop().close()
