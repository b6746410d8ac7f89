"""What many workers on one folder cost beside the work itself.

    python benchmarks/overhead.py jobs --jobs 1000 --workers 8              # jobs that do nothing: time a job
    python benchmarks/overhead.py jobs --jobs 1250 2500 5000 10000          # does it stay that?
    python benchmarks/overhead.py claims --jobs 1000 --workers 8            # taken, noted as failed, given back
    python benchmarks/overhead.py status --cells 10000                      # lspc-bench status, before and after
    python benchmarks/overhead.py share --suite demo                        # two workers on two cores beside one

``jobs``: each is a group of one cell of an algorithm whose update does nothing, for one step, and whose episodes are
made up. All the rest is as ever: claims, data, the measuring of its memory, checkpoint, results, statuses, every file
synced. Workers are forks of one process that has imported everything. Told are wall time and processor time of all
workers over jobs; every cell must be done once, and nothing left. ``claims`` leaves the executor out.

``status``: the command in a process of its own, import included, on so many cells that are missing, and as many done.

``share``: ``lspc-bench run`` with one worker and with two, by turns, each from nothing. Both have the evaluation
processes of ``--evaluation`` for all.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from importlib import import_module
from pathlib import Path
from typing import Any

import reading
import torch

from harness import files, registry
from harness.algorithm import Algorithm, Batch, Hyperparameters, Policy, Replica
from harness.claims import Claims
from harness.evaluation import Episode, Evaluator
from harness.options import Options
from harness.plan import Cell, CellData, Plan, PlannedCell
from harness.registry import Plugin
from harness.report.tables import markdown_table
from harness.store import EVERYTHING, Status, Store
from harness.suite import Evaluation, TimeLimits
from harness.tasks import Task, find_task
from harness.work import Backlog, Work, take_part

context = multiprocessing.get_context("fork")
AT_THE_FIRST_JOB = ("harness.hooks", "pandas", "pyarrow.parquet", "safetensors.torch", "torch._dynamo")
"""Modules that a worker imports later than the others: its start, not a job's time."""


class Settings(Hyperparameters):
    steps: int = 1
    batch_size: int = 1
    number: int = 0
    """Makes every cell a group of its own."""


class Idle(Policy):
    def act(self, observations: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(observations), 2)


class Nothing(Algorithm[Settings]):
    Hyperparameters = Settings
    summary = "does nothing"

    @classmethod
    def policy_names(cls, config: Settings) -> tuple[str, ...]:
        return ("nothing",)

    @classmethod
    def columns(cls, config: Settings) -> tuple[str, ...]:
        return ("actions",)

    def __init__(
        self,
        config: Settings,
        task: Task,
        replicas: Sequence[Replica],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config, self.nothing = config, torch.zeros(len(replicas), device=device)

    def update(self, batch: Batch, noise: Batch) -> dict[str, torch.Tensor]:
        return {"loss": self.nothing}

    def policies(self, replica: int) -> dict[str, Policy]:
        return {"nothing": Idle()}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class Quiet:
    """Progress that nobody follows."""

    def job(self, description: str, step: int, steps: int) -> None: ...

    def trained(self, step: int) -> None: ...

    def evaluated(self, episodes: int) -> None: ...

    def cell(self, cell: Cell, status: Status) -> None: ...

    def note(self, text: str) -> None:
        print(text, file=sys.stderr)


def made_up(
    self: Evaluator, task: Task, policy: Policy, seeds: Sequence[int], cost_limit: float | None
) -> list[Future[list[Episode]]]:
    """Episodes that nobody ran."""
    future: Future[list[Episode]] = Future()
    future.set_result([Episode(seed, 0.0, 0.0, 1) for seed in seeds])
    return [future]


def make_cells(count: int) -> list[Cell]:
    return [
        Cell(
            task=find_task("BallRun").id,
            algorithm="nothing",
            algorithm_version=1,
            hyperparameters=Settings(number=number).model_dump(mode="json"),
            seed=0,
            cost_limit=None,
            evaluation_limits=(40.0,),
            evaluation=Evaluation(every=None, episodes=1, final=1),
            data=CellData(source="demo"),
        )
        for number in range(count)
    ]


def take_all(root: Path, cells: list[Cell], kind: str, begin: Any, spent: Any) -> None:
    """A worker."""
    torch.set_num_threads(1)
    begin.wait()
    store, options = Store(root, EVERYTHING), Options("cpu", workers=0)
    backlog = Backlog.of(store, cells, "only-missing", options)
    if kind == "jobs":
        take_part(store, backlog, Quiet(), options, TimeLimits())
    else:
        with Claims(root) as claims:
            store.claims = claims
            work = Work(store, claims, backlog)
            for jobs in work:
                for job in jobs:
                    store.set_status(job.cells[0], Status("failed", "on purpose"))
                    work.over(job.group)
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent.put(used.ru_utime + used.ru_stime)


def overhead(kind: str, jobs: int, workers: int) -> list[str]:
    """A row of the table: so many jobs over so many workers."""
    folder = Path(tempfile.mkdtemp(prefix="overhead-"))
    cells, begin, spent = make_cells(jobs), context.Event(), context.SimpleQueue()
    Store(folder).prepare()
    for name in AT_THE_FIRST_JOB:
        import_module(name)
    started = [context.Process(target=take_all, args=(folder, cells, kind, begin, spent)) for _ in range(workers)]
    for process in started:
        process.start()
    begun = time.perf_counter()
    begin.set()
    processor = sum(spent.get() for _ in started)
    wall = time.perf_counter() - begun
    for process in started:
        process.join()
    expected = "done" if kind == "jobs" else "failed"
    wrong = sum(Store(folder).status(cell).state != expected for cell in cells)
    left = [path for name in ("jobs", "claims", "workers") for path in (folder / name).iterdir()]
    if wrong or left:
        raise SystemExit(f"{wrong} cells are not {expected}; left: {left[:3]}")
    shutil.rmtree(folder)
    times = f"{wall:.1f}", f"{1e3 * wall / jobs:.1f}", f"{1e3 * processor / jobs:.1f}"
    return [kind, f"{jobs:,}", str(workers), *times]


def status(cells: int) -> list[list[str]]:
    """Rows of a table: the command on missing and on finished cells."""
    folder = Path(tempfile.mkdtemp(prefix="overhead-"))
    files.sync = lambda path: None  # type: ignore[assignment]  # writing is not measured
    planned = [PlannedCell(cell=cell, label="nothing", rows={"nothing": "nothing"}) for cell in make_cells(cells)]
    plan, store, rows = Plan(suite="nothing", description="", cells=planned), Store(folder), []
    store.prepare()
    reading.fill(folder / "one", plan.of(planned[:1]), 1)
    (first,) = (folder / "one").glob("*/status.json")
    store.write_plan(plan)
    for state in ("missing", "done"):
        if state == "done":
            for one in planned:  # as it looks at the size of the other files alone, those of one cell will do
                shutil.copytree(first.parent, store.folder(one.cell))
                store.set_status(one.cell, Status("done"))
        seconds = []
        for _ in range(3):
            begun = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "lspc_bench", "status", folder], check=True, stdout=subprocess.DEVNULL
            )
            seconds.append(time.perf_counter() - begun)
        rows.append([f"{cells:,}", state, f"{statistics.median(seconds):.2f}", f"{min(seconds):.2f}"])
    shutil.rmtree(folder)
    return rows


def share(suite: str, turns: int, evaluation: int) -> list[list[str]]:
    """Rows of a table: wall time of a suite with one worker, with two, and their ratio."""
    walls: dict[str, list[float]] = {"--device cpu": [], "--devices cpu:2": []}
    for turn in range(turns):
        for words in list(walls)[:: 1 if turn % 2 == 0 else -1]:
            folder = Path(tempfile.mkdtemp(prefix="overhead-"))
            command = [sys.executable, "-m", "lspc_bench", "run", suite, "--results", folder, *words.split()]
            begun = time.perf_counter()
            process = subprocess.run([*command, "--workers", str(evaluation)], capture_output=True, check=False)
            if process.returncode:
                raise SystemExit(process.stderr.decode())
            walls[words].append(time.perf_counter() - begun)
            shutil.rmtree(folder)
    medians = {words: statistics.median(found) for words, found in walls.items()}
    alone = medians["--device cpu"]
    return [[words, f"{median:.1f}", f"{alone / median:.2f}"] for words, median in medians.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="kind", required=True)
    for kind in ("jobs", "claims"):
        command = commands.add_parser(kind)
        command.add_argument("--jobs", type=int, nargs="+", default=[1000])
        command.add_argument("--workers", type=int, default=8)
    commands.add_parser("status").add_argument("--cells", type=int, default=10_000)
    command = commands.add_parser("share")
    command.add_argument("--suite", default="demo")
    command.add_argument("--turns", type=int, default=1)
    command.add_argument("--evaluation", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    options = parser.parse_args()
    # A name in this process and its forks; the commands of their own never ask for the algorithm.
    registry.plugins()["nothing"] = Plugin("nothing", f"{__name__}:Nothing", "built-in")  # type: ignore[index]
    Evaluator.submit = made_up  # type: ignore[method-assign]
    if options.kind == "status":
        print(markdown_table(["cells", "state", "seconds (median of 3)", "least"], status(options.cells)))
    elif options.kind == "share":
        rows = share(options.suite, options.turns, options.evaluation)
        print(markdown_table(["workers", "seconds", "times as fast"], rows))
    else:
        rows = [overhead(options.kind, jobs, options.workers) for jobs in options.jobs]
        print(markdown_table(["", "jobs", "workers", "seconds", "ms a job", "processor ms a job"], rows))


if __name__ == "__main__":
    main()
