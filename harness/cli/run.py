"""``lspc-bench run``."""

from __future__ import annotations

import errno
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli.options import WORKERS, Finite
from harness.cli.streams import note

if TYPE_CHECKING:
    from harness.forecast import Measurement
    from harness.plan import Cell, Job, Plan
    from harness.store import Store
    from harness.suite import SuiteFile

RESULTS = Path("results/runs")


class _Device(click.ParamType[str]):
    name = "auto|cpu|cuda|cuda:N"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        kind, colon, index = value.partition(":")
        if value not in ("auto", "cpu", "cuda") and not (
            kind == "cuda" and colon and index.isdecimal() and len(index) <= 4
        ):
            self.fail(f"{value!r} is none of auto, cpu, cuda, cuda:0, cuda:1, ...", param, ctx)
        return value


@click.command()
@click.argument("suite")
@click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    default=RESULTS,
    show_default=True,
    metavar="DIR",
    help="Where results go.",
)
@click.option("--device", type=_Device(), default="auto", show_default=True, help="Where to train; auto: a GPU if any.")
@click.option(
    "--engine",
    type=click.Choice(["auto", "eager", "graph", "compile"]),
    default="auto",
    show_default=True,
    help="How updates run: eager: one by one; graph: replayed from CUDA graphs; compile: fused by torch.compile (and "
    "replayed, on a GPU); auto: graph on a GPU, eager on a CPU.",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "tf32"]),
    default="float32",
    show_default=True,
    help="Of matrix products on a GPU. tf32 keeps 10 bits of a factor's mantissa in the place of 23; the reference "
    "does not. Results name it.",
)
@click.option(
    "--memory-fraction",
    type=Finite(min=0, max=1, min_open=True),
    default=0.9,
    show_default=True,
    metavar="SHARE",
    help="Of the device's memory, what training may take; where that is too little, replicas train in several groups.",
)
@click.option(
    "--workers",
    type=WORKERS,
    default=None,
    metavar="N",
    help="Evaluation processes; 0 evaluates in the training process.  [default: one a core]",
)
@click.option(
    "--overwrite",
    type=click.Choice(["only-missing", "always", "never"]),
    default="only-missing",
    show_default=True,
    help="only-missing: run what is not done, failed cells too; always: run everything afresh; never: leave every cell "
    "that has been started as it is.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set a key of the suite, dotted, e.g. algorithms.lspc.hyperparameters.batch_size=256. Wins over the file. "
    "Repeatable.",
)
@click.option(
    "--cell",
    "chosen",
    multiple=True,
    metavar="HASH",
    help="Only this cell: its hash as --dry-run lists it, or how that begins. Repeatable: cells that can train "
    "together do.",
)
@click.option(
    "--checkpoint-every",
    type=Finite(min=0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How often training is checkpointed.",
)
@click.option("--dry-run", is_flag=True, help="Print the cells and jobs, and how long they will take; start nothing.")
@click.option(
    "--throughput",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    metavar="FILE",
    help="With --dry-run: forecast from this file of benchmarks/throughput.py.  [default: what was measured here]",
)
@click.pass_context
def run(
    ctx: click.Context,
    suite: str,
    results: Path,
    device: str,
    engine: str,
    precision: str,
    memory_fraction: float,
    workers: int | None,
    overwrite: str,
    overrides: tuple[str, ...],
    chosen: tuple[str, ...],
    checkpoint_every: float,
    dry_run: bool,
    throughput: Path | None,
) -> None:
    """Train and evaluate everything that SUITE asks for.

    SUITE is a file, or the name of a built-in suite. Run it again after a crash or an interrupt and it goes on where it
    was; what is done is not run again. What a plugin or an environment of yours may take is bounded: the suite's key
    time_limits has a time limit for an episode and one for a job.
    """
    from harness.plan import make_plan
    from harness.store import EVERYTHING, Store
    from harness.suite import read_suite

    if throughput is not None and not dry_run:
        raise click.UsageError("--throughput goes with --dry-run")
    file = read_suite(suite, overrides)
    plan = make_plan(file)
    part = plan.only(chosen)
    store = Store(results, EVERYTHING)
    store.require_no_archive()
    if dry_run:
        _require_folder(results)
        _note_changed_code(plan, store)
        measured = _measurement(throughput, device)  # a wrong file is refused first
        jobs = _print_plan(part, store, overwrite)
        there = measured.machine.cores if measured and throughput else len(os.sched_getaffinity(0))
        _print_forecast(jobs, measured, there if workers is None else workers)
        _warn_of_missing(file, part, device, engine, precision)
        return
    again = " ".join(["lspc-bench run", suite, *(f"--cell {cell}" for cell in chosen)])
    options = (device, engine, precision, memory_fraction, workers, overwrite, checkpoint_every)
    ctx.exit(execute(file, plan, results, again, *options, part=part))


def execute(
    file: SuiteFile,
    plan: Plan,
    results: Path,
    again: str,
    device: str = "auto",
    engine: str = "auto",
    precision: str = "float32",
    memory_fraction: float = 0.9,
    workers: int | None = None,
    overwrite: str = "only-missing",
    checkpoint_every: float = 60.0,
    part: Plan | None = None,
) -> int:
    """Run what is to be done of a plan, or of a part of it; the exit status.

    ``again`` is the command that goes on after an interrupt.

    Raises:
        UserError: something that it needs is not there.
        ResultsError: results cannot be written.
    """
    from harness.cli.progress import progress
    from harness.executors.local import Interrupted, LocalExecutor, resume
    from harness.store import EVERYTHING, Store

    part = part or plan
    device = _require_all(file, part, device, engine, precision)
    store = Store(results, EVERYTHING, note)
    with store.locked():
        _note_changed_code(plan, store)
        store.write_plan(plan)
        cells, skipped = _pending(part, store, overwrite)
        if overwrite == "always":
            _forget(store, cells)
        jobs = resume(store, cells)
        count = len(os.sched_getaffinity(0)) if workers is None else workers
        with progress(jobs, len(cells)) as bar:
            options = (checkpoint_every, engine, memory_fraction, precision, file.suite.time_limits)
            executor = LocalExecutor(store, device, count, bar, *options)
            try:
                ended = executor.run(jobs)
            except (Interrupted, KeyboardInterrupt):
                click.echo(f"Interrupted. '{again}' goes on from here.", err=True)
                return 130
    mine = {cell.hash for cell in cells}
    failed = [status for key, status in ended.items() if key in mine and status.state != "done"]
    done = len(cells) - len(failed)
    click.echo(f"{plan.suite}: {done} done, {len(failed)} failed, {skipped} skipped. Results: {results}")
    if failed:
        click.echo(f"Why: lspc-bench status {results}. Run the suite again to retry what failed.", err=True)
    return 1 if failed else 0


def _note_changed_code(plan: Plan, store: Store) -> None:
    """Say of which own tasks the environment's code is not what the suite's earlier run had: their cells are others."""
    from harness.errors import UserError

    own = [task for task in plan.tasks.values() if task.family == "own"]
    try:
        earlier = next((one.tasks for one in store.plans() if one.suite == plan.suite), {}) if own else {}
    except UserError as error:
        click.echo(f"Whether the code of own environments has changed cannot be told: {error}", err=True)
        return
    for task in own:
        before = earlier.get(task.id, task).code
        if before != task.code:
            click.echo(
                f"The environment of {task.name} has changed since the suite last ran, from "
                f"{before or 'code that was not noted'} to {task.code}: earlier results are not used, its cells run "
                "again.",
                err=True,
            )


def _pending(plan: Plan, store: Store, overwrite: str) -> tuple[list[Cell], int]:
    """The cells to run, and how many are skipped."""
    cells = [planned.cell for planned in plan.cells]
    started = ("done", "failed", "diverged", "running", "damaged")
    leave = {"only-missing": ("done",), "always": (), "never": started}[overwrite]
    found = {cell.hash: store.status(cell) for cell in cells}
    for cell in cells:
        if found[cell.hash].state == "damaged":
            note(f"{cell.describe()}: {found[cell.hash].reason}")
    pending = [cell for cell in cells if found[cell.hash].state not in leave]
    return pending, len(cells) - len(pending)


def _forget(store: Store, cells: list[Cell]) -> None:
    hashes = {cell.hash for cell in cells}
    for job in store.unfinished_jobs():
        if any(cell.hash in hashes for cell in job.cells):
            store.remove_checkpoint(job)
    for cell in cells:
        store.forget(cell)


def _print_plan(plan: Plan, store: Store, overwrite: str) -> list[Job]:
    """Print cells and jobs; the jobs."""
    from harness.plan import make_jobs
    from harness.report.tables import text_table

    cells, skipped = _pending(plan, store, overwrite)
    pending = {cell.hash for cell in cells}
    rows = [
        [
            planned.cell.hash,
            planned.cell.definition.name,
            planned.label,
            str(planned.cell.seed),
            "-" if planned.cell.cost_limit is None else f"{planned.cell.cost_limit:g}",
            " ".join(f"{limit:g}" for limit in planned.cell.evaluation_limits),
            str(planned.cell.hyperparameters["steps"]),
            "run" if planned.cell.hash in pending else "skip",
        ]
        for planned in plan.cells
    ]
    header = ["cell", "task", "algorithm", "seed", "trains for", "evaluated at", "steps", "now"]
    click.echo(text_table(header, rows))
    jobs = make_jobs(cells)
    click.echo(f"\n{len(plan.cells)} cells: {len(cells)} to run in {len(jobs)} jobs, {skipped} skipped.")
    for description, count in Counter(job.describe() for job in jobs).items():
        click.echo(f"  {f'{count} times ' if count > 1 else ''}{description}")
    return jobs


def _measurement(throughput: Path | None, device: str) -> Measurement | None:
    from harness.forecast import find_measurement, read_measurement

    return find_measurement(device) if throughput is None else read_measurement(throughput)


def _print_forecast(jobs: list[Job], measured: Measurement | None, workers: int) -> None:
    """How long the jobs take, or how to measure this machine where nobody did."""
    from harness.forecast import forecast

    if measured is None:
        click.echo(
            "\nHow long it takes is unknown: this machine was not measured. In a checkout, "
            "'python benchmarks/throughput.py --output FILE' does it; give the file to --throughput.",
            err=True,
        )
    elif jobs:
        expected = forecast(jobs, measured, workers)
        click.echo(f"\n{expected.describe()}", err=not expected.jobs)


def _require_all(file: SuiteFile, plan: Plan, device: str, engine: str, precision: str) -> str:
    """The device to train on.

    Raises:
        UserError: something that a run needs is not there.
    """
    from harness.engine import require_engine
    from harness.executors.local import resolve_device
    from harness.plan import require_inputs

    require_inputs(file, plan, lambda text: click.echo(text, err=True))
    device = resolve_device(device)
    require_engine(engine, device, precision)
    return device


def _warn_of_missing(file: SuiteFile, plan: Plan, device: str, engine: str, precision: str) -> None:
    """Say what a run would be refused for."""
    from harness.errors import UserError

    try:
        _require_all(file, plan, device, engine, precision)
    except UserError as error:
        click.echo(f"\nThis would not run: {error}", err=True)


def _require_folder(results: Path) -> None:
    """Refuse a results folder that cannot be made; nothing is written.

    Raises:
        UserError: says why.
    """
    from harness.errors import UserError

    there = next(folder for folder in (results.absolute(), *results.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        reason = os.strerror(errno.EACCES if there.is_dir() else errno.ENOTDIR)
        raise UserError(f"cannot write results: {reason}: {results}")
