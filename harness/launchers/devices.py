"""A worker for each device of this machine, with one pool of evaluation processes, seen and ended as one.

The workers are those of ``lspc-bench work``: processes that take jobs by claims. This process trains nothing. It keeps
the evaluation processes, which roll out whatever any worker submits, first come, first served: a device whose job ends
has all of them for its last evaluation, and none of them idles while another device waits. It starts a worker anew that
died, tells how all of them go, and hands on an interrupt.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

# Whatever imports torch is imported where it is needed: commands look into every launcher.
from harness import processes
from harness.errors import ResultsError, UserError
from harness.guard import STOP_SIGNALS, interruptible
from harness.launchers import Launched, Workload
from harness.options import Options, parse_devices
from harness.pool import LOOK, TRIES, WorkerDied, start_process

if TYPE_CHECKING:
    from harness.plan import Cell, Plan
    from harness.store import Status
    from harness.work import Backlog

FAREWELL = 60.0
"""Seconds that a worker may take to see that nothing is left, once another has."""


def resolve_devices(text: str) -> tuple[str, ...]:
    """The same, of those that are there.

    Raises:
        UserError: one is not.
    """
    import torch

    from harness.executors.local import resolve_device

    try:
        devices = parse_devices(text)
    except ValueError as error:
        raise UserError(f"--devices {text}: {error}") from error
    if devices == ("all",):
        if not torch.cuda.is_available():
            raise UserError("--devices all: this machine, or this build of torch, has no CUDA; cpu:2 is two on the CPU")
        return tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))
    return tuple(resolve_device(name, option="--devices") for name in devices)


class Telling(Protocol):
    """Who is told how all workers go: :class:`harness.executors.local.Progress` of several."""

    def job(self, description: str, step: int, steps: int, worker: str) -> None:
        """A worker begins a job, or goes on with one, at a step."""

    def trained(self, step: int, worker: str) -> None:
        """A worker's job has reached a step."""

    def gone(self, worker: str) -> None:
        """A worker does nothing any more."""

    def evaluated(self, episodes: int) -> None:
        """More episodes are back."""

    def cell(self, cell: Cell, status: Status) -> None:
        """A cell ended."""

    def note(self, text: str) -> None:
        """Something the user should read."""

    def tick(self) -> None:
        """Time passes."""


@dataclass(eq=False)
class _Worker:
    device: str
    name: str
    process: SpawnProcess
    groups: frozenset[str] = frozenset()
    """That it has."""
    step: int = 0
    """That its job has reached."""
    outcome: tuple[Any, ...] = ()
    """How it ended, in its own words; empty where it had no time for any."""
    silent: bool = False
    """Whether its end of the line is closed."""
    asked: bool = False
    """Whether it was told to end."""


class Launcher:
    """Runs a backlog on the devices of this machine, as long as the block lasts.

    Args:
        devices: for each worker the one that it trains on; the CPU for several, which share its cores and memory.
        plan: of which it runs something.
        backlog: what.
    """

    def __init__(self, devices: Sequence[str], plan: Plan, backlog: Backlog) -> None:
        self.devices = tuple(devices)
        self.plan, self.backlog = plan, backlog
        self._context = multiprocessing.get_context("spawn")
        self._inbox: SimpleQueue[tuple[_Worker, tuple[Any, ...]]] = SimpleQueue()
        self._workers: list[_Worker] = []
        self._ended: list[_Worker] = []
        self._interrupts = 0
        self._deaths: Counter[str] = Counter()
        self._reached: dict[str, int] = {}
        self._false_starts: Counter[str] = Counter()
        self._signals = ExitStack()

    def __enter__(self) -> Launcher:
        self._signals.enter_context(interruptible(self._interrupt, STOP_SIGNALS))
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
        self._signals.close()

    def launch(self, work: Workload) -> Launched:
        """Start the workers, and come back. What ends them all in good order is an interrupt of this process."""
        from harness.evaluation import evaluation_pool

        self._work = work
        self._until = None if work.options.most_seconds is None else time.monotonic() + work.options.most_seconds
        self._pool = evaluation_pool(work.options.processes)
        for index, device in enumerate(self.devices):
            same = self.devices.count(device)
            name = f"{device} {self.devices[: index + 1].count(device)} of {same}" if same > 1 else device
            self._workers.append(self._start(device, name))
        jobs = tuple(worker.name for worker in self._workers)
        return Launched("devices", work.suite, jobs, {"process": processes.name()})

    @staticmethod
    def states(launched: Launched) -> dict[str, str]:
        """How its jobs are that have not ended; of another machine's nothing can be told."""
        return {} if processes.gone(launched.about["process"]) else dict.fromkeys(launched.jobs, "running")

    @staticmethod
    def cancel(launched: Launched) -> None:
        """End its workers; each keeps what is under way.

        Raises:
            UserError: they are another machine's.
        """
        process = launched.about["process"]
        if processes.number_here(process) is None and not processes.gone(process):
            raise UserError("they run on another machine; cancel them there")
        processes.end(process)

    def watch(self, telling: Telling) -> None:
        """Wait until all workers have ended.

        A worker that dies is started anew. A group of cells of which three die one after the other, without coming any
        further, has failed.

        Args:
            telling: is told how they go.

        Raises:
            Interrupted: the user asked to stop, or the time is up.
            ResultsError: results cannot be written.
            UserError: a worker cannot do what it was started for.
        """
        from harness.executors.local import Interrupted

        with self._pool:
            farewell = float("inf")
            while self._workers:
                self._take_in(telling)
                self._pass_on()
                for worker in list(self._workers):
                    if worker.process.exitcode is None or not worker.silent:
                        if time.monotonic() > farewell and worker.process.exitcode is None:
                            worker.process.kill()
                        continue
                    self._end(worker, telling)
                    if self._work.wait and worker.outcome == ("over",):  # so nothing is left
                        farewell = min(farewell, time.monotonic() + FAREWELL)
                telling.tick()
        for worker in self._ended:
            if worker.outcome and worker.outcome[0] == "refused":
                raise worker.outcome[1](worker.outcome[2])
        if self._interrupts or any(worker.outcome == ("interrupted",) for worker in self._ended):
            raise Interrupted

    # Workers

    def _start(self, device: str, name: str) -> _Worker:
        from harness.relay import Line

        ours, theirs = self._context.Pipe()
        options = replace(self._work.options, device=device)
        if self._until is not None:
            options = replace(options, most_seconds=max(0.0, self._until - time.monotonic()))
        if device == "cpu":
            options = replace(options, memory_fraction=options.memory_fraction / self.devices.count("cpu"))
        threads = max(1, len(os.sched_getaffinity(0)) // len(self.devices))
        process = self._context.Process(
            target=_work,
            args=(theirs, self._work.results, self.plan, self.backlog, options, threads, self._work.wait),
        )
        try:  # an interrupt at the keyboard, which reaches the worker too, is for this process to hand on
            start_process(process)
        finally:
            theirs.close()  # so that its end is seen here
        worker = _Worker(device, name, process)
        Line(ours, self._pool, lambda *message: self._inbox.put((worker, message)))
        return worker

    def _take_in(self, telling: Telling) -> None:
        """Hand on what workers tell, and wait a moment where they tell nothing."""
        with suppress(Empty):
            worker, message = self._inbox.get(timeout=LOOK)
            while True:
                self._hear(worker, telling, *message)
                worker, message = self._inbox.get_nowait()

    def _hear(self, worker: _Worker, telling: Telling, kind: str = "", *message: Any) -> None:
        if kind == "has":
            worker.groups = message[0]
        elif kind == "ended":
            worker.outcome = message
        elif not kind:
            worker.silent = True
        elif kind in ("job", "trained"):
            worker.step = message[-2] if kind == "job" else message[0]
            getattr(telling, kind)(*message, worker=worker.name)
        elif kind == "note":
            telling.note(f"{worker.name}: {message[0]}")
        else:
            getattr(telling, kind)(*message)

    def _end(self, worker: _Worker, telling: Telling) -> None:
        """A worker has ended; start it anew where it should not have."""
        from harness.store import Store

        self._workers.remove(worker)
        self._ended.append(worker)
        telling.gone(worker.name)
        if worker.outcome or self._interrupts:
            return
        Store(self._work.results).sweep()
        died = WorkerDied(worker.process.exitcode or 0, 1)
        telling.note(f"{worker.name}: {died}; what it had is taken up again")
        for group in worker.groups:
            self._deaths[group] = 1 if worker.step > self._reached.get(group, -1) else self._deaths[group] + 1
            self._reached[group] = worker.step
            if self._deaths[group] >= TRIES:
                self._give_up(group, WorkerDied(worker.process.exitcode or 0, self._deaths[group]), telling)
        self._false_starts[worker.name] = 0 if worker.groups else self._false_starts[worker.name] + 1
        if self._false_starts[worker.name] >= TRIES:
            telling.note(f"{worker.name}: not started again, as it died {TRIES} times before it began anything")
        elif not (self._work.wait and any(one.outcome == ("over",) for one in self._ended)):
            self._workers.append(self._start(worker.device, worker.name))

    def _give_up(self, group: str, reason: Exception, telling: Telling) -> None:
        """Let the cells of a group fail of which one worker after the other dies, unless another has it now."""
        from harness.claims import Claims
        from harness.store import EVERYTHING, Status, Store

        store = Store(self._work.results, EVERYTHING)
        with Claims(store.root) as claims:
            if not claims.acquire(group):
                return
            store.claims = claims
            for cell in self.backlog.groups[group]:
                if store.written(cell) == self.backlog.before[cell.hash] or store.status(cell).state == "running":
                    status = Status("failed", f"while it trained, {reason}")
                    store.set_status(cell, status)
                    telling.cell(cell, status)

    # Interrupts

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += 1

    def _pass_on(self) -> None:
        """The first interrupt ends the workers at their next safe point, the second at once."""
        for worker in self._workers:
            if self._interrupts > 1:
                worker.process.kill()
            elif self._interrupts and not worker.asked:
                worker.asked = True
                worker.process.terminate()


def _work(
    pipe: Connection,
    results: Path,
    plan: Plan,
    backlog: Backlog,
    options: Options,
    threads: int,
    wait: bool,
) -> None:
    """A worker, in a process of its own."""
    import torch

    from harness.executors.local import Interrupted
    from harness.relay import Relay
    from harness.store import EVERYTHING, Store
    from harness.tracking import tracking
    from harness.work import take_part

    torch.set_num_threads(threads)
    relay = Relay(pipe)
    store = Store(results, EVERYTHING, relay.note)
    try:
        pool = relay if options.processes else None
        with tracking(plan, [*plan.track, *options.track], results, relay.note) as tracked:
            take_part(store, backlog, relay, options, plan.time_limits, wait, pool, relay.has, tracked)
        relay.tell("ended", "over")
    except (Interrupted, KeyboardInterrupt):
        relay.tell("ended", "interrupted")
    except (UserError, ResultsError) as error:
        relay.tell("ended", "refused", type(error) if type(error) is ResultsError else UserError, str(error))
    relay.end()
