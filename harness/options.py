"""How suites are run: what results do not depend on, or depend on in the last digits."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """Made once by the command line, and handed on.

    Args:
        device: where to train: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        engine: how updates are run, see :func:`harness.engine.make_engine`.
        precision: of matrix products on a GPU, ``float32`` or ``tf32``.
        memory_fraction: of the device's memory, what training may take.
        workers: evaluation processes; ``None`` means one a core.
        checkpoint_seconds: the longest that a crash may cost.
        track: the names of trackers, see :mod:`harness.trackers`, beside those of the suite.
        most_seconds: after which no more is begun, and what is under way is kept to go on later; ``None`` means never.
        no_evaluation: train only, and keep the policies that are to be evaluated.
        only_evaluation: evaluate only, what was trained so.
    """

    device: str = "auto"
    engine: str = "auto"
    precision: str = "float32"
    memory_fraction: float = 0.9
    workers: int | None = None
    checkpoint_seconds: float = 60.0
    track: tuple[str, ...] = ()
    most_seconds: float | None = None
    no_evaluation: bool = False
    only_evaluation: bool = False

    @property
    def processes(self) -> int:
        """How many evaluate."""
        return len(os.sched_getaffinity(0)) if self.workers is None else self.workers


MOST_WORKERS = 256
"""On the CPU, of one command."""


def parse_devices(text: str) -> tuple[str, ...]:
    """The devices that are meant by ``cuda:0,cuda:1``, ``all`` or ``cpu:2``, one for each worker.

    Raises:
        ValueError: it is none of these; says why.
    """
    if text == "all":
        return ("all",)
    devices: list[str] = []
    for name in text.split(","):
        kind, colon, number = name.strip().partition(":")
        if kind not in ("cpu", "cuda") or (colon and not (number.isdecimal() and len(number) <= 4)):
            raise ValueError(f"{name.strip()!r} is no device; take all, cuda:0,cuda:1,... or cpu:2 (two workers)")
        if kind == "cpu":
            count = int(number or 1)
            if not 1 <= count <= MOST_WORKERS:
                raise ValueError(f"{name.strip()!r}: from 1 to {MOST_WORKERS} workers on the CPU")
            found = ["cpu"] * count
        else:
            found = [f"cuda:{int(number or 0)}"]
        if found[0] in devices:
            raise ValueError(f"{name.strip()!r}: a device may be named once" + (", as cpu:2" if kind == "cpu" else ""))
        devices += found
    return tuple(devices)
