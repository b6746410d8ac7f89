"""``lspc-bench run``."""

from __future__ import annotations

import errno
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli import completion
from harness.cli.options import devices_option, results_option, run_options, same_command, set_option
from harness.cli.streams import note

if TYPE_CHECKING:
    from harness.forecast import Measurement
    from harness.options import Options
    from harness.plan import Job, Plan
    from harness.store import Store
    from harness.suite import SuiteFile
    from harness.work import Overwrite


@click.command()
@click.argument("suite", shell_complete=completion.suites)
@results_option()
@run_options
@devices_option
@click.option(
    "--overwrite",
    type=click.Choice(["only-missing", "always", "never"]),
    default="only-missing",
    show_default=True,
    help="only-missing: run what is not done, failed cells too; always: run everything from scratch; never: leave "
    "every cell that has been started alone.",
)
@set_option()
@click.option(
    "--cell",
    "chosen",
    multiple=True,
    metavar="HASH",
    help="Only this cell: its hash as --dry-run lists it, or a prefix. Repeatable: cells that can train together do.",
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
    options: Options,
    devices: str | None,
    overwrite: Overwrite,
    overrides: tuple[str, ...],
    chosen: tuple[str, ...],
    dry_run: bool,
    throughput: Path | None,
) -> None:
    """Train and evaluate everything that SUITE asks for.

    SUITE is a file, or the name of a built-in suite. After a crash or an interrupt the same command resumes it; what is
    finished is not run again. The suite's key time_limits bounds the time of an episode and of a job, in case a plugin
    or an environment of yours hangs.
    """
    from harness.planning import make_plan
    from harness.store import EVERYTHING, Store
    from harness.suite import read_suite

    if throughput is not None and not dry_run:
        raise click.UsageError("--throughput goes with --dry-run")
    store = Store(results, EVERYTHING)
    store.require_no_archive()
    require_no_import(store, suite)
    file = read_suite(suite, overrides)
    plan = make_plan(file)
    part = plan.only(chosen)
    require_no_import(store, plan.suite)
    if dry_run:
        _require_folder(results)
        _note_changed_code(plan, store)
        names = _device_names(devices, options)
        measured = _measurement(throughput, names[0])  # a wrong file is refused first
        jobs = _print_plan(part, store, overwrite, options.no_evaluation)
        there = measured.machine.cores if measured and throughput and options.workers is None else options.processes
        _print_forecast(jobs, measured, there, len(names))
        _warn_of_missing(file, part, options, devices)
        return
    again = same_command(without=["overwrite"])  # which may be: begin afresh
    ctx.exit(execute(file, plan, results, again, options, overwrite, part, devices))


def execute(
    file: SuiteFile,
    plan: Plan,
    results: Path,
    again: str,
    options: Options,
    overwrite: Overwrite = "only-missing",
    part: Plan | None = None,
    devices: str | None = None,
) -> int:
    """Run what is to be done of a plan, or of a part of it; the exit status.

    ``again`` is the command that goes on after an interrupt, ``devices`` what ``--devices`` was given.

    Raises:
        UserError: something that it needs is not there.
        ResultsError: results cannot be written.
    """
    from harness.cli.work import find_devices, require_all, work_on

    part = part or plan
    there = find_devices(devices, options)
    with file.located():
        options = require_all(part, replace(options, device=there[0]))
    return work_on(write_plan(plan, results), part, again, options, overwrite, devices=there)


def write_plan(plan: Plan, results: Path) -> Store:
    """Prepare a results folder for workers, with a plan in it.

    Raises:
        UserError: the folder is none for this plan.
        ResultsError: it cannot be written.
    """
    from harness.store import EVERYTHING, Store

    store = Store(results, EVERYTHING, note)
    store.prepare()
    require_no_import(store, plan.suite)
    _note_changed_code(plan, store)
    store.write_plan(plan)
    return store


def require_no_import(store: Store, suite: str) -> None:
    """Refuse a suite under whose name results were imported there.

    Raises:
        UserError: there are some.
    """
    from harness.errors import DamageError, UserError
    from harness.suite import MOST_LETTERS

    if "/" in suite or len(suite) > MOST_LETTERS:  # a path, or nothing
        return
    try:
        plan = store.plan(suite)
    except DamageError:  # written anew
        return
    if plan is not None and plan.imported:
        raise UserError(
            f"suite {suite} in {str(store.root)!r} was imported, and cannot be run: run a suite of another name, or "
            "with other --results"
        )


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


def _print_plan(plan: Plan, store: Store, overwrite: Overwrite, no_evaluation: bool) -> list[Job]:
    """Print cells and jobs; the jobs."""
    from harness.plan import make_jobs
    from harness.report.tables import text_table
    from harness.work import open_cells

    cells = open_cells(store, [planned.cell for planned in plan.cells], overwrite, no_evaluation)
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
    click.echo(
        f"\n{len(plan.cells)} cells: {len(cells)} to run in {len(jobs)} jobs, {len(plan.cells) - len(cells)} skipped."
    )
    for description, count in Counter(job.describe() for job in jobs).items():
        click.echo(f"  {f'{count} times ' if count > 1 else ''}{description}")
    return jobs


def _device_names(devices: str | None, options: Options) -> tuple[str, ...]:
    """Those that ``--devices`` means, or ``--device``, whether or not they are there."""
    from harness.options import parse_devices

    if devices != "all":
        return parse_devices(devices) if devices else (options.device,)
    from torch import cuda

    return tuple(f"cuda:{index}" for index in range(max(1, cuda.device_count())))


def _measurement(throughput: Path | None, device: str) -> Measurement | None:
    from harness.forecast import find_measurement, read_measurement

    return find_measurement(device) if throughput is None else read_measurement(throughput)


def _print_forecast(jobs: list[Job], measured: Measurement | None, workers: int, devices: int) -> None:
    """How long the jobs take, or how to measure this machine where nobody did."""
    from harness.forecast import forecast

    if measured is None:
        click.echo(
            "\nHow long it takes is unknown: this machine was not measured. In a checkout, "
            "'python benchmarks/throughput.py --output FILE' does it; give the file to --throughput.",
            err=True,
        )
    elif jobs:
        expected = forecast(jobs, measured, workers, devices)
        click.echo(f"\n{expected.describe()}", err=not expected.jobs)


def _warn_of_missing(file: SuiteFile, plan: Plan, options: Options, devices: str | None) -> None:
    """Say what a run would be refused for."""
    from harness.cli.work import find_devices, require_all
    from harness.errors import UserError

    try:
        with file.located():
            require_all(plan, replace(options, device=find_devices(devices, options)[0]))
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
