"""``lspc-bench import`` and ``lspc-bench export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from harness.cli.options import SUITES, results_option
from harness.cli.streams import note

if TYPE_CHECKING:
    from harness.exchange.importing import Import
    from harness.exchange.table import Episodes


@click.command("import")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--osrl",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Instead of FILE: a folder with runs of OSRL's training scripts, each with config.yaml and progress.txt.",
)
@results_option()
@click.option(
    "--suite", required=True, metavar="NAME", help="A name for the results; not that of a suite that can be run."
)
@click.option(
    "--limits",
    type=click.Choice(["dsrl", "file"]),
    default="dsrl",
    show_default=True,
    help="By which limits roll-outs are judged that were told none: dsrl: the task's own, and those that FILE has for "
    "it; file: these alone.",
)
@click.option("--description", default="", metavar="TEXT", help="Shown above the suite's tables.")
@click.option("--replace", is_flag=True, help="Replace different results of the same runs by FILE's.")
def import_results(
    file: Path | None,
    osrl: Path | None,
    results: Path,
    suite: str,
    limits: Literal["dsrl", "file"],
    description: str,
    replace: bool,
) -> None:
    """Import results of other code from FILE, as a suite.

    FILE is a table, .csv or .parquet.

    A row is an evaluation episode: task, policy, seed, cost_limit (empty where the policy was told none),
    episode_return, cost and length, all raw; step where there are several, episode to number them, and episodes where a
    row is the mean of so many. Every error is reported with its line. Rows end in [imported] in every table
    and page.
    """
    from harness.errors import UserError
    from harness.exchange.importing import import_episodes, importable_tasks, require_free_name
    from harness.exchange.osrl import read_runs
    from harness.exchange.table import read_episodes
    from harness.store import EVERYTHING, Store

    if (file is None) == (osrl is None):
        raise click.UsageError("give either FILE or --osrl DIR")
    if not description.isprintable() or len(description) > 1000:
        raise click.UsageError("--description takes one line of at most 1000 letters that can be printed")
    store = Store(results, EVERYTHING, note)
    require_free_name(store, suite)
    tasks = importable_tasks(store)
    table = read_episodes(file, tasks) if file is not None else read_runs(osrl or Path(), tasks)
    for text in table.notes:
        note(text)
    if table.problems:
        click.echo("".join(f"{line}\n" for line in table.problems), nl=False, err=True)
        raise UserError("nothing is imported", where=str(table.source))
    _tell(import_episodes(store, suite, table, limits, replace, description), table, results)


def _tell(done: Import, table: Episodes, results: Path) -> None:
    """Say what an import did."""
    counts = {"new": done.added, "replaced": done.replaced, "there already": done.kept}
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    rows = sorted(done.plan.imported)
    shown = ", ".join(rows[:10]) + (f" and {len(rows) - 10} more" if len(rows) > 10 else "")
    click.echo(
        f"Imported {table.source}: {len(table.rows)} rows, {told} of suite {done.plan.suite} in {results}: {shown}."
    )
    if done.unfinished:
        note(f"{done.unfinished} runs ended before the last step, and count as failed; 'lspc-bench status' names them")
    if done.missing:
        note(
            f"{done.missing} runs are missing: who lacks a task, limit or seed that is there otherwise has no rank; "
            "'lspc-bench status' counts them"
        )


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@SUITES
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The file to write: .csv or .parquet.",
)
def export(results: Path, suites: tuple[str, ...], output: Path) -> None:
    """Write every evaluation episode in RESULTS as one table.

    Returns and costs are raw and normalised.
    """
    from harness.archive import all_chosen, open_results
    from harness.cli.output import write_frame
    from harness.errors import UserError
    from harness.exchange.exporting import episodes_of

    if output.suffix.lower() not in (".csv", ".parquet"):
        raise UserError("--output must be a file that ends in .csv or .parquet", where=str(output))
    store = open_results(results, note=note)
    plans = all_chosen(store, suites)
    frame = episodes_of(store, plans)
    write_frame(output, frame)
    click.echo(f"{len(frame)} rows of {', '.join(plan.suite for plan in plans)}.", err=True)
