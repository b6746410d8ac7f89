"""What was measured on held-out data: the table of the last checkpoints, and curves over training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from harness.plan import Plan
from harness.report.tables import markdown_table, markdown_text
from harness.store import Results
from harness.suite import FQE_METRICS

LEGEND = (
    "Last checkpoint, mean over runs, then over tasks; '-' where a policy has no such figure or the data cannot tell. "
    "What is of an agent as a whole stands under each of its policies. The algorithms' pages say what each figure is."
)
COLUMNS = ["row", "task", "metric", "share", "value"]

Means = dict[str, dict[str, float]]
"""By metric, then by row of the leaderboard."""


def held_out_figures(store: Results, plan: Plan) -> pd.DataFrame:
    """Every figure of the finished cells of a suite; no row where nothing is held out.

    Returns:
        Columns row (of the leaderboard), task, metric, share (of the training steps) and value, in the plan's order.
    """
    found = []
    for planned in plan.cells:
        if store.status(planned.cell).state != "done":
            continue
        frame = store.diagnostics(planned.cell)
        if frame.empty:
            continue
        frame = frame.assign(share=frame["step"] / frame["step"].max())
        frame = frame[~frame["metric"].isin(FQE_METRICS)]  # of training data
        for policy, row in planned.rows.items():
            mine = frame[frame["policy"].isin(["", policy])]
            found.append(mine.assign(row=row, task=planned.cell.task)[COLUMNS])
    found = [frame for frame in found if len(frame)]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=COLUMNS)


def held_out_curves(figures: pd.DataFrame) -> list[dict[str, Any]]:
    """How figures change while training goes on.

    Args:
        figures: what :func:`held_out_figures` gives.

    Returns:
        A record a row, task and metric, with lists of a value a point: share, mean, low and high (the least and the
        most of the runs'), and runs (how many). What is not finite is left out.
    """
    known = figures[np.isfinite(figures["value"].to_numpy(dtype=float))]
    points = known.groupby(COLUMNS[:-1], sort=False)["value"].agg(mean="mean", low="min", high="max", runs="size")
    records = []
    for (row, task, metric), curve in points.reset_index().groupby(["row", "task", "metric"], sort=False):
        ordered = curve.sort_values("share")
        lists = {name: [float(f"{value:.4g}") for value in ordered[name]] for name in ("share", "mean", "low", "high")}
        records.append({"row": row, "task": task, "metric": metric, **lists, "runs": ordered["runs"].tolist()})
    return records


def final_diagnostics(figures: pd.DataFrame) -> Means:
    """Each row's figures at the last step; empty where nothing is held out.

    Metrics and rows are in the plan's order.
    """
    by_task = figures[figures["share"] == 1].groupby(["metric", "row", "task"], sort=False)["value"].mean()
    by_row = by_task.groupby(level=["metric", "row"], sort=False).mean().reset_index()
    means: Means = {}
    for metric, row, value in zip(by_row["metric"], by_row["row"], by_row["value"], strict=True):
        means.setdefault(metric, {})[row] = float(value)
    return means


def diagnostics_table(figures: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Header and lines: a line a metric and a column a row of the leaderboard; no line where nothing is held out."""
    means = final_diagnostics(figures)
    rows = [row for row in figures["row"].unique() if any(row in values for values in means.values())]
    lines = [[metric, *(_number(values.get(row, math.nan)) for row in rows)] for metric, values in means.items()]
    return ["metric", *rows], lines


def diagnostics_section(store: Results, plan: Plan) -> str:
    """The table in Markdown; empty where there is nothing."""
    header, lines = diagnostics_table(held_out_figures(store, plan))
    if not lines:
        return ""
    table = markdown_table([*map(markdown_text, header)], lines)
    return f"\n## Held-out data: {plan.suite}\n\n{table}\n\n{LEGEND}\n"


def _number(value: float) -> str:
    return f"{value:z.3f}" if math.isfinite(value) else "-" if math.isnan(value) else str(value)
