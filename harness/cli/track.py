"""``lspc-bench track``."""

from __future__ import annotations

from pathlib import Path

import click

from harness.cli.options import SUITES, TRACKER
from harness.cli.streams import note


@click.command()
@click.argument("results", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--to",
    "names",
    type=TRACKER,
    multiple=True,
    required=True,
    metavar=TRACKER.name,
    help="The tracker. Repeatable.",
)
@SUITES
@click.pass_context
def track(ctx: click.Context, results: Path, names: tuple[str, ...], suites: tuple[str, ...]) -> None:
    """Send the numbers of RESULTS to a tracker.

    They are those that 'run --track' sends. What was sent of the same cells before is replaced. Of cells that have not
    ended nothing is sent.
    """
    from harness.archive import all_chosen, open_results
    from harness.trackers import require
    from harness.tracking import send_results, tracking

    for name in names:
        require(name)
    found = open_results(results, (), note)  # of a folder every cell's own files, each checked when it is read
    plans = all_chosen(found, suites)
    failures: list[str] = []
    for plan in plans:
        with tracking(plan, names, results, failures.append) as tracked:
            count = send_results(found, plan, tracked, note)
        for failure in failures:
            click.echo(failure, err=True)
        if failures:
            ctx.exit(1)
        click.echo(f"{plan.suite}: {count} cells sent to {', '.join(dict.fromkeys(names))}.")
