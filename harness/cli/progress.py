"""How a run tells how it goes: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from harness import registry
from harness.plan import Cell, Job, expected_episodes
from harness.store import CALLED, Status

LINE_SECONDS = 10.0


class Rate:
    """How fast a count grows, over about the last half minute."""

    def __init__(self, count: float = 0) -> None:
        self._samples = [(time.monotonic(), count)]

    def add(self, count: float) -> None:
        """The count now."""
        now = time.monotonic()
        if now - self._samples[-1][0] < 0.5 and len(self._samples) > 1:
            self._samples[-1] = (now, count)
        else:
            self._samples.append((now, count))
        while len(self._samples) > 2 and now - self._samples[0][0] > 30:
            self._samples.pop(0)

    @property
    def per_second(self) -> float:
        """Zero until anything has been counted."""
        (begun, first), (now, last) = self._samples[0], self._samples[-1]
        return (last - first) / (now - begun) if now > begun else 0.0

    def left(self, remaining: float) -> str:
        """The time left, as h:mm:ss."""
        if self.per_second <= 0:
            return "-:--:--"
        minutes, seconds = divmod(round(remaining / self.per_second), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


@dataclass
class Stretch:
    """How far the job is that a worker trains."""

    description: str = ""
    step: int = 0
    steps: int = 0
    rate: Rate = field(default_factory=Rate)

    @property
    def text(self) -> str:
        """Step, rate and time left."""
        left = self.rate.left(self.steps - self.step)
        return f"training {self.step}/{self.steps} steps, {self.rate.per_second:.0f}/s, {left} left"


class PlainProgress:
    """Plain lines: one a job, one a cell, and one every ten seconds. Of one worker, or of several by their names.

    Args:
        jobs: what is to be done.
        cells: that it finishes.
        console: where to.
        evaluates: whether policies are rolled out, too.
    """

    def __init__(self, jobs: Sequence[Job], cells: int, console: Console, evaluates: bool = True) -> None:
        self.console, self.evaluates = console, evaluates
        self.jobs, self.job_number = len(jobs), 0
        self.cells, self.ended = cells, 0
        self.episodes, self.episodes_total = 0, sum(map(expected_episodes, jobs)) if evaluates else 0
        self.training: dict[str, Stretch] = {}
        self.evaluation = Rate()
        self._last_line = time.monotonic()

    def job(self, description: str, step: int, steps: int, worker: str = "") -> None:
        """A job begins, or goes on, at a step."""
        self.job_number += 1
        self.jobs = max(self.jobs, self.job_number)  # a group that failed is tried one by one
        self.training[worker] = Stretch(description, step, steps, Rate(step))
        resumed = f", from step {step}" if step else ""
        where = f" on {worker}" if worker else ""
        self.note(f"job {self.job_number} of {self.jobs}{where}: {description}{resumed}")

    def trained(self, step: int, worker: str = "") -> None:
        """The job has reached a step."""
        stretch = self.training[worker]
        stretch.step = step
        stretch.rate.add(step)
        self.tick()

    def gone(self, worker: str) -> None:
        """A worker does nothing any more."""
        self.training.pop(worker, None)

    def evaluated(self, episodes: int) -> None:
        """More episodes are back."""
        if episodes:
            self.episodes += episodes
            self.evaluation.add(self.episodes)
        self.tick()

    def cell(self, cell: Cell, status: Status) -> None:
        """A cell ended."""
        self.ended += 1
        reason = f": {status.brief}" if status.brief else ""
        policies = ", ".join(registry.load(cell.algorithm).policy_names(cell.config))
        self.note(f"[{self.ended}/{self.cells}] {cell.describe(policies)} {CALLED[status.state]}{reason}")

    def note(self, text: str) -> None:
        """A line."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def tick(self) -> None:
        """Say how it goes, if it is time."""
        if time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            training = [f"{worker}: {one.text}" if worker else one.text for worker, one in self.training.items()]
            self.note(f"  {'; '.join([*training, *([self.evaluation_text()] if self.evaluates else [])])}")

    def evaluation_text(self) -> str:
        """Episodes, rate and time left of all evaluation."""
        left = self.evaluation.left(self.episodes_total - self.episodes)
        rate = self.evaluation.per_second
        return f"evaluation {self.episodes}/{self.episodes_total} episodes, {rate:.1f}/s, {left} left"


class LiveProgress(PlainProgress):
    """Bars that stay at the bottom of a terminal: one for each worker, and one for evaluation."""

    def __init__(self, jobs: Sequence[Job], cells: int, bars: Progress, evaluates: bool = True) -> None:
        super().__init__(jobs, cells, bars.console, evaluates)
        self.bars = bars
        self.evaluation_bar = bars.add_task("evaluation", total=self.episodes_total, note="", visible=evaluates)
        self.training_bars: dict[str, TaskID] = {}

    def job(self, description: str, step: int, steps: int, worker: str = "") -> None:
        """A job begins, or goes on, at a step."""
        super().job(description, step, steps, worker)
        if worker not in self.training_bars:
            self.training_bars[worker] = self.bars.add_task(worker or "training", total=None, note="")

    def gone(self, worker: str) -> None:
        """A worker does nothing any more."""
        super().gone(worker)
        if worker in self.training_bars:
            self.bars.remove_task(self.training_bars.pop(worker))

    def tick(self) -> None:
        """Move the bars."""
        if time.monotonic() - self._last_line < 0.1:
            return
        self._last_line = time.monotonic()
        for worker, stretch in self.training.items():
            note = f"{stretch.rate.per_second:.0f} steps/s, {stretch.rate.left(stretch.steps - stretch.step)} left"
            self.bars.update(self.training_bars[worker], completed=stretch.step, total=stretch.steps, note=note)
        rate, left = self.evaluation.per_second, self.evaluation.left(self.episodes_total - self.episodes)
        note = f"{rate:.1f} episodes/s, {left} left"
        self.bars.update(self.evaluation_bar, completed=self.episodes, note=note)


@contextmanager
def progress(jobs: Sequence[Job], cells: int, evaluates: bool = True) -> Iterator[PlainProgress]:
    """Bars where standard error is a terminal, lines where not; arguments as of :class:`PlainProgress`."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield PlainProgress(jobs, cells, console, evaluates)
        return
    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        yield LiveProgress(jobs, cells, bars, evaluates)
