"""What algorithms take, as tables."""

from __future__ import annotations

from collections.abc import Sequence

from harness.capacity import readable
from harness.forecast import this_machine
from harness.report.tables import csv_table, markdown_table, markdown_text
from harness.resources import Resources
from harness.tasks import Task


def to_markdown(found: Sequence[Resources], task: Task) -> str:
    """For people, with the machine."""
    here = this_machine("cpu")
    assert here is not None
    header = ["policy", "batch", "trained parameters", "policy's parameters", "GFLOP an update"]
    header += ["s per 1,000 updates", "memory", *(f"ms an action, of {count}" for count in found[0].milliseconds)]
    rows = [
        [
            markdown_text(one.row),
            str(one.batch_size),
            str(one.parameters),
            str(one.policy_parameters),
            _short(one.flops / 1e9),
            _short(one.seconds),
            readable(one.memory),
            *map(_short, one.milliseconds.values()),
        ]
        for one in found
    ]
    return f"{task.name} on {here.describe()}, torch {here.torch}:\n\n{markdown_table(header, rows)}\n"


def _short(value: float) -> str:
    """Three digits, without an exponent where a number is large."""
    return f"{float(f'{value:.3g}'):.0f}" if value >= 1000 else f"{value:.3g}"


def to_csv(found: Sequence[Resources], task: Task) -> str:
    """For programs: a line a policy."""
    return csv_table(
        [
            {
                "task": task.name,
                "policy": one.row,
                "batch_size": one.batch_size,
                "parameters": one.parameters,
                "policy_parameters": one.policy_parameters,
                "flops": one.flops,
                "seconds_per_1000_updates": one.seconds,
                "memory_bytes": one.memory,
            }
            | {f"milliseconds_an_action_of_{count}": value for count, value in one.milliseconds.items()}
            for one in found
        ]
    )


FORMATS = {"markdown": to_markdown, "csv": to_csv}
