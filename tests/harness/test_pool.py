"""The pool: a worker that dies or hangs takes nothing but its task along, and nobody waits for nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from harness import pool as module
from harness.guard import TookTooLong, UserCodeError
from harness.pool import Pool, WorkerDied


def square(value: int) -> int:
    return value * value


def process() -> int:
    return os.getpid()


def killed(marker: Path, times: int) -> str:
    """Kills its process so many times; then says how often it was."""
    count = len(marker.read_text())
    if count < times:
        marker.write_text("x" * (count + 1))
        os.kill(os.getpid(), signal.SIGKILL)
    return f"{count} times"


def leave(status: int) -> None:
    os._exit(status)


class Untellable(BaseException):
    def __init__(self, one: int, two: int) -> None:
        super().__init__("only one argument")

    def __str__(self) -> str:
        raise SystemExit("no text either")


def raising(kind: Callable[[], BaseException]) -> None:
    raise kind()


def untellable() -> BaseException:
    return Untellable(1, 2)


def result_that_does_not_travel() -> Any:
    return lambda: None


def children(pool: Pool) -> list[int]:
    return [worker.process.pid or 0 for worker in pool._workers]


def no_start() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_results_come_back_in_their_futures() -> None:
    with Pool(2) as pool:
        futures = [pool.submit(square, value) for value in range(20)]
        assert [future.result(60) for future in futures] == [value * value for value in range(20)]
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(square, 1)


def test_workers_are_replaced_after_so_many_tasks() -> None:
    with Pool(1, tasks_a_worker=2) as pool:
        pids = [pool.submit(process).result(60) for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        (SystemExit, "SystemExit"),
        (KeyboardInterrupt, "KeyboardInterrupt"),
        (GeneratorExit, "GeneratorExit"),
        (untellable, "Untellable: (its text cannot be had)"),
    ],
)
def test_whatever_is_raised_comes_back_as_text(kind: Callable[[], BaseException], part: str) -> None:
    content = module.pickle.dumps((raising, (kind,)))
    fine, error = module.pickle.loads(module.answer(content))
    assert not fine
    assert isinstance(error, UserCodeError)
    assert error.reason == part
    assert "in raising" in error.trace


def test_a_result_that_cannot_be_sent_is_an_error_of_its_task() -> None:
    with Pool(1) as pool:
        with pytest.raises(UserCodeError, match="pickle"):
            pool.submit(result_that_does_not_travel).result(60)
        assert pool.submit(square, 3).result(60) == 9


def test_interrupts_do_not_reach_workers() -> None:
    """Nor the first one of a process, with which multiprocessing starts a process of its own and unblocks SIGINT."""
    script = (
        "import signal; from harness.pool import Pool\n"
        "with Pool(1) as pool: print(*pool.submit(signal.pthread_sigmask, signal.SIG_BLOCK, ()).result(60))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert {int(number) for number in done.stdout.split()} >= {signal.SIGINT, signal.SIGUSR2}


def test_what_cannot_be_sent_is_refused_at_once() -> None:
    with Pool(1) as pool, pytest.raises(Exception, match="pickle"):
        pool.submit(square, lambda: None)


def test_a_task_whose_worker_is_killed_is_repeated(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    marker.touch()
    with Pool(1) as pool:
        first, second = pool.submit(killed, marker, 2), pool.submit(square, 2)
        assert first.result(60) == "2 times"
        assert second.result(60) == 4


def test_a_task_that_kills_its_workers_fails_alone() -> None:
    with Pool(2) as pool:
        deadly = pool.submit(leave, 7)
        others = [pool.submit(square, value) for value in range(4)]
        with pytest.raises(WorkerDied, match=r"^the worker process ended with status 7, 3 times in a row$"):
            deadly.result(60)
        assert [future.result(60) for future in others] == [0, 1, 4, 9]


def test_a_task_has_only_its_time() -> None:
    with Pool(1) as pool:
        endless, other = pool.submit(time.sleep, 1000, seconds=0.2), pool.submit(square, 2)
        with pytest.raises(TookTooLong, match=r"^took longer than its 0\.2 s$"):
            endless.result(60)
        assert other.result(60) == 4


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.5])
def test_workers_killed_while_they_start_cost_nothing(seconds: float) -> None:
    with Pool(2) as pool:
        futures = [pool.submit(square, value) for value in range(4)]
        for _ in range(module.TRIES - 1):  # a worker may be ready, and hold the same chunk each time
            deadline = time.monotonic() + 60
            while not children(pool) and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(seconds)
            for pid in children(pool):
                with suppress(ProcessLookupError):  # of the killed one that has not been replaced yet
                    os.kill(pid, signal.SIGKILL)
        assert [future.result(60) for future in futures] == [0, 1, 4, 9]


def test_idle_workers_that_are_killed_are_replaced() -> None:
    with Pool(1) as pool:
        for value in range(3):
            assert pool.submit(square, value).result(60) == value * value
            for pid in children(pool):
                os.kill(pid, signal.SIGKILL)


def test_workers_that_never_start_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STARTS", 2)
    with Pool(1, start=no_start) as pool:
        futures = [pool.submit(square, value) for value in range(3)]
        for future in futures:
            with pytest.raises(WorkerDied, match="killed by signal 9, 2 times in a row"):
                future.result(60)


def test_no_process_to_be_had_is_a_failed_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STARTS", 3)
    with Pool(1) as pool:

        def refused(process: Any) -> None:
            raise BlockingIOError("no more processes")

        with monkeypatch.context() as patch:
            patch.setattr(pool._context.Process, "start", refused)
            with pytest.raises(BlockingIOError):
                pool.submit(square, 1).result(60)
        assert pool.submit(square, 2).result(60) == 4


def test_a_mistake_of_the_pool_itself_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threading.excepthook", lambda arguments: None)
    with Pool(1) as pool:
        monkeypatch.setattr(pool, "_listen", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pool.submit(square, 1).result(60)


def test_what_is_cancelled_is_not_done(tmp_path: Path) -> None:
    with Pool(1) as pool:
        first, second = pool.submit(time.sleep, 0.5), pool.submit(Path.touch, tmp_path / "done")
        assert second.cancel()
        first.result(60)
        pool.submit(square, 1).result(60)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("at_once", [False, True])
def test_closing_ends_what_is_under_way(at_once: bool) -> None:
    pool = Pool(1)
    running, waiting = pool.submit(time.sleep, 1000), pool.submit(square, 1)
    while not running.running():
        time.sleep(0.01)
    processes = [worker.process for worker in pool._workers]
    begun = time.monotonic()
    pool.close(at_once)
    assert time.monotonic() - begun < module.GRACE
    assert not any(process.is_alive() for process in processes)
    assert waiting.cancelled()


def test_an_interrupt_does_not_reach_workers() -> None:
    with Pool(1) as pool:
        pid = pool.submit(process).result(60)
        task = pool.submit(time.sleep, 0.3)
        os.kill(pid, signal.SIGINT)
        assert task.result(60) is None


def test_a_child_of_a_dead_workers_own_keeps_nobody_waiting(tmp_path: Path) -> None:
    """It holds the worker's end of the pipe open."""
    with Pool(1) as pool, pytest.raises(WorkerDied):
        pool.submit(_leave_a_child, tries=1).result(60)


def _leave_a_child() -> None:
    if os.fork() == 0:
        time.sleep(5)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)
