"""A pool of worker processes, each with a pipe of its own: one that dies or hangs takes nothing but its task along.

A task whose worker dies is tried again by another one, a few times; a task that takes too long ends with its worker.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Protocol, TypeVar

from harness.guard import TookTooLong, told

TRIES = 3
"""Workers that may die of a task before it counts as failed."""
STARTS = 20
"""Workers in a row that may die before they are ready; then what waits has failed."""
LONGEST_PAUSE = 2.0
"""Seconds between such starts; the first pauses are shorter."""
LOOK = 0.02
"""Seconds between looks at what was submitted, and at who is still alive."""
GRACE = 5.0
"""Seconds in which idle workers may end by themselves."""
INTERRUPTS = (signal.SIGINT, signal.SIGUSR2)
"""At the keyboard, and by SLURM: workers get them too, and go on."""

Result = TypeVar("Result")


class WorkerDied(Exception):  # noqa: N818 - it says what happened
    """The processes that were to do a task ended before they had done it.

    Args:
        exitcode: of the last one; below zero the number of the signal that killed it.
        times: how many died.
    """

    def __init__(self, exitcode: int, times: int) -> None:
        super().__init__(exitcode, times)
        self.exitcode, self.times = exitcode, times

    def __str__(self) -> str:
        ended = f"was killed by signal {-self.exitcode}" if self.exitcode < 0 else f"ended with status {self.exitcode}"
        return f"the worker process {ended}" + (f", {self.times} times in a row" if self.times > 1 else "")


@dataclass(eq=False)
class _Task:
    content: bytes
    seconds: float
    tries: int
    future: Future[Any] = field(default_factory=Future)
    died: int = 0

    def fail(self, error: BaseException) -> None:
        """Unless it was cancelled."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    pipe: Connection
    ready: bool = False
    task: _Task | None = None
    deadline: float = float("inf")
    handed: int = 0


def start_process(process: BaseProcess, blocked: Collection[signal.Signals] = (signal.SIGINT,)) -> None:
    """Start a process that these signals do not interrupt: sent to the whole group, they are the parent's to handle.

    Args:
        process: of ``multiprocessing``.
        blocked: an interrupt at the keyboard, or more.

    Raises:
        OSError: there can be no more processes.
    """
    resource_tracker.ensure_running()  # before all else: whoever starts it finds SIGINT unblocked afterwards
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def nothing() -> None:
    """Prepare nothing."""


class Submitting(Protocol):
    """What does tasks, here or for others too; see :class:`Pool`."""

    def submit(
        self, function: Callable[..., Result], *args: Any, seconds: float = float("inf"), tries: int = TRIES
    ) -> Future[Result]:
        """Call a function in a worker."""

    def close(self, at_once: bool = False) -> None:
        """Nothing that was submitted is waited for any more."""


class Pool:
    """Worker processes, started when there is something to do.

    Args:
        workers: how many at a time.
        start: called in every worker before its first task.
        tasks_a_worker: after how many a worker is replaced, ``None`` for never.
    """

    def __init__(self, workers: int, start: Callable[[], None] = nothing, tasks_a_worker: int | None = None) -> None:
        self._size, self._start, self._tasks_a_worker = workers, start, tasks_a_worker
        self._context = multiprocessing.get_context("spawn")
        self._waiting: deque[_Task] = deque()
        self._workers: list[_Worker] = []
        self._leaving: list[_Worker] = []
        self._died, self._not_before = 0, 0.0
        self._closing, self._at_once = threading.Event(), False
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def submit(
        self, function: Callable[..., Result], *args: Any, seconds: float = float("inf"), tries: int = TRIES
    ) -> Future[Result]:
        """Call a function in a worker.

        Args:
            function: of a module that workers can import.
            args: what it is called with, pickled here and now.
            seconds: that it may take, once a worker has begun.
            tries: workers that may die of it.

        Returns:
            Its result. Or as exceptions: :class:`harness.guard.UserCodeError`, whatever it raised;
            :class:`WorkerDied`; :class:`harness.guard.TookTooLong`.
        """
        return self.submit_pickled(pickle.dumps((function, args)), seconds, tries)

    def submit_pickled(self, content: bytes, seconds: float, tries: int) -> Future[Any]:
        """:meth:`submit` of function and arguments that are pickled already; any thread may."""
        if self._closing.is_set():
            raise RuntimeError("the pool is closed")
        task = _Task(content, seconds, tries)
        self._waiting.append(task)
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._manage, name="pool", daemon=True)
                self._thread.start()
        return task.future

    def close(self, at_once: bool = False) -> None:
        """End the workers, what they do and what waits; ``at_once`` without asking the idle ones first."""
        self._at_once = at_once
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(at_once=kind is not None)

    # All below runs in the thread

    def _manage(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)  # they are to wake the main thread
        reason: BaseException | None = None
        try:
            while not self._closing.is_set():
                self._hire()
                self._hand_out()
                self._listen()
        except BaseException as error:
            reason = error
            self._closing.set()
            raise  # ours; nobody is left waiting
        finally:
            self._dismiss(reason)

    def _hire(self) -> None:
        """Start workers, as many as there is work for."""
        busy = sum(worker.task is not None for worker in self._workers)
        while len(self._workers) < min(self._size, busy + len(self._waiting)) and time.monotonic() >= self._not_before:
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=_work, args=(theirs, self._start), daemon=True)
            try:
                start_process(process, INTERRUPTS)
            except OSError as error:  # no more processes, no memory
                ours.close()
                self._failed_start(error)
            else:
                self._workers.append(_Worker(process, ours))
            finally:
                theirs.close()  # so that its end is seen here

    def _hand_out(self) -> None:
        """Give idle workers what waits."""
        for worker in self._workers:
            if not worker.ready or worker.task is not None:
                continue
            while self._waiting and worker.task is None:
                task = self._waiting.popleft()
                if task.died or task.future.set_running_or_notify_cancel():
                    worker.task = task
            if worker.task is None:
                return
            worker.handed += 1
            worker.deadline = time.monotonic() + worker.task.seconds
            try:
                worker.pipe.send_bytes(worker.task.content)
            except OSError:  # it is dead, which is seen when its answer is looked for
                continue

    def _listen(self) -> None:
        """Take in answers and deaths, and end what takes too long."""
        answered = set(wait([worker.pipe for worker in self._workers], LOOK))
        for worker in list(self._workers):
            if worker.pipe in answered:
                self._receive(worker)
            elif worker.process.exitcode is not None:  # though a child of its own may hold its pipe open
                self._bury(worker)
            elif worker.task is not None and time.monotonic() > worker.deadline:
                task, worker.task = worker.task, None
                self._bury(worker)
                task.fail(TookTooLong(f"took longer than its {task.seconds:g} s"))
        self._leaving = [worker for worker in self._leaving if worker.process.exitcode is None]

    def _receive(self, worker: _Worker) -> None:
        try:
            content = worker.pipe.recv_bytes()
        except (EOFError, OSError):
            self._bury(worker)
            return
        if not worker.ready:
            worker.ready, self._died = True, 0
            return
        task, worker.task, worker.deadline = worker.task, None, float("inf")
        assert task is not None, "an answer is to a task"
        if worker.handed == self._tasks_a_worker:
            self._workers.remove(worker)
            self._leaving.append(worker)
            worker.pipe.close()  # on which it ends
        settle(task.future, content)

    def _bury(self, worker: _Worker) -> None:
        """A worker is dead, or is to be; its task is another's, if that has tries left."""
        self._workers.remove(worker)
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()
        exitcode = worker.process.exitcode or 0
        if not worker.ready:
            self._failed_start(WorkerDied(exitcode, self._died + 1))
        if worker.task is not None:
            worker.task.died += 1
            if worker.task.died < worker.task.tries:
                self._waiting.appendleft(worker.task)
            else:
                worker.task.fail(WorkerDied(exitcode, worker.task.died))

    def _failed_start(self, error: Exception) -> None:
        """Wait a little longer each time, and at last say so to all that wait."""
        self._died += 1
        self._not_before = time.monotonic() + min(0.1 * 2**self._died, LONGEST_PAUSE)
        if self._died >= STARTS:
            self._died = 0
            while self._waiting:
                self._waiting.popleft().fail(error)

    def _dismiss(self, reason: BaseException | None) -> None:
        """End every worker, and with an exception of ours whoever waits for one."""
        tasks = [*self._waiting, *(worker.task for worker in self._workers if worker.task is not None)]
        for worker in self._workers:
            worker.pipe.close()
            if worker.task is not None or not worker.ready or self._at_once:
                worker.process.kill()
        deadline = time.monotonic() + GRACE
        for worker in (*self._workers, *self._leaving):
            worker.process.join(0 if self._at_once else max(0.0, deadline - time.monotonic()))
            worker.process.kill()
            worker.process.join()
        for task in tasks:
            if reason is not None:
                task.fail(reason)
            else:
                task.future.cancel()


def _work(pipe: Connection, start: Callable[[], None]) -> None:
    """A worker's life."""
    start()
    pipe.send_bytes(b"ready")
    while True:
        try:
            content = pipe.recv_bytes()
        except EOFError:
            return
        pipe.send_bytes(answer(content))


def answer(content: bytes) -> bytes:
    """A task's result, or whatever came in its place, as text: exceptions themselves may not survive the journey."""
    try:
        function, args = pickle.loads(content)  # noqa: S301 - of our own parent
        return pickle.dumps((True, function(*args)))
    except TookTooLong as error:
        return pickle.dumps((False, error))
    except BaseException as error:  # the future carries it
        return pickle.dumps((False, told(error)))


def settle(future: Future[Any], content: bytes) -> None:
    """Give a future what :func:`answer` made, unless it was cancelled."""
    try:
        fine, value = pickle.loads(content)  # noqa: S301 - of our own worker
    except Exception as error:  # the future carries it
        fine, value = False, told(error)
    with suppress(InvalidStateError):
        if fine:
            future.set_result(value)
        else:
            future.set_exception(value)
