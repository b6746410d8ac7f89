"""``lspc-bench leaderboard``."""

from __future__ import annotations

from pathlib import Path

import click

from harness.cli import completion
from harness.cli.options import BESIDE, OUTPUT, SUITE
from harness.cli.streams import note


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@SUITE
@BESIDE
@click.option(
    "--format",
    "format_name",
    type=click.Choice(["markdown", "csv", "json", "latex"]),
    default="markdown",
    show_default=True,
    help="How to print it; latex: tables with booktabs, for a paper.",
)
@click.option(
    "--limit",
    default="mean",
    show_default=True,
    metavar="mean|VALUE",
    help="The cost limit to look at, or the mean over all.",
)
@click.option("--per-limit", is_flag=True, help="A table for each cost limit, tightest first.")
@click.option(
    "--family",
    metavar="NAME",
    shell_complete=completion.families,
    help="Only the tasks of this family, such as bullet.",
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar="NAME",
    shell_complete=completion.policies,
    help="Only this policy, or those that match a pattern with * and ?. Ranks stay those among all. Repeatable.",
)
@click.option(
    "--best",
    is_flag=True,
    help="Rank every run's best checkpoint by roll-outs instead of the last: online selection, which peeks.",
)
@click.option(
    "--with-published",
    "published",
    multiple=True,
    metavar="SOURCE",
    shell_complete=completion.sources,
    help="Published numbers among ours, marked (see 'lspc-bench published'). Repeatable.",
)
@click.option("--selection", is_flag=True, help="Show instead how well data alone chooses checkpoints and policies.")
@OUTPUT
def leaderboard(
    results: Path,
    suite: str | None,
    beside: tuple[str, ...],
    format_name: str,
    limit: str,
    per_limit: bool,
    family: str | None,
    policies: tuple[str, ...],
    best: bool,
    published: tuple[str, ...],
    selection: bool,
    output: Path | None,
) -> None:
    """Rank the policies in RESULTS, safe ones first.

    Safe policies are ordered by reward, then the unsafe ones by cost.
    """
    if per_limit and limit != "mean":
        raise click.UsageError(f"--per-limit shows every limit, --limit {limit} one: give one of them")
    if selection:
        options = {
            "--limit": limit != "mean",
            "--per-limit": per_limit,
            "--family": family is not None,
            "--policy": bool(policies),
            "--best": best,
            "--with-published": bool(published),
            "--format latex": format_name == "latex",
        }
        if given := [name for name, set_ in options.items() if set_]:
            raise click.UsageError(f"--selection is another table, of the whole suite: it goes without {given[0]}")

    from harness.archive import open_results
    from harness.cli.output import hand_out
    from harness.exchange.joint import plans_beside
    from harness.report import selection as selecting
    from harness.report.diagnostics import diagnostics_section
    from harness.report.field_table import to_latex
    from harness.report.leaderboard import FORMATS
    from harness.report.published import find_sources
    from harness.report.views import Wanted, make_boards

    sources = find_sources(published) if published else []
    wanted = Wanted(family, None if limit == "mean" else limit, per_limit, policies, best, sources)
    store = open_results(results, note=note)
    plans = plans_beside(store, [suite], beside)
    if selection:
        text = selecting.FORMATS[format_name]([selecting.make_report(store, plan) for plan in plans])
    else:
        boards = [board for plan in plans for board in make_boards(store, plan, wanted)]
        text = (FORMATS | {"latex": to_latex})[format_name](boards)
        if format_name == "markdown" and wanted.whole:
            text += "".join(diagnostics_section(store, plan) for plan in plans)
    hand_out(text, output)
