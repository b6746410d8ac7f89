"""Around everything that a stranger wrote: plugins and environments may raise anything, and may never come back.

Whatever comes out of :class:`guard` is one exception of plain text, which names who it was. Only what the user does at
the keyboard, a limit of time, a disk that is full or broken and :class:`harness.errors.UserError` pass as they are.
"""

from __future__ import annotations

import _thread
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from harness.errors import SuiteError, UserError
from harness.files import is_disk_fault

MOST_LINE, MOST_TRACE = 500, 20_000
"""Characters of a reason, and of a traceback, that are kept."""
UNSEEN = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069]")
"""What colours a terminal, or makes it do other things than show text."""


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""What asks a run to stop: the user at the keyboard, whoever ends processes, and SLURM."""


class UserCodeError(Exception):
    """What a plugin or an environment did wrong. It holds text alone, so it can be sent to another process.

    Args:
        who: ``the algorithm 'x'``; empty where ``reason`` says it.
        doing: what it was asked for, such as ``policies``.
        reason: one line.
        trace: the traceback, where there is one.
        out_of_memory: whether memory ran out.
    """

    def __init__(self, who: str, doing: str, reason: str, trace: str = "", out_of_memory: bool = False) -> None:
        super().__init__(who, doing, reason, trace, out_of_memory)
        self.who, self.doing, self.reason = who, doing, reason
        self.trace, self.out_of_memory = trace, out_of_memory

    def __str__(self) -> str:
        place = " in ".join(part for part in (self.who, self.doing) if part)
        return f"{place}: {self.reason}" if place else self.reason

    @property
    def report(self) -> str:
        """The traceback, and behind it the line that says who and why."""
        return f"{self.trace}\n{self}".strip()


class Interrupt(KeyboardInterrupt):
    """The user interrupts. Code that raises KeyboardInterrupt by itself is not the user."""


class TookTooLong(Exception):  # noqa: N818 - it says what happened
    """Something did not end in the time that the suite gives it."""


class _TimeUp(BaseException):
    """Raised inside code whose time is up; no Exception, which it might catch."""


PASS = (UserCodeError, Interrupt, TookTooLong, _TimeUp)
OURS = (UserError, SuiteError)


class guard:  # noqa: N801 - reads as what it does
    """Turn whatever the code inside raises into :class:`UserCodeError`; may be entered again and again.

    Args:
        who: whose code it is, as :class:`UserCodeError` has it.
        doing: what it is asked for.
    """

    __slots__ = ("doing", "who")

    def __init__(self, who: str, doing: str) -> None:
        self.who, self.doing = who, doing

    def __enter__(self) -> None:
        """Nothing: this stands around every step of an episode."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or issubclass(type(error), PASS) or type(error) in OURS:  # not one derived from them
            return
        if is_disk_fault(error):
            return
        raise told(error, self.who, self.doing) from None


def told(error: BaseException, who: str = "", doing: str = "") -> UserCodeError:
    """An exception as plain text, whatever happens when it is asked for its text."""
    if type(error) is UserCodeError:
        return error
    try:
        trace = _plain("".join(traceback.format_exception(error)))
    except BaseException:  # the exception's own code fails; what can be said of it is said below
        trace = ""
    if len(trace) > MOST_TRACE:
        trace = f"{trace[: MOST_TRACE // 2]}\n[...]\n{trace[-MOST_TRACE // 2 :]}"
    return UserCodeError(who, doing, line(error), trace.strip(), is_out_of_memory(error))


def line(error: BaseException) -> str:
    """What an exception says, in one line: ``ValueError: no such thing``."""
    try:
        text = " ".join(_plain(str(error)).split())
    except BaseException:  # as above
        text = "(its text cannot be had)"
    name = type(error).__name__
    text = f"{name}: {text}" if text else name
    return text if len(text) <= MOST_LINE else f"{text[:MOST_LINE]} [...]"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of a GPU or of the host."""
    kind = type(error)  # not isinstance, which asks the exception itself
    if issubclass(kind, UserCodeError):
        return bool(getattr(error, "out_of_memory", False))
    torch = sys.modules.get("torch")
    exhausted = (MemoryError,) if torch is None else (MemoryError, torch.OutOfMemoryError)
    return issubclass(kind, exhausted) or "DefaultCPUAllocator" in line(error)


def _plain(text: str) -> str:
    """Text that UTF-8 can hold and a terminal only shows, as a string of no other class."""
    return UNSEEN.sub("", str.encode(text, "utf-8", "backslashreplace").decode())


@contextmanager
def restored() -> Iterator[None]:
    """Take back what the code inside sets for the whole process, on which what others compute and write depends.

    That is the folder that relative paths start from, and torch's defaults.
    """
    try:
        folder: Path | None = Path.cwd()
    except FileNotFoundError:  # it is gone; so are relative paths
        folder = None
    torch = sys.modules.get("torch")
    defaults = [(put, get(torch), get) for get, put in DEFAULTS] if torch else []
    try:
        yield
    finally:
        for put, value, get in defaults:
            if get(torch) != value:
                put(torch, value)
        if folder is not None:
            os.chdir(folder)


DEFAULTS: tuple[tuple[Callable[[Any], Any], Callable[[Any, Any], Any]], ...] = (
    (lambda torch: torch.is_grad_enabled(), lambda torch, value: torch.set_grad_enabled(value)),
    (lambda torch: torch.get_default_dtype(), lambda torch, value: torch.set_default_dtype(value)),
    (lambda torch: torch.get_num_threads(), lambda torch, value: torch.set_num_threads(value)),
    (
        lambda torch: torch.get_float32_matmul_precision(),
        lambda torch, value: torch.set_float32_matmul_precision(value),
    ),
)
"""How torch's defaults are asked for and set. Torch is not imported for it."""


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupt


@contextmanager
def interruptible(
    handler: Callable[[int, FrameType | None], None] = _interrupt, numbers: Sequence[int] = (signal.SIGINT,)
) -> Iterator[None]:
    """Let signals interrupt the code inside with :class:`Interrupt`, which guards let pass; in the main thread alone.

    A signal may come while Python runs a destructor or the callback of a weak reference, out of which no exception
    comes: it is sent once more then.

    Args:
        handler: what a signal calls; if it raises, then Interrupt.
        numbers: of the signals; the first is the one that is sent again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    main, hook = threading.get_ident(), sys.unraisablehook

    def again() -> None:
        time.sleep(0.01)  # the destructor ends
        signal.pthread_kill(main, numbers[0])

    def lost(error: sys.UnraisableHookArgs) -> None:
        if error.exc_type is Interrupt:
            _thread.start_new_thread(again, ())  # a Thread would wait for locks, which the code inside may hold
        else:
            hook(error)

    previous = {number: signal.signal(number, handler) for number in numbers}
    sys.unraisablehook = lost
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, before in previous.items():
            signal.signal(number, before)


@contextmanager
def within(seconds: float, what: str) -> Iterator[None]:
    """End the code inside when its time is up; blocks do not nest.

    It needs the main thread, and reaches Python code alone: a call into C goes on until it returns.

    Args:
        seconds: that it may take.
        what: for the message, ``the time limit of a job``.

    Raises:
        TookTooLong: it did not end in time.
    """
    if seconds <= 0:
        raise TookTooLong(f"took longer than {what}")
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ended = False

    def time_up(number: int, frame: FrameType | None) -> None:
        if not ended:
            raise _TimeUp

    begun = time.monotonic()
    previous = signal.signal(signal.SIGALRM, time_up)
    signal.setitimer(signal.ITIMER_REAL, min(seconds, 1e8), 1.0)  # again, where the first is caught inside
    try:
        yield
    except _TimeUp:
        raise TookTooLong(f"took longer than {what}: ended after {time.monotonic() - begun:.0f} s") from None
    finally:
        ended = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
