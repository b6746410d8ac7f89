"""``lspc-bench work``, and what ``run`` does when all is planned."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from harness.cli.options import SUITES, command_line, devices_option, run_options, same_command
from harness.cli.streams import note

if TYPE_CHECKING:
    from harness.cli.progress import PlainProgress
    from harness.options import Options
    from harness.plan import Plan
    from harness.pool import Submitting
    from harness.store import Status, Store
    from harness.work import Backlog, Overwrite


@click.command()
@click.argument("results", type=click.Path(path_type=Path, file_okay=False))
@SUITES
@run_options
@devices_option
@click.option(
    "--only-evaluation",
    is_flag=True,
    help="Only evaluate, what --no-evaluation has trained, also while others train; neither data nor a GPU is needed.",
)
@click.option("--no-wait", is_flag=True, help="End when others have all that is left; do not wait in case they die.")
@click.pass_context
def work(
    ctx: click.Context, results: Path, suites: tuple[str, ...], options: Options, devices: str | None, no_wait: bool
) -> None:
    """Run free jobs of RESULTS until none is left.

    Any number of workers may do so at once, on this machine and on others that see the folder. If a worker is killed,
    another one resumes its job from the last checkpoint. 'lspc-bench run' adds a suite to the folder, and is a worker,
    too.
    """
    from harness.archive import all_chosen
    from harness.errors import UserError
    from harness.store import EVERYTHING, Store

    store = Store.existing(results, EVERYTHING, note)
    plans = all_chosen(store, suites)
    for plan in plans:
        if plan.imported and suites:
            raise UserError(f"suite {plan.suite} was imported: there is nothing to run of it")
    plans = [plan for plan in plans if not plan.imported]
    there = find_devices(devices, options)
    for plan in plans:
        options = require_all(plan, replace(options, device=there[0]))
    store.prepare()
    again = same_command()
    begun, worst = time.monotonic(), 0
    for plan in plans:
        left = options
        if options.most_seconds is not None:
            left = replace(options, most_seconds=max(0.0, options.most_seconds - (time.monotonic() - begun)))
        worst = max(worst, work_on(store, plan, again, left, wait=not no_wait, devices=there, pool=ctx.obj))
        if worst == 130:
            break
    ctx.exit(worst)


def find_devices(text: str | None, options: Options) -> tuple[str, ...]:
    """The devices that ``--devices`` means, or the one of ``--device`` where it was not given.

    Raises:
        UserError: one is not there, or cannot do what the options ask for.
    """
    if text is None:
        return (options.device,)
    if click.get_current_context().get_parameter_source("device") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--device and --devices do not go together")
    if options.only_evaluation:
        raise click.UsageError("--devices are for training; --only-evaluation takes --workers")
    from harness.engine import require_engine
    from harness.launchers.devices import resolve_devices

    devices = resolve_devices(text)
    for device in dict.fromkeys(devices):
        require_engine(options.engine, device, options.precision)
    return devices


def require_all(plan: Plan, options: Options) -> Options:
    """The options with the device to train on.

    Args:
        plan: what is to run.
        options: of the run.

    Raises:
        UserError: something that a run needs is not there.
    """
    from harness.engine import require_engine
    from harness.errors import at
    from harness.executors.local import resolve_device
    from harness.inputs import require_inputs
    from harness.trackers import require

    require_inputs(plan, lambda text: click.echo(text, err=True), options)
    device = resolve_device("cpu" if options.only_evaluation else options.device)
    require_engine(options.engine, device, options.precision)
    for name in options.track:
        require(name)
    for index, name in enumerate(plan.track):
        with at("track", index):
            require(name)
    return replace(options, device=device)


def work_on(
    store: Store,
    plan: Plan,
    again: str,
    options: Options,
    overwrite: Overwrite = "only-missing",
    wait: bool = True,
    devices: Sequence[str] = (),
    pool: Submitting | None = None,
) -> int:
    """Run what nobody else does of a plan, or of a part of one; the exit status.

    Args:
        store: the results, prepared.
        plan: whose cells.
        again: the command that goes on after an interrupt.
        options: with a device that is there.
        overwrite: which cells.
        wait: for what others have.
        devices: a worker for each of them, where there are several; the options' device is the first.
        pool: rolls policies out, for a single worker; ``None``: processes of its own.

    Raises:
        ResultsError: results cannot be written.
    """
    from harness.cli.progress import progress
    from harness.executors.local import Interrupted
    from harness.plan import make_jobs
    from harness.tracking import folder_of, tracking
    from harness.work import Backlog, take_part

    here: dict[str, Status] = {}
    try:
        backlog = Backlog.of(store, [planned.cell for planned in plan.cells], overwrite, options)
        cells = backlog.cells
        if options.only_evaluation:
            kept = store.checkpointed_groups()
            cells = tuple(cell for cell in cells if cell.group in kept)
        with progress(make_jobs(cells), len(cells), not options.no_evaluation) as bar:
            if len(devices) > 1 and len(backlog.groups) > 1:
                _run_on(devices, store, plan, backlog, bar, options, wait)
            else:
                with tracking(plan, [*plan.track, *options.track], store.root, bar.note) as tracked:
                    here = take_part(store, backlog, bar, options, plan.time_limits, wait, pool, tracking=tracked)
    except (Interrupted, KeyboardInterrupt):
        done = sum(store.status(planned.cell).state == "done" for planned in plan.cells)
        click.echo(f"Interrupted: {done} of {len(plan.cells)} cells are done. '{again}' resumes it.", err=True)
        return 130
    states = {cell.hash: store.status(cell).state for cell in backlog.cells}
    untrained: set[str] = set()
    if options.only_evaluation:
        kept = store.checkpointed_groups()
        untrained = {
            cell.hash
            for cell in backlog.cells
            if not (cell.hash in here or states[cell.hash] == "done" or cell.group in kept)
        }
    counts = Counter[str](state for key, state in states.items() if key not in untrained)
    wanted = ("trained", "done") if options.no_evaluation else ("done",)
    failed = sum(counts[state] for state in ENDED)
    told = [f"{counts[state]} {state}" for state in wanted if counts[state] or state == wanted[0]]
    told.append(f"{failed} failed")
    if others := counts.total() - failed - sum(counts[state] for state in wanted):
        told.append(f"{others} with other workers")
    if untrained:
        told.append(f"{len(untrained)} not trained")
    told.append(f"{len(plan.cells) - len(states)} skipped")
    click.echo(f"{plan.suite}: {', '.join(told)}. Results: {store.root}")
    for name in dict.fromkeys([*plan.track, *options.track]):
        if (folder := folder_of(store.root, name)).exists():
            click.echo(f"Tracked by {name}: {folder}", err=True)
    if counts["done"] and not options.no_evaluation:
        click.echo(f"Rank the policies: {command_line('leaderboard', store.root)}", err=True)
    if counts["trained"] and options.no_evaluation:
        there = command_line("work", store.root, "--only-evaluation")
        click.echo(f"Evaluate it where the simulators are: {there}", err=True)
    if options.only_evaluation and not here:
        way = f": '{command_line('work', store.root, '--no-evaluation')}' trains what is left" if untrained else ""
        click.echo(f"Nothing of {plan.suite} is trained and not evaluated{way}.", err=True)
    if failed:
        click.echo(f"Why: {command_line('status', store.root)}. Run the suite again to retry what failed.", err=True)
    return 1 if failed else 0


def _run_on(
    devices: Sequence[str],
    store: Store,
    plan: Plan,
    backlog: Backlog,
    bar: PlainProgress,
    options: Options,
    wait: bool,
) -> None:
    """Run a backlog by a worker on each device, but no more of them than there is work for."""
    from harness.launchers import Workload, forget, remember
    from harness.launchers.devices import Launcher

    with Launcher(devices[: len(backlog.groups)], plan, backlog) as launcher:
        launched = launcher.launch(Workload(store.root, plan.suite, options, wait=wait))
        remember(store.root, launched)
        try:
            launcher.watch(bar)
        finally:
            forget(store.root, launched)


ENDED = ("failed", "diverged")
