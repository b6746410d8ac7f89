"""What methods cost: training time, updates a second, memory, and how long a policy takes to act."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.plan import Plan
from harness.report.tables import text_table
from harness.store import Results

HEADER = (
    "task",
    "algorithm",
    "device",
    "replicas",
    "training (s)",
    "updates/s",
    "memory (GB)",
    "ms an action, alone",
    "of ten",
)


@dataclass(frozen=True)
class Cost:
    """What a row of the tables cost on a task, by the clock of the machines that it ran on.

    Args:
        task: its name.
        row: the policy's name in tables.
        device: that it was trained on, or several.
        replicas: agents that trained side by side, as all that follows on training is of them together.
        seconds: of training.
        updates: a second.
        memory: the most at once, bytes: tensors on a GPU; with the CPU the whole process.
        alone: milliseconds in which the policy acts for one environment.
        of_ten: milliseconds an action where it acts for ten at once.
    """

    task: str
    row: str
    device: str
    replicas: float | None
    seconds: float | None
    updates: float | None
    memory: float | None
    alone: float | None
    of_ten: float | None


def costs(results: Results, plan: Plan) -> list[Cost]:
    """Those of every row and task with results that were made here: the median of its groups.

    What older versions did not measure is ``None``.
    """
    found: dict[tuple[str, str], dict[tuple[str, ...], tuple[str, Mapping[str, Any]]]] = {}
    for planned in plan.cells:
        if planned.cell.imported is None and results.status(planned.cell).state == "done":
            record = results.record(planned.cell)
            for policy, row in planned.rows.items():
                found.setdefault((planned.cell.task, row), {})[tuple(record["group"])] = policy, record
    return [_cost(plan.tasks[task].name, row, list(groups.values())) for (task, row), groups in found.items()]


def _cost(task: str, row: str, groups: Sequence[tuple[str, Mapping[str, Any]]]) -> Cost:
    records = [record for _, record in groups]
    acting = [record.get("milliseconds_an_action", {}).get(policy, {}) for policy, record in groups]
    return Cost(
        task=task,
        row=row,
        device=", ".join(dict.fromkeys(str(record.get("device", "-")) for record in records)),
        replicas=_median(len(record["group"]) for record in records),
        seconds=_median(record["training_seconds"] for record in records),
        updates=_median(record.get("updates_per_second") for record in records),
        memory=_median(record.get("peak_memory") for record in records),
        alone=_median(milliseconds.get("1") for milliseconds in acting),
        of_ten=_median(milliseconds.get("10") for milliseconds in acting),
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def as_rows(found: Iterable[Cost]) -> list[list[str]]:
    """Under :data:`HEADER`; a dash for what is not known."""
    return [
        [
            cost.task,
            cost.row,
            cost.device,
            _number(cost.replicas, "g"),
            _number(cost.seconds, ".1f"),
            _number(cost.updates, ".1f"),
            _number(None if cost.memory is None else cost.memory / 1e9, ".2f"),
            _number(cost.alone, ".3f"),
            _number(cost.of_ten, ".3f"),
        ]
        for cost in found
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def costs_table(results: Results, plan: Plan) -> str:
    """For a terminal."""
    return text_table(HEADER, as_rows(costs(results, plan)))
