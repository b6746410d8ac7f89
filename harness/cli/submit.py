"""``lspc-bench submit`` and ``lspc-bench cancel``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.options import command_line, results_option, run_options, set_option
from harness.cli.streams import note

if TYPE_CHECKING:
    from harness.launchers import Submitter
    from harness.options import Options


class _Submit(click.Command):
    """With the options of every launcher, which are not looked for before somebody asks."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        from harness.launchers import submitters

        own = super().get_params(ctx)
        return [*own[:1], *(option for launcher in submitters() for option in launcher.options), *own[1:]]


@click.command(cls=_Submit)
@click.argument("suite")
@results_option("Where results go: a folder that all machines see.")
@click.option(
    "--number",
    type=click.IntRange(1, 1000),
    metavar="N",
    help="How many workers.  [default: as the engine's part says]",
)
@click.option("--script", is_flag=True, help="With --slurm: print a script for sbatch, and submit nothing.")
@run_options
@set_option()
def submit(
    suite: str,
    results: Path,
    number: int | None,
    script: bool,
    options: Options,
    overrides: tuple[str, ...],
    **given: Any,
) -> None:
    """Start workers for SUITE on a SLURM or Ray cluster.

    SUITE is a file, or the name of a built-in suite. The command plans it, and returns once the workers are submitted.
    They are those of 'lspc-bench work' with the options that stand here; on SLURM one that --for ends is started again.
    'lspc-bench status' on the results shows them, 'lspc-bench cancel' ends them.
    """
    from harness.cli.run import require_no_import, write_plan
    from harness.inputs import require_inputs
    from harness.launchers import Workload, remember
    from harness.planning import make_plan
    from harness.store import Store
    from harness.suite import read_suite

    launcher = _chosen(given)
    text = getattr(launcher, "script", None)
    if script and text is None:
        raise click.UsageError("--script goes with --slurm")
    if not script:
        launcher.require()
    store = Store(results)
    store.require_no_archive()
    require_no_import(store, suite)
    file = read_suite(suite, overrides)
    plan = make_plan(file)
    with file.located():
        require_inputs(plan, lambda text: click.echo(text, err=True), options)
    write_plan(plan, results)
    work = Workload(results, plan.suite, options, number)
    if script and text is not None:
        (results / "launched").mkdir(exist_ok=True)  # for its logs
        click.echo(text(work), nl=False)
        return
    launched = launcher.launch(work)
    try:
        remember(results, launched)
    except BaseException:
        launcher.cancel(launched)
        raise
    click.echo(f"Submitted: {launched.describe()}: {' '.join(launched.jobs)}")
    status, cancel = command_line("status", results), command_line("cancel", results)
    click.echo(f"How they are: {status}. To end them: {cancel}.", err=True)


def _chosen(given: dict[str, Any]) -> Submitter:
    """The launcher that is asked for.

    Raises:
        click.UsageError: none is, or two are.
        UserError: what is said of it is wrong.
    """
    from harness.launchers import submitters

    known = submitters()
    chosen = [one for one in (launcher.chosen(given) for launcher in known) if one is not None]
    if len(chosen) != 1:
        names = " or ".join(launcher.options[0].opts[0] for launcher in known)
        raise click.UsageError(f"choose where its workers run: {names}" + (", not both" if chosen else ""))
    return chosen[0]


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.option("--suite", help="Only what was submitted for this suite.  [default: everything]")
@click.pass_context
def cancel(ctx: click.Context, results: Path, suite: str | None) -> None:
    """End what was submitted for RESULTS. Workers keep what is under way, as after Ctrl-C; submit again to go on.

    Workers that were started by hand are not touched.
    """
    from harness.errors import UserError
    from harness.launchers import find_launcher, forget, remembered
    from harness.store import Store

    Store.existing(results)
    found, refused = [one for one in remembered(results, note) if suite in (None, one.suite)], False
    for launched in found:
        try:
            find_launcher(launched.launcher).cancel(launched)
        except UserError as error:
            click.echo(f"Error: {launched.describe()}: {error}", err=True)
            refused = True
        else:
            forget(results, launched)
            click.echo(f"Cancelled: {launched.describe()}")
    if not found:
        click.echo("Nothing was submitted.")
    ctx.exit(2 if refused else 0)
