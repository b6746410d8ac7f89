"""The table of what was measured on held-out data."""

from __future__ import annotations

import math

from harness.plan import Plan
from harness.report.tables import markdown_table, markdown_text
from harness.store import Results
from harness.suite import FQE_METRICS

LEGEND = (
    "Last checkpoint, mean over runs, then over tasks; '-' where a policy has no such figure or the data cannot tell. "
    "What is of an agent as a whole stands under each of its policies. The algorithms' pages say what each figure is."
)

Means = dict[str, dict[str, float]]
"""By metric, then by row of the leaderboard."""


def final_diagnostics(store: Results, plan: Plan) -> Means:
    """Each row's figures at the last step, over the finished cells of a suite; empty where nothing is held out.

    Metrics and rows are in the plan's order.
    """
    import pandas as pd

    found = []
    for planned in plan.cells:
        if store.status(planned.cell).state != "done":
            continue
        frame = store.diagnostics(planned.cell)
        if frame.empty:
            continue
        frame = frame[(frame["step"] == frame["step"].max()) & ~frame["metric"].isin(FQE_METRICS)]  # of training data
        for policy, row in planned.rows.items():
            mine = frame[frame["policy"].isin(["", policy])]
            found.append(mine.assign(row=row, task=planned.cell.task))
    found = [frame for frame in found if len(frame)]
    if not found:
        return {}
    figures = pd.concat(found)
    by_task = figures.groupby(["metric", "row", "task"], sort=False)["value"].mean()
    means: Means = {}
    for (metric, row), value in by_task.groupby(level=["metric", "row"], sort=False).mean().items():
        means.setdefault(metric, {})[row] = float(value)
    return means


def diagnostics_table(store: Results, plan: Plan) -> tuple[list[str], list[list[str]]]:
    """Header and lines: a line a metric and a column a row of the leaderboard; no line where nothing is held out."""
    means = final_diagnostics(store, plan)
    planned_rows = dict.fromkeys(row for planned in plan.cells for row in planned.rows.values())
    rows = [row for row in planned_rows if any(row in values for values in means.values())]
    lines = [[metric, *(_number(values.get(row, math.nan)) for row in rows)] for metric, values in means.items()]
    return ["metric", *rows], lines


def diagnostics_section(store: Results, plan: Plan) -> str:
    """The table in Markdown; empty where there is nothing."""
    header, lines = diagnostics_table(store, plan)
    if not lines:
        return ""
    table = markdown_table([*map(markdown_text, header)], lines)
    return f"\n## Held-out data: {plan.suite}\n\n{table}\n\n{LEGEND}\n"


def _number(value: float) -> str:
    return f"{value:z.3f}" if math.isfinite(value) else "-" if math.isnan(value) else str(value)
