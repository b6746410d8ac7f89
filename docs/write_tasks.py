"""Bring the table of docs/tasks.md up to date: python docs/write_tasks.py [--check].

The figures in docs/tasks.json come from benchmarks/simulators.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from harness.report.tables import markdown_table
from harness.tasks import all_tasks

FOLDER = Path(__file__).parent
BEGIN, END = "<!-- tasks -->\n", "<!-- end -->\n"
HEADER = [
    *("task", "family", "observation", "action", "episode", "cost limits"),
    *("steps/s", "ms a reset", "same again", "steps compared"),
]


def table() -> str:
    """All tasks: what they are, and what was measured."""
    measured = json.loads((FOLDER / "tasks.json").read_text(encoding="utf-8"))
    rows = []
    for task in all_tasks().values():
        figures = measured["tasks"][task.id]
        difference = figures["largest_difference"]
        again = "no: other length" if difference is None else "exactly" if difference == 0 else f"to {difference:.0e}"
        rows.append(
            [
                task.name,
                task.family,
                str(task.observation_size),
                str(task.action_size),
                str(task.max_episode_steps),
                " ".join(f"{limit:g}" for limit in task.cost_limits),
                f"{figures['steps_per_second']}",
                f"{figures['milliseconds_per_reset']:g}",
                again,
                str(figures["compared_steps"]),
            ]
        )
    return f"Measured on {measured['machine']}.\n\n{markdown_table(HEADER, rows)}"


def main() -> int:
    """Write the page, or say that it is out of date."""
    path = FOLDER / "tasks.md"
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{path} lacks {BEGIN.strip()} or {END.strip()}")
    wanted = f"{before}{BEGIN}\n{table()}\n\n{END}{after}"
    if text == wanted:
        print("up to date")
        return 0
    print(f"{path.name} is out of date")
    if "--check" in sys.argv:
        return 1
    path.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
