"""``lspc-bench study``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli import completion
from harness.cli.options import WORKERS, results_option, same_command, set_option
from harness.cli.run import execute
from harness.cli.streams import note
from harness.options import Options

if TYPE_CHECKING:
    import pandas as pd

    from harness.report.studies import Study

OUTPUT = Path("results/studies")


@click.command()
@click.argument("name", required=False, shell_complete=completion.studies)
@results_option()
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=OUTPUT,
    show_default=True,
    metavar="DIR",
    help="Where NAME.png and NAME.csv go.",
)
@set_option(
    "Set a key of the study's suites, as 'run --set' does; of 'scaling': sizes, algorithms, batch_size, rounds, "
    "updates, actions. Repeatable."
)
@WORKERS
@click.option("--draw-only", is_flag=True, help="Run nothing: draw what there is in the results.")
@click.option(
    "--from",
    "table",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="CSV",
    help="Run nothing: draw from the table that an earlier call wrote.",
)
@click.pass_context
def study(
    ctx: click.Context,
    name: str | None,
    results: Path,
    output: Path,
    overrides: tuple[str, ...],
    workers: int | None,
    draw_only: bool,
    table: Path | None,
) -> None:
    """Run the study NAME and draw its figure, or list the studies.

    After a crash or an interrupt the same command resumes it. The figure's numbers are written beside it.
    """
    from harness.report.questions import QUESTIONS
    from harness.report.studies import find_study, read_csv, write
    from harness.report.tables import text_table

    if name is None:
        click.echo(text_table(["study", "asks"], [list(one) for one in QUESTIONS.items()]))
        return
    if draw_only and table is not None:
        raise click.UsageError("--draw-only and --from are two ways to run nothing: give one")
    found, status = find_study(name), 0
    if table is not None:
        frame = read_csv(table)
    elif found.measure is not None:
        if draw_only:
            raise click.UsageError(f"the study {name!r} has no results to draw: give its table with --from")
        frame = found.measure(overrides)
    else:
        status = 0 if draw_only else _run(found, results, overrides, workers)
        if status == 130:
            ctx.exit(status)
        frame = _read(found, results)
    for path in write(found, frame, output):
        click.echo(f"Wrote {path}.")
    ctx.exit(status)


def _run(found: Study, results: Path, overrides: tuple[str, ...], workers: int | None) -> int:
    """Run the study's suites; the worst exit status."""
    from harness.planning import make_plan
    from harness.suite import read_suite

    files = [read_suite(suite, overrides) for suite in found.suites]
    plans = [make_plan(file) for file in files]  # a mistake in any is told before anything starts
    status = 0
    for file, plan in zip(files, plans, strict=True):
        status = max(status, execute(file, plan, results, same_command(), Options(workers=workers)))
        if status == 130:
            break
    return status


def _read(found: Study, results: Path) -> pd.DataFrame:
    """The study's table, of what there is in the results.

    Raises:
        UserError: there is nothing.
    """
    from harness.archive import chosen_plans, open_results
    from harness.errors import UserError
    from harness.report.warnings import describe_damage

    store = open_results(results, note=note)
    plans = [plan for suite in found.suites for plan in chosen_plans(store, suite)]
    cells = {planned.cell.hash: planned.cell for plan in plans for planned in plan.cells}
    done = sum(store.status(cell).state == "done" for cell in cells.values())
    if not done:
        raise UserError(f"none of the study's {len(cells)} cells is done in {str(results)!r}")
    if done < len(cells):
        click.echo(f"{len(cells) - done} of the study's {len(cells)} cells have no results and are left out.", err=True)
    for plan in plans:
        for line in describe_damage((store.status(planned.cell) for planned in plan.cells), plan):
            note(line)
    assert found.read is not None, "a study reads what its suites left, or measures"
    return found.read(store, plans)
