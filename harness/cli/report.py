"""``lspc-bench report`` and ``lspc-bench figures``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.cli.streams import note

SUITES = click.option(
    "--suite", "suites", multiple=True, help="Only this suite. Repeatable.  [default: every suite there]"
)


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@SUITES
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("report.html"),
    show_default=True,
    metavar="FILE",
    help="The file to write.",
)
@click.option("--title", default="lspc-bench report", show_default=True, help="Of the page.")
def report(results: Path, suites: tuple[str, ...], output: Path, title: str) -> None:
    """Write RESULTS as a page: one file of HTML that opens from disk and needs no network.

    Leaderboards by cost limit and family with intervals, verdicts on safety and ranks as far as the seeds tell; each
    task's runs and learning curves; statistics, published numbers, what is missing, and what it was made with. Tables
    and figures can be saved from it.
    """
    from harness import __version__
    from harness.cli.output import write_text
    from harness.report.page.render import render

    write_text(output, render(_model(results, suites), title, results.name, __version__))


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@SUITES
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("figures"),
    show_default=True,
    metavar="DIR",
    help="The folder to write to.",
)
@click.option(
    "--format",
    "kinds",
    type=click.Choice(["pdf", "svg", "png"]),
    multiple=True,
    default=["pdf"],
    show_default=True,
    help="Of the files. Repeatable.",
)
@click.option("--limit", default="mean", show_default=True, metavar="mean|VALUE", help="The cost limit to look at.")
def figures(results: Path, suites: tuple[str, ...], output: Path, kinds: tuple[str, ...], limit: str) -> None:
    """Write the report's figures of RESULTS to files, for a paper: those of a task once for each."""
    from harness.errors import UserError
    from harness.report.page.files import save_figures

    model = _model(results, suites)
    try:
        for path in save_figures(model, output, kinds, limit):
            click.echo(str(path))
    except OSError as error:
        raise UserError(f"cannot write to {str(output)!r}: {error.strerror}") from error


def _model(results: Path, suites: tuple[str, ...]) -> list[dict[str, Any]]:
    """The values of these suites, or of every one, in RESULTS."""
    from harness.archive import chosen_plans, open_results
    from harness.report.page.model import make_model

    store = open_results(results, note=note)
    return make_model(store, [plan for suite in suites or [None] for plan in chosen_plans(store, suite)])
