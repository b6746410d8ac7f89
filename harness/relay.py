"""Between a worker process and the one that started it: progress goes up, and evaluation processes are shared.

Both ends hand what they send to a thread, so that whoever is stopped or slow holds up nobody, and a signal's handler
may send, too.
"""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from harness.plan import Cell
from harness.pool import TRIES, Pool, Result
from harness.store import Status

SELDOM = 0.1
"""Seconds between two reports of how far training is."""


class _Sender:
    """Sends from a thread of its own, in order, until the other end is gone."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._waiting: SimpleQueue[tuple[Any, ...] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._send, name="sender", daemon=True)
        self._thread.start()

    def __call__(self, *message: Any) -> None:
        self._waiting.put(message)

    def close(self) -> None:
        """Send what waits."""
        self._waiting.put(None)
        self._thread.join()

    def _send(self) -> None:
        with suppress(OSError):  # the other end is gone
            while (message := self._waiting.get()) is not None:
                self._pipe.send(message)


class Relay:
    """The worker's end: a :class:`harness.executors.local.Progress`, and in the place of a pool.

    When the other process dies this one is told to end in good order, as by ``kill``.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._send = pipe, _Sender(pipe)
        self._futures: dict[int, Future[Any]] = {}
        self._numbers = itertools.count()
        self._last = 0.0
        threading.Thread(target=self._listen, name="listener", daemon=True).start()

    # Progress

    def job(self, description: str, step: int, steps: int) -> None:
        """A job begins, or goes on, at a step."""
        self._send("job", description, step, steps)

    def trained(self, step: int) -> None:
        """The job has reached a step."""
        if time.monotonic() - self._last > SELDOM:
            self._last = time.monotonic()
            self._send("trained", step)

    def evaluated(self, episodes: int) -> None:
        """More episodes are back."""
        if episodes:
            self._send("evaluated", episodes)

    def cell(self, cell: Cell, status: Status) -> None:
        """A cell ended."""
        self._send("cell", cell, status)

    def note(self, text: str) -> None:
        """Something the user should read."""
        self._send("note", text)

    def has(self, groups: Iterable[str]) -> None:
        """The groups of cells that this worker has now are others."""
        self._send("has", frozenset(groups))

    def tell(self, *message: Any) -> None:
        """Anything else."""
        self._send(*message)

    def end(self) -> None:
        """Nothing follows."""
        self._send.close()

    # Evaluation

    def submit(
        self, function: Callable[..., Result], *args: Any, seconds: float = float("inf"), tries: int = TRIES
    ) -> Future[Result]:
        """As :meth:`harness.pool.Pool.submit`, in a worker of the other process's pool."""
        number, future = next(self._numbers), Future[Result]()
        self._futures[number] = future
        future.add_done_callback(partial(self._done, number))
        self._send("submit", number, pickle.dumps((function, args)), seconds, tries)
        return future

    def close(self, at_once: bool = False) -> None:
        """Nobody waits for what was submitted any more."""
        for future in list(self._futures.values()):
            future.cancel()

    def _done(self, number: int, future: Future[Any]) -> None:
        del self._futures[number]
        if future.cancelled():
            self._send("cancel", number)

    def _listen(self) -> None:
        try:
            while True:
                number, error, value = self._pipe.recv()
                future = self._futures.get(number)
                if future is None:
                    continue
                with suppress(InvalidStateError):  # cancelled at this very moment
                    if error is None:
                        future.set_result(value)
                    else:
                        future.set_exception(error)
        except (EOFError, OSError):
            os.kill(os.getpid(), signal.SIGTERM)


class Line:
    """The other end, one for each worker.

    Args:
        pipe: to the worker.
        pool: does what the worker submits.
        told: is called, from a thread, with every other message; without any when the worker's end is closed.
    """

    def __init__(self, pipe: Connection, pool: Pool, told: Callable[..., None]) -> None:
        self._pipe, self._pool, self._told = pipe, pool, told
        self._send = _Sender(pipe)
        self._futures: dict[int, Future[Any]] = {}
        threading.Thread(target=self._listen, name="line", daemon=True).start()

    def _listen(self) -> None:
        try:
            while True:
                kind, *message = self._pipe.recv()
                if kind == "submit":
                    number, content, seconds, tries = message
                    future = self._pool.submit_pickled(content, seconds, tries)
                    self._futures[number] = future
                    future.add_done_callback(partial(self._answer, number))
                elif kind == "cancel":
                    if (waiting := self._futures.get(message[0])) is not None:
                        waiting.cancel()
                else:
                    self._told(kind, *message)
        except (EOFError, OSError):
            pass
        finally:  # whatever it was: nobody waits for a line that is silent
            for future in list(self._futures.values()):
                future.cancel()
            self._told()

    def _answer(self, number: int, future: Future[Any]) -> None:
        self._futures.pop(number, None)
        if not future.cancelled():
            error = future.exception()
            self._send(number, error, None if error else future.result())
