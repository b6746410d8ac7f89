"""Run jobs one after the other in this process, with roll-outs beside them in worker processes."""

from __future__ import annotations

import platform
import subprocess
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch

from harness import registry
from harness.algorithm import Selection
from harness.capacity import Layout, arrange, free_memory, measure, readable
from harness.claims import ClaimLost
from harness.data.dataset import Dataset
from harness.data.draws import BLOCK
from harness.errors import ResultsError, UserError
from harness.evaluation import Evaluator
from harness.files import is_disk_fault, writing
from harness.guard import STOP_SIGNALS, Interrupt, TookTooLong, UserCodeError, interruptible, is_out_of_memory
from harness.memory import keep_freed_memory
from harness.notes import Note
from harness.options import Options
from harness.plan import Cell, CellData, Job, make_jobs
from harness.pool import Submitting
from harness.store import Status, Store
from harness.suite import TimeLimits
from harness.tasks import Task
from harness.tracking import NOWHERE, Tracking
from harness.trained import Trained, is_trained
from harness.training import Training

PACKAGES = (
    "lspc-bench",
    "torch",
    "numpy",
    "gymnasium",
    "bullet-safety-gym",
    "pybullet",
    "safety-gymnasium",
    "mujoco",
    "metadrive-simulator",
)


MOMENT = 0.02
"""Seconds between two looks at what is under way."""

AT_ONCE = 4
"""Trained jobs that are evaluated side by side before another one is begun: their policies are in memory, and other
workers want some, too."""


class Interrupted(Exception):  # noqa: N818 - it is no error
    """The user asked to stop; the job under way has been checkpointed."""


class Progress(Protocol):
    """Who is told how things go."""

    def job(self, description: str, step: int, steps: int) -> None:
        """A job begins, or goes on, at a step."""

    def trained(self, step: int) -> None:
        """The job has reached a step."""

    def evaluated(self, episodes: int) -> None:
        """More episodes are back."""

    def cell(self, cell: Cell, status: Status) -> None:
        """A cell ended."""

    def note(self, text: str) -> None:
        """Something the user should read."""


class LocalExecutor:
    """Runs jobs to the end, whatever single cells do.

    Args:
        store: where results go.
        progress: who is told.
        options: of the run; its device is one that is there.
        time_limits: of episodes and of training.
        pool: of evaluation processes, shared with others; ``None``: its own.
        tracking: is told what results will hold, as it comes.
    """

    def __init__(
        self,
        store: Store,
        progress: Progress,
        options: Options,
        time_limits: TimeLimits | None = None,
        pool: Submitting | None = None,
        tracking: Tracking = NOWHERE,
    ) -> None:
        self.store, self.progress, self.options, self.tracking = store, progress, options, tracking
        self.device = torch.device(options.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        else:
            self.device = torch.device("cuda", self.device.index or 0)
            torch.cuda.set_device(self.device)
            torch.set_float32_matmul_precision("high" if options.precision == "tf32" else "highest")
            torch.cuda.set_per_process_memory_fraction(options.memory_fraction, self.device)
        self.time_limits = time_limits or TimeLimits()
        self.evaluator = Evaluator(options.processes, self.time_limits.episode, pool)
        self._until = None if options.most_seconds is None else time.monotonic() + options.most_seconds
        self.ended: dict[str, Status] = {}
        self.record = {**provenance(), "precision": options.precision}
        self._active: list[Training | Trained] = []
        self._data: tuple[Dataset, Dataset | None] | None = None
        self._loaded: tuple[Task, CellData] | None = None
        self._stop = False

    def run(self, jobs: Iterable[Sequence[Job]], over: Callable[[str], None] = lambda group: None) -> dict[str, Status]:
        """Run the jobs.

        Args:
            jobs: what to run, the jobs of a group of cells at a time; the next ones are asked for when those before are
                trained. None means that there may be some later.
            over: is told of every group of cells (:attr:`harness.plan.Cell.group`) with which nothing is to be done
                any more.

        Returns:
            How each cell ended, by its hash.

        Raises:
            Interrupted: the user asked to stop.
            ResultsError: results cannot be written.
        """
        coming, queue, begun, more = iter(jobs), deque[Job](), set[str](), True
        with self.evaluator, interruptible(self._interrupt, STOP_SIGNALS):
            while queue or self._active or more:
                if queue and not self._stop:
                    queue.extendleft(reversed(self._attempt(queue.popleft())))
                else:
                    self._poll()
                for group in begun - {job.group for job in (*queue, *(one.job for one in self._active))}:
                    begun.remove(group)
                    over(group)
                if not queue and more:
                    given = next(coming, None)
                    more = given is not None
                    queue.extend(given or ())
                    begun |= {job.group for job in queue}
                if not queue:
                    time.sleep(MOMENT)
        return self.ended

    def _attempt(self, job: Job) -> list[Job]:
        """Train a job; what is to be done in its place, where it does not fit or something went wrong."""
        try:
            return self._try(job)
        except ClaimLost as error:
            self._lose(job, error)
            return []

    def _try(self, job: Job) -> list[Job]:
        try:
            return self._train(job)
        except (Interrupted, ResultsError, ClaimLost):
            raise
        except UserError as error:
            self._fail(job, str(error))
            return []
        except TookTooLong as error:  # what there is of it stays: with more time it goes on
            self._leave(job)
            self._fail(job, f"{registry.named(job.algorithm)}: {error}")
            return []
        except UserCodeError as error:  # a plugin's: its cells fail, the others go on
            reason, too_large = error.report, error.out_of_memory
        except Exception as error:  # ours, or of something that both stand on
            if is_disk_fault(error):
                raise ResultsError(f"cannot go on: {error}") from error
            reason, too_large = traceback.format_exc(), is_out_of_memory(error)
        if self.options.only_evaluation:  # what is trained stays, and nothing is trained in its place
            self._leave(job)
            self._fail(job, reason)
            return []
        # Out of the handler: the exception held the job's tensors.
        cells = self._drop(job)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(cells) < 2:
            self._fail(Job(cells=tuple(cells)), reason)
            return []
        if too_large:
            self.progress.note(f"{job.describe()} ran out of memory; training half of them at a time")
            return split(cells, -(-len(cells) // 2))
        self.progress.note(f"{job.describe()} failed; trying its replicas one by one")
        return split(cells, 1)

    def _train(self, job: Job) -> list[Job]:
        kept = self.store.read_checkpoint(job)
        if kept is not None and is_trained(kept):
            self._evaluate(job, kept)
            return []
        dataset, held_out = self._load(job)
        job, selections = self._select(job, dataset)
        if not job.cells:
            return []
        layout = self._arrange(job, dataset)
        if layout.replicas < len(job.cells):
            return split(job.cells, layout.replicas)
        for cell in job.cells:
            if self.store.status(cell).state != "done":
                with _writing(self.store.root):
                    self.store.set_status(cell, Status("running"))
        training = Training(
            job,
            dataset,
            selections,
            self.store,
            self._evaluator,
            self.device,
            engine=self.options.engine,
            ahead=layout.steps,
            on_host=layout.on_host,
            held_out=held_out,
            note=self._noting(job),
            most_seconds=self.time_limits.job,
            tracking=self.tracking,
        )
        self._active.append(training)
        self.progress.job(job.describe(), training.step, training.steps)
        self._tell(training)
        last, kept_step = time.monotonic(), training.step

        def pause() -> bool:
            nonlocal last, kept_step
            self._poll(but=training)
            self.progress.trained(training.step)
            self._tell(training)
            due = training.step > kept_step and time.monotonic() - last > self.options.checkpoint_seconds
            if due and not self._stop:
                with _writing(self.store.root):
                    training.checkpoint()
                last, kept_step = time.monotonic(), training.step
            return self._stop

        training.advance(pause)
        after: Training | Trained = training
        if training.step == training.steps:
            after = training.rest(self.record)
            self._active[self._active.index(training)] = after
            self.progress.evaluated(after.collect())
        # A job that is over already, and was short, is not worth it.
        over = isinstance(after, Trained) and after.complete
        if not over or time.monotonic() - last > self.options.checkpoint_seconds:
            with _writing(self.store.root):
                after.checkpoint()
        self._poll()
        return []

    def _evaluate(self, job: Job, kept: dict[str, Any]) -> None:
        """Go on with a job that is trained."""
        trained = Trained.resumed(
            job, self.store, self._evaluator, kept, self._noting(job), self.time_limits.job, self.tracking
        )
        self._active.append(trained)
        self.progress.job(job.describe(), trained.step, trained.steps)
        self._tell(trained)
        self._poll()
        while sum(isinstance(one, Trained) and one.waiting for one in self._active) >= AT_ONCE:
            time.sleep(MOMENT)
            self._poll()

    @property
    def _evaluator(self) -> Evaluator | None:
        """What rolls policies out here."""
        return None if self.options.no_evaluation else self.evaluator

    def _noting(self, job: Job) -> Note:
        return lambda text: self.progress.note(f"{job.describe()}: {text}")

    def _tell(self, training: Training | Trained) -> None:
        """Let others read how far this worker is."""
        if self.store.claims is not None:
            about = {"job": training.job.describe(), "step": training.step, "steps": training.steps}
            self.store.claims.about = {"device": str(self.device), **about}

    def _arrange(self, job: Job, dataset: Dataset) -> Layout:
        """How the job lies on the device.

        Raises:
            UserError: not even one of its replicas fits.
        """
        algorithm, first, count = registry.load(job.algorithm), job.cells[0], len(job.cells)
        try:
            with registry.own_code(job.algorithm, "update", self.time_limits.job):
                need = measure(algorithm, first.config, dataset, replica=first.replica)
        except UserCodeError as error:  # if it is not only the tiny batch that it minds, training will tell
            self.progress.note(f"{job.describe()}: how much memory it needs is unknown: {error.reason}")
            return Layout(count, BLOCK, on_host=False)
        free = free_memory(self.device, self.options.memory_fraction)
        layout = arrange(need, count, free, self.device.type)
        if layout is None:
            raise UserError(
                f"{job.describe()}: too large for {self.device}, of whose memory {readable(free)} may be taken (option "
                f"--memory-fraction): {need.describe()}"
            )
        if layout.replicas < count and self.store.checkpoint_path(job).exists():
            return Layout(count, layout.steps, layout.on_host)  # a checkpoint is of the whole group
        if layout != Layout(count, BLOCK, on_host=False):
            self.progress.note(f"{job.describe()}: {layout.describe()}, as {readable(free)} of memory may be taken")
        return layout

    def _poll(self, but: Training | None = None) -> None:
        """Take in roll-outs, and finish the jobs that are complete.

        Raises:
            Interrupted: the user asked to stop; every job's last state is kept.
            ResultsError: results cannot be written.
        """
        if self._until is not None and time.monotonic() > self._until:
            self._stop = True
        for training in list(self._active):
            self.progress.evaluated(training.collect())
            if training is but:
                continue
            try:
                self._go_on(training)
            except ClaimLost as error:
                self._lose(training.job, error)
        if self._stop and but is None:
            raise Interrupted

    def _go_on(self, training: Training | Trained) -> None:
        """Keep a job that is trained, where the run ends, and finish it where it is complete."""
        try:
            with _writing(self.store.root):
                if self._stop:
                    training.checkpoint()
                if isinstance(training, Trained) and not training.waiting:
                    for index, status in training.finish(self.record).items():
                        self._end(training.job.cells[index], status)
                    self._active.remove(training)
        except (UserCodeError, TookTooLong) as error:
            self._leave(training.job)
            self._fail(training.job, error.report if isinstance(error, UserCodeError) else str(error))

    def _leave(self, job: Job) -> list[Job]:
        """Go on without a job's training; what it was training, where it had begun."""
        hashes = {cell.hash for cell in job.cells}
        left = [one for one in self._active if any(cell.hash in hashes for cell in one.job.cells)]
        for training in left:
            self._active.remove(training)
            training.cancel()
        return [training.job for training in left]

    def _lose(self, job: Job, error: ClaimLost) -> None:
        """Leave a job to the worker that has it now."""
        self._leave(job)
        self.progress.note(f"{job.describe()}: {error}")

    def _drop(self, job: Job) -> list[Cell]:
        """Give up a job that raised an exception; its cells that have not ended."""
        for dropped in (*self._leave(job), job):
            self.store.remove_checkpoint(dropped)
        return [cell for cell in job.cells if cell.hash not in self.ended and self.store.status(cell).state != "done"]

    def _load(self, job: Job) -> tuple[Dataset, Dataset | None]:
        """What the job is trained on, and what is held out."""
        data = job.cells[0].data
        if self._data is None or self._loaded != (job.task, data):
            self._data, self._loaded = data.load(job.task), (job.task, data)
            for warning in self._data[0].warnings:
                self.progress.note(f"{self._data[0].path.name}: {warning}")
        return self._data

    def _select(self, job: Job, dataset: Dataset) -> tuple[Job, list[Selection]]:
        """What each replica trains on; a replica that is left with nothing fails alone."""
        algorithm, config = registry.load(job.algorithm), job.cells[0].config
        kept: list[tuple[Cell, Selection]] = []
        for cell in job.cells:
            try:
                with registry.own_code(job.algorithm, "select", self.time_limits.job):
                    kept.append((cell, algorithm.select(dataset, config, cell.replica)))
            except (UserError, UserCodeError) as error:
                reason = error.report if isinstance(error, UserCodeError) else str(error)
                self._fail(Job(cells=(cell,)), reason)
        return Job(cells=tuple(cell for cell, _ in kept)), [selection for _, selection in kept]

    def _fail(self, job: Job, reason: str) -> None:
        for cell in job.cells:
            if self.store.status(cell).state == "done":  # before the job was interrupted
                continue
            status = Status("failed", reason)
            with _writing(self.store.root):
                self.store.set_status(cell, status)
            self._end(cell, status)

    def _end(self, cell: Cell, status: Status) -> None:
        if cell.hash not in self.ended:
            self.ended[cell.hash] = status
            self.progress.cell(cell, status)
            self.tracking.end(cell, status)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """The first interrupt ends the run at the next safe point, the second at once."""
        if self._stop:
            raise Interrupt
        self._stop = True
        self.progress.note("stopping at the next safe point; interrupt again to stop at once")


def split(cells: Sequence[Cell], size: int) -> list[Job]:
    """Jobs of at most so many cells each."""
    return [Job(cells=tuple(cells[start : start + size])) for start in range(0, len(cells), size)]


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    """What goes wrong here is the disk's fault, or ours, not a plugin's."""
    try:
        with writing(root):
            yield
    except (ResultsError, UserError, UserCodeError, TookTooLong, ClaimLost):
        raise
    except Exception as error:
        raise ResultsError(f"cannot write results: {type(error).__name__}: {error}") from error


def resume(store: Store, cells: Sequence[Cell], group: str = "*") -> list[Job]:
    """The jobs for cells that are not done: unfinished groups as they were, the others grouped anew.

    A checkpoint holds a whole group. It goes on as that group, so that the results are the same to the last bit as
    without the interruption; cells of it that are done already, or diverged, are not written again. A file of the
    user's, which all its cells share, lies where the plan has it now, and so does an environment's code.
    """
    wanted = {cell.hash: cell for cell in cells}
    resumed: list[Job] = []
    for job in store.unfinished_jobs(group):
        planned = next((wanted[cell.hash] for cell in job.cells if cell.hash in wanted), None)
        if planned is not None:
            moved = {"data": planned.data, "own_task": planned.own_task}
            resumed.append(Job(cells=tuple(cell.model_copy(update=moved) for cell in job.cells)))
        elif all(store.status(cell).state == "done" for cell in job.cells):
            store.remove_checkpoint(job)  # killed between the last result and the removal
    covered = {cell.hash for job in resumed for cell in job.cells}
    fresh = make_jobs(cell for cell in cells if cell.hash not in covered)
    order = {cell.hash: index for index, cell in enumerate(cells)}

    def first(job: Job) -> int:
        return min(order[cell.hash] for cell in job.cells if cell.hash in order)

    return sorted([*resumed, *fresh], key=first)


def provenance() -> dict[str, Any]:
    """What the results are made with: versions, git commit, machine, time."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    source = Path(__file__).parent
    try:
        commit = subprocess.run(  # noqa: S603 - nothing of it comes from outside
            ["git", "-C", str(source), "rev-parse", "HEAD"],  # noqa: S607 - whichever git the user has
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None  # an installed wheel
    return {
        "versions": versions,
        "git_commit": commit,
        "platform": platform.platform(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def resolve_device(name: str, option: str = "--device") -> str:
    """``auto`` is the first GPU where there is one. ``option`` is how it was asked for.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        index = int(name.partition(":")[2] or 0)
        if not torch.cuda.is_available():
            raise UserError(f"{option} {name}: this machine, or this build of torch, has no CUDA")
        if index >= torch.cuda.device_count():
            raise UserError(f"{option} {name}: there are {torch.cuda.device_count()} GPUs, counted from 0")
    return name
