"""The guard around strangers' code: one exception of plain text, whatever came out."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import guard as module
from harness.errors import UserError
from harness.guard import Interrupt, TookTooLong, UserCodeError, guard, interruptible, line, restored, told, within


def test_what_others_stand_on_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()

    def change() -> None:
        os.chdir("/")
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(threads + 1)
        torch.set_float32_matmul_precision("medium")
        raise KeyError

    with pytest.raises(KeyError), restored():
        change()
    assert Path.cwd() == tmp_path
    assert torch.is_grad_enabled()
    assert (torch.get_default_dtype(), torch.get_num_threads()) == (torch.float32, threads)
    assert torch.get_float32_matmul_precision() == "highest"


class UntoldError(Exception):
    def __str__(self) -> str:
        raise SystemExit


class LyingError(UntoldError):
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise KeyboardInterrupt


class MyUserError(UserError):
    pass


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("no such thing"), "ValueError: no such thing"),
        (ValueError(""), "ValueError"),
        (ValueError("two\n  lines"), "ValueError: two lines"),
        (ValueError("\x1b[1mbold\x1b[0m \x1b]0;title\x07 \u202eback\r\nline"), "ValueError: bold ]0;title back line"),
        (ValueError("\udcff"), "ValueError: \\udcff"),
        (ValueError("x" * 10_000), f"ValueError: {'x' * 488} [...]"),
        (SystemExit(0), "SystemExit: 0"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (GeneratorExit(), "GeneratorExit"),
        (StopIteration(3), "StopIteration: 3"),
        (ExceptionGroup("several", [ValueError("one")]), "ExceptionGroup: several (1 sub-exception)"),
        (UntoldError(), "UntoldError: (its text cannot be had)"),
        (MyUserError("mine"), "MyUserError: mine"),
        (torch.OutOfMemoryError("CUDA"), "OutOfMemoryError: CUDA"),
    ],
)
def test_whatever_is_raised_is_told_and_travels(error: BaseException, reason: str) -> None:
    with pytest.raises(UserCodeError) as caught, guard("the algorithm 'x'", "update"):
        raise error
    travelled = pickle.loads(pickle.dumps(caught.value))
    for one in (caught.value, travelled):
        assert str(one) == f"the algorithm 'x' in update: {reason}"
        assert one.report.splitlines()[-1] == str(one)
        assert one.reason == reason
        assert "raise error" in one.trace
        assert one.out_of_memory == isinstance(error, torch.OutOfMemoryError)
        one.report.encode()


@pytest.mark.parametrize(
    "error", [UserError("wrong"), UserCodeError("who", "doing", "why"), Interrupt(), TookTooLong()]
)
def test_what_is_ours_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, guard("the algorithm 'x'", "update"):
        raise error
    assert caught.value is error


def test_a_guard_may_be_entered_again_and_again() -> None:
    inner = guard("a", "b")
    for _ in range(3):
        with inner:
            pass
        with pytest.raises(UserCodeError), inner:
            raise SystemExit


def test_long_traces_are_cut() -> None:
    error = told(ValueError("x" * 100_000))
    assert len(error.trace) < module.MOST_TRACE + 100
    assert len(line(error)) < 1000


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("no"), False),
        (UserCodeError("", "", "", out_of_memory=True), True),
        (UserCodeError("", "", ""), False),
    ],
)
def test_whether_memory_ran_out(error: Exception, memory: bool) -> None:
    assert module.is_out_of_memory(error) is memory


def test_an_exception_that_fails_when_it_is_looked_at() -> None:
    reason = ""
    try:
        with guard("the algorithm 'x'", "update"):
            raise LyingError
    except UserCodeError as error:
        reason = error.reason
    assert reason == "LyingError: (its text cannot be had)"


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)


def test_the_user_at_the_keyboard_is_told_from_code_that_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupt), interruptible(), guard("the algorithm 'x'", "update"):
        interrupt()
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(UserCodeError), interruptible(), guard("the algorithm 'x'", "update"):
        raise KeyboardInterrupt


class Destroyed:
    """Is interrupted while it is destroyed."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)


class Forgotten:
    """Can be referred to weakly."""


def destroyed() -> None:
    del [Destroyed()][0]
    time.sleep(60)


def forgotten() -> None:
    forgettable = Forgotten()
    reference = weakref.ref(forgettable, lambda _: os.kill(os.getpid(), signal.SIGINT))
    del forgettable
    assert reference() is None
    time.sleep(60)


@pytest.mark.parametrize("swallowing", [destroyed, forgotten])
def test_an_interrupt_that_python_swallows_comes_again(swallowing: Callable[[], None]) -> None:
    """No exception comes out of a destructor or a weak reference's callback."""
    hook = sys.unraisablehook
    with pytest.raises(Interrupt), interruptible():
        swallowing()
    assert sys.unraisablehook is hook


def test_what_else_python_swallows_is_told_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def __del__(self) -> None:
            raise ValueError("in the destructor")

    seen: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda error: seen.append(error.exc_type))
    with interruptible():
        del [Failing()][0]
    assert seen == [ValueError]


def stubborn() -> None:
    """Catches what it can, and once even more."""
    for _ in range(2):
        try:
            time.sleep(100)
        except Exception:
            continue
        except BaseException:
            time.sleep(100)


def test_what_has_no_end_is_ended_though_it_catches_much() -> None:
    begun = time.monotonic()
    with pytest.raises(TookTooLong, match=r"^took longer than its time: ended after \d+ s$"):  # noqa: SIM117
        with within(0.2, "its time"), guard("the algorithm 'x'", "update"):
            stubborn()
    assert time.monotonic() - begun < 60
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_what_ends_in_time_is_left_alone() -> None:
    with within(60, "its time"):
        pass
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    with pytest.raises(TookTooLong, match="took longer than its time"), within(0, "its time"):
        raise AssertionError("nothing is left to begin with")


def test_outside_the_main_thread_nothing_is_limited() -> None:
    done = []

    def work() -> None:
        with within(0.05, "its time"), interruptible():
            time.sleep(0.2)
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
