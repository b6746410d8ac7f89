"""``lspc-bench published`` and ``lspc-bench compare``."""

from __future__ import annotations

from pathlib import Path

import click

from harness.cli import completion
from harness.cli.options import OUTPUT, SUITE
from harness.cli.streams import note


@click.command()
@click.option("--format", "format_name", type=click.Choice(["text", "csv"]), default="text", show_default=True)
def published(format_name: str) -> None:
    """List the sources of published numbers, with their protocols."""
    from harness.report.published import counts, sources
    from harness.report.tables import csv_table, text_table

    found = counts()
    if format_name == "csv":
        records = [
            {"source": one.name, "protocol": one.protocol, **found[one.name]}
            | {"normalisation": one.normalisation, "provenance": one.provenance, "citation": one.citation}
            for one in sources().values()
        ]
        click.echo(csv_table(records), nl=False)
        return
    header = ["source", "numbers", "averages", "tasks", "algorithms", "provenance", "protocol"]
    rows = [
        [one.name, *(str(found[one.name][name]) for name in header[1:5]), one.provenance, one.protocol]
        for one in sources().values()
    ]
    click.echo(text_table(header, rows))
    click.echo()
    for one in sources().values():
        click.echo(f"{one.name}: {one.citation}")


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@SUITE
@click.option(
    "--source",
    "names",
    multiple=True,
    metavar="NAME",
    shell_complete=completion.sources,
    help="Only this source's numbers. Repeatable.  [default: every source]",
)
@click.option(
    "--format",
    "format_name",
    type=click.Choice(["markdown", "csv", "json", "latex"]),
    default="markdown",
    show_default=True,
    help="How to print it.",
)
@OUTPUT
def compare(results: Path, suite: str | None, names: tuple[str, ...], format_name: str, output: Path | None) -> None:
    """Compare the policies in RESULTS with published numbers.

    For each policy that both have: do the numbers agree, differ, or are they not comparable, and why?
    """
    from harness.archive import chosen_plans, open_results
    from harness.cli.output import hand_out
    from harness.report import published as literature

    chosen = literature.find_sources(names)
    store = open_results(results, note=note)
    found = []
    for plan in chosen_plans(store, suite):
        comparisons = literature.compare(store, plan, chosen)
        mine = [one for one in comparisons if one.row is not None]
        if len(mine) < len(comparisons):
            note(
                f"{plan.suite}: {len(comparisons) - len(mine)} published numbers on its tasks are of policies that it "
                "does not have."
            )
        found.append((plan, mine))
    hand_out(literature.FORMATS[format_name](found), output)
