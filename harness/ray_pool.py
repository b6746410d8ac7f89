"""In the place of a pool of worker processes: tasks on the cores of a Ray cluster."""

from __future__ import annotations

import faulthandler
import os
import pickle
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import ray
import torch

from harness.evaluation import TASKS_A_WORKER
from harness.guard import told, within
from harness.pool import GRACE, TRIES, Result, answer, settle

NICENESS = os.getpriority(os.PRIO_PROCESS, 0) + 4
"""More than Ray gives the processes that train: those go first."""


class RayPool:
    """As :class:`harness.pool.Pool`, within a task of Ray's: each call is a task, on a core that is free."""

    def __init__(self) -> None:
        self._task = ray.remote(num_cpus=1, max_calls=TASKS_A_WORKER)(_call)
        self._open: set[Future[Any]] = set()

    def submit(
        self, function: Callable[..., Result], *args: Any, seconds: float = float("inf"), tries: int = TRIES
    ) -> Future[Result]:
        """As of the pool: a call whose process dies, or its node, is made again."""
        future: Future[Result] = Future()
        content = pickle.dumps((_in_time, (seconds, function, args)))
        task = self._task.options(max_retries=tries - 1).remote(content, seconds)
        self._open.add(future)
        future.add_done_callback(partial(self._done, task))
        task.future().add_done_callback(partial(self._answered, future))
        return future

    def close(self, at_once: bool = False) -> None:
        """Nobody waits any more for what was submitted."""
        for future in list(self._open):
            future.cancel()

    def _done(self, task: Any, future: Future[Any]) -> None:
        self._open.discard(future)
        if future.cancelled():
            ray.cancel(task)

    def _answered(self, future: Future[Any], task: Future[bytes]) -> None:
        error = task.exception()
        settle(future, pickle.dumps((False, told(error))) if error else task.result())


def _call(content: bytes, seconds: float) -> bytes:
    """What a process of Ray's does."""
    torch.set_num_threads(1)
    os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    faulthandler.dump_traceback_later(min(seconds, 1e8) + GRACE, exit=True, file=2)  # a call into C that hangs
    try:
        return answer(content)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _in_time(seconds: float, function: Callable[..., Result], args: tuple[Any, ...]) -> Result:
    with within(seconds, f"its {seconds:g} s"):
        return function(*args)
