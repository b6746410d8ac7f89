"""``lspc-bench status``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli.streams import note

if TYPE_CHECKING:
    from harness.plan import Plan
    from harness.store import Results

AGAIN = "results/runs/again"
"""Where results go that are made again, away from those that are there."""


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.option("--suite", help="Only this suite.  [default: every suite that ran there]")
@click.option(
    "--commands",
    type=click.Choice(["cells", "groups"]),
    help="Print instead how to make results again from scratch: a command for each cell, or for each group of cells "
    "that trained together.",
)
@click.option(
    "--verify", is_flag=True, help="Read every file instead, and name those that are damaged; exit status 1 if any is."
)
@click.pass_context
def status(ctx: click.Context, results: Path, suite: str | None, commands: str | None, verify: bool) -> None:
    """Show what of RESULTS is done, failed or damaged (and why) and missing, for each task and algorithm."""
    from harness.archive import chosen_plans, open_results

    opened = open_results(results, checked=(), note=note)
    if verify:
        if suite is not None or commands is not None:
            raise click.UsageError("--verify reads everything: neither --suite nor --commands goes with it")
        ctx.exit(_verify(opened))
    for index, plan in enumerate(chosen_plans(opened, suite)):
        if commands is not None:
            click.echo("\n".join(_commands(opened, plan, together=commands == "groups")))
        else:
            click.echo(("\n" if index else "") + _describe(opened, plan))


def _verify(results: Results) -> int:
    """Read everything; the exit status."""
    count, damaged = results.verify()
    click.echo("".join(f"{line}\n" for line in damaged) + f"{count} files read, {len(damaged)} damaged.")
    if damaged:
        click.echo("Run their suites again: that makes damaged results again, and nothing else.", err=True)
    return 1 if damaged else 0


def _describe(results: Results, plan: Plan) -> str:
    from harness.report.tables import text_table
    from harness.report.warnings import describe_warnings

    groups: dict[tuple[str, str], Counter[str]] = {}
    problems = []
    for planned in plan.cells:
        found = results.status(planned.cell)
        groups.setdefault((planned.cell.task, planned.label), Counter())[found.state] += 1
        if found.state in ("failed", "diverged", "damaged"):
            problems.append(
                f"{planned.cell.describe(planned.label)} ({planned.cell.hash}) {found.state}: {found.brief}"
            )
    damaged = any(counts["damaged"] for counts in groups.values())
    states = ("done", "running", "failed", "diverged", *(["damaged"] if damaged else []), "missing")
    rows = [
        [
            plan.tasks[task].name,
            label,
            f"{counts['done']} of {counts.total()}",
            *(str(counts[state]) for state in states[1:]),
        ]
        for (task, label), counts in groups.items()
    ]
    total = sum((counts for counts in groups.values()), Counter())
    parts = [
        f"Suite {plan.suite}: {total['done']} of {total.total()} cells done.",
        text_table(["task", "algorithm", "done", "unfinished", *states[2:]], rows),
        *problems,
        *(f"Warning: {line}" for line in describe_warnings(results, plan)),
    ]
    return "\n".join(parts)


def _commands(results: Results, plan: Plan, together: bool) -> Iterator[str]:
    """A line a cell, or a group: the command, and behind ``#`` what it makes; before them what is to be minded."""
    from harness.plan import make_plan
    from harness.suite import builtin_suites, read_suite

    cells = {planned.cell.hash: planned for planned in plan.cells}
    name = plan.suite
    if name in builtin_suites():
        changed = cells.keys() - {planned.cell.hash for planned in make_plan(read_suite(name)).cells}
        if changed:
            yield f"# {len(changed)} of {len(cells)} cells are not in the built-in suite {name} as it is now: they ran"
            yield "# with --set, or with another version. It takes the same --set, or that version, to make them again."
    else:
        yield f"# SUITE is the file of suite {name}, with the --set that it ran with."
        name = "SUITE"
    groups = [(key,) for key in cells]
    if together:
        done = [key for key, planned in cells.items() if results.status(planned.cell).state == "done"]
        trained = [tuple(results.record(cells[key].cell)["group"]) for key in done]
        groups = [tuple(key for key in group if key in cells) for group in dict.fromkeys(trained)]
    for group in groups:
        chosen = " ".join(f"--cell {key}" for key in group)
        first = cells[group[0]]
        more = f" and {len(group) - 1} more" if len(group) > 1 else ""
        yield f"lspc-bench run {name} {chosen} --results {AGAIN}  # {first.cell.describe(first.label)}{more}"
