"""``lspc-bench status``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from harness.plan import Plan
    from harness.store import Store


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.option("--suite", help="Only this suite.  [default: every suite that ran there]")
def status(results: Path, suite: str | None) -> None:
    """Show what of RESULTS is done, failed (and why) and missing, for each task and algorithm."""
    from harness.store import Store

    store = Store.existing(results)
    click.echo("\n\n".join(_describe(store, plan) for plan in chosen_plans(store, suite)))


def chosen_plans(store: Store, suite: str | None) -> list[Plan]:
    """The plans of one suite, or of all.

    Raises:
        UserError: no such suite ran here.
    """
    from harness.errors import UserError, nearest

    plans = store.plans()
    names = [plan.suite for plan in plans]
    if suite is not None and suite not in names:
        raise UserError(
            f"no suite {suite!r} ran in {str(store.root)!r}, only {', '.join(names)}.{nearest(suite, names)}"
        )
    return [plan for plan in plans if suite in (None, plan.suite)]


def _describe(store: Store, plan: Plan) -> str:
    from harness.report.tables import text_table
    from harness.report.warnings import describe_warnings

    groups: dict[tuple[str, str], Counter[str]] = {}
    problems = []
    for planned in plan.cells:
        found = store.status(planned.cell)
        groups.setdefault((planned.cell.task, planned.label), Counter())[found.state] += 1
        if found.state in ("failed", "diverged"):
            problems.append(
                f"{planned.cell.describe(planned.label)} ({planned.cell.hash}) {found.state}: {found.brief}"
            )
    states = ("done", "running", "failed", "diverged", "missing")
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
        *(f"Warning: {line}" for line in describe_warnings(store, plan)),
    ]
    return "\n".join(parts)
