"""What a reader of tables must know of single cells: damage, and what algorithms say of their agents."""

from __future__ import annotations

from collections import Counter

from harness.plan import Plan
from harness.store import Results


def describe_damage(store: Results, plan: Plan) -> list[str]:
    """A line for each damaged cell of a suite, which tables leave out."""
    found = [(planned, store.status(planned.cell)) for planned in plan.cells]
    return [
        f"{planned.cell.describe(planned.label)} is left out: {status.reason}"
        for planned, status in found
        if status.state == "damaged"
    ]


def describe_warnings(store: Results, plan: Plan) -> list[str]:
    """A line for each task, algorithm and trouble that holds at the end of training: of how many agents, since when."""
    done: Counter[tuple[str, str]] = Counter()
    since: dict[tuple[str, str, str], list[int]] = {}
    for planned in plan.cells:
        status = store.status(planned.cell)
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
