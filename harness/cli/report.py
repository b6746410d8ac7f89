"""``lspc-bench report`` and ``lspc-bench figures``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.cli.options import BESIDE, SUITES
from harness.cli.streams import note


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@SUITES
@BESIDE
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("report.html"),
    show_default=True,
    metavar="FILE",
    help="The file to write.",
)
@click.option("--title", default="lspc-bench report", show_default=True, help="The page's title.")
def report(results: Path, suites: tuple[str, ...], beside: tuple[str, ...], output: Path, title: str) -> None:
    """Write RESULTS as one HTML page that needs no network.

    Leaderboards by cost limit and family with intervals, verdicts on safety and ranks as far as the seeds tell; each
    task's runs and learning curves; statistics, published numbers, what is missing, and what it was made with. Tables
    and figures can be saved from it.
    """
    from harness import __version__
    from harness.cli.output import write_text
    from harness.report.page.render import render

    write_text(output, render(_model(results, suites, beside), title, results.name, __version__))


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@SUITES
@BESIDE
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
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME",
    help="Also draw this metric, logged or of held-out data. Repeatable.",
)
def figures(
    results: Path,
    suites: tuple[str, ...],
    beside: tuple[str, ...],
    output: Path,
    kinds: tuple[str, ...],
    limit: str,
    metrics: tuple[str, ...],
) -> None:
    """Write the report's figures of RESULTS as files, for a paper."""
    from harness.files import where_the_user_says
    from harness.report.page.files import save_figures

    model = _model(results, suites, beside)
    with where_the_user_says(output):
        for path in save_figures(model, output, kinds, limit, metrics):
            click.echo(str(path))


def _model(results: Path, suites: tuple[str, ...], beside: tuple[str, ...]) -> list[dict[str, Any]]:
    """The values of these suites, or of every one, in RESULTS."""
    from pyarrow import default_memory_pool

    from harness.archive import open_results
    from harness.exchange.joint import plans_beside
    from harness.report.page.model import make_model

    store = open_results(results, note=note)
    model = make_model(store, plans_beside(store, suites, beside))
    del store
    default_memory_pool().release_unused()  # drawing needs as much again
    return model
