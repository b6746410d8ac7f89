"""What a reader of tables must know of single cells: damage, and what algorithms say of their agents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from harness.plan import MARK, Plan
from harness.store import Status


def describe_damage(statuses: Iterable[Status], plan: Plan) -> list[str]:
    """A line for each damaged cell of a suite, which tables leave out; arguments as of :func:`describe_warnings`."""
    return [
        f"{planned.cell.describe(planned.label)} is left out: {status.reason}"
        for planned, status in zip(plan.cells, statuses, strict=True)
        if status.state == "damaged"
    ]


def describe_imports(plan: Plan) -> list[str]:
    """A line where rows of a suite are imported: from which sources."""
    if not plan.sources:
        return []
    named = ", ".join(f"{file} (SHA-256 {sha256[:12]})" for file, sha256 in plan.sources)
    return [
        f"Imported from {named}: rows that end in{MARK} were not run here. Nothing here can check them, nor say what "
        "they were trained on."
    ]


def describe_warnings(statuses: Iterable[Status], plan: Plan) -> list[str]:
    """A line for each task, algorithm and trouble that holds at the end of training: of how many agents, since when.

    Args:
        statuses: of the plan's cells, in their order.
        plan: the plan.
    """
    done: Counter[tuple[str, str]] = Counter()
    since: dict[tuple[str, str, str], list[int]] = {}
    for planned, status in zip(plan.cells, statuses, strict=True):
        if status.state != "done":
            continue
        key = (planned.cell.task, planned.label)
        done[key] += 1
        for text, step in status.warnings.items():
            since.setdefault((*key, text), []).append(step)
    lines = []
    for (task, label, text), steps in since.items():
        span = f"step {min(steps)}" if len(set(steps)) == 1 else f"steps {min(steps)} to {max(steps)}"
        count = f"{len(steps)} of {done[task, label]} agents"
        lines.append(f"{plan.tasks[task].name} {label}, {count}: {text} (since {span})")
    return lines
