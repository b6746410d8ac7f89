"""``lspc-bench leaderboard``."""

from __future__ import annotations

from pathlib import Path

import click

from harness.cli.streams import note


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.option("--suite", help="Only this suite.  [default: every suite that ran there]")
@click.option(
    "--format",
    "format_name",
    type=click.Choice(["markdown", "csv", "json"]),
    default="markdown",
    show_default=True,
    help="How to print it.",
)
@click.option(
    "--selection", is_flag=True, help="How well checkpoints and policies are chosen by the data alone, instead."
)
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write to FILE instead."
)
def leaderboard(results: Path, suite: str | None, format_name: str, selection: bool, output: Path | None) -> None:
    """Rank the policies in RESULTS: safe ones first, by reward; then the unsafe ones, by cost."""
    from harness.archive import chosen_plans, open_results
    from harness.cli.output import write_text
    from harness.report import leaderboard as ranking
    from harness.report import selection as selecting
    from harness.report.diagnostics import diagnostics_section

    store = open_results(results, note=note)
    plans = chosen_plans(store, suite)
    if selection:
        text = selecting.FORMATS[format_name]([selecting.make_report(store, plan) for plan in plans])
    else:
        text = ranking.FORMATS[format_name]([ranking.make_leaderboard(store, plan) for plan in plans])
        if format_name == "markdown":
            text += "".join(diagnostics_section(store, plan) for plan in plans)
    if output is None:
        click.echo(text, nl=False)
        return
    write_text(output, text)
