"""``lspc-bench leaderboard``."""

from __future__ import annotations

from pathlib import Path

import click


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
    "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write to FILE instead."
)
def leaderboard(results: Path, suite: str | None, format_name: str, output: Path | None) -> None:
    """Rank the policies in RESULTS: safe ones first, by reward; then the unsafe ones, by cost."""
    from harness.archive import open_results
    from harness.cli.status import chosen_plans
    from harness.errors import UserError
    from harness.files import replacing
    from harness.report.leaderboard import FORMATS, make_leaderboard

    opened = open_results(results)
    boards = [make_leaderboard(opened, plan) for plan in chosen_plans(opened, suite)]
    text = FORMATS[format_name](boards)
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        with replacing(output) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {str(output)!r}: {error.strerror}") from error
    click.echo(f"Wrote {output}.", err=True)
