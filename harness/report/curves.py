"""How results change while training goes on: learning curves of roll-outs, and what the algorithms log."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.archive import thin
from harness.plan import Plan
from harness.statistics import mean_intervals
from harness.store import Results

POINTS = 20
"""Of a logged metric's curve."""
_Curve = tuple[list[str], NDArray[Any], NDArray[np.float64]]
"""Names of metrics, steps, and values (steps, metrics)."""


def learning_curves(episodes: pd.DataFrame) -> pd.DataFrame:
    """Each row's means on each task at every point of its learning curve.

    Args:
        episodes: what :func:`harness.statistics.checkpoint_episodes` gives.

    Returns:
        Columns row, task, share (of the training steps), reward and cost (means over seeds, a seed's being the mean
        over its limits), their 95% bootstrap intervals reward_low, reward_high, cost_low and cost_high (NaN with one
        seed), seeds.
    """
    steps = episodes.groupby(["row", "task"])["step"].transform("max")
    episodes = episodes.assign(share=episodes["step"] / steps)
    point = ["row", "task", "share"]
    runs = episodes.groupby([*point, "seed", "limit"], sort=False)[["reward", "cost"]].mean()
    seeds = runs.groupby([*point, "seed"], sort=False).mean()
    curves = seeds.groupby(point, sort=False).mean().assign(seeds=seeds.groupby(point, sort=False).size())
    return (curves.join(_bands(seeds)) if len(seeds) else curves).reset_index()


def _bands(seeds: pd.DataFrame) -> pd.DataFrame:
    """Intervals of reward and cost at each point; points that lack a seed rest on those they have."""
    wide = seeds.unstack("seed")
    bands = {}
    for what in ("reward", "cost"):
        values = wide[what].to_numpy(dtype=float)  # (points, seeds)
        found = np.full((len(values), 2), np.nan)
        there = np.isfinite(values)
        for mask in np.unique(there, axis=0):
            same = (there == mask).all(1)
            found[same] = mean_intervals(values[same][:, mask].T)
        bands[f"{what}_low"], bands[f"{what}_high"] = found.T
    return pd.DataFrame(bands, index=wide.index)


def logged_metrics(results: Results, plan: Plan) -> list[dict[str, Any]]:
    """Every metric that algorithms log, by the suite's label and task.

    Returns:
        A record a curve: label, task, metric, agents (how many), and lists of up to :data:`POINTS` values: share (of
        the training steps), mean, low and high (the least and the most of the agents').
    """
    curves: dict[tuple[str, str], list[_Curve]] = {}
    for planned in plan.cells:
        if results.status(planned.cell).state == "done":
            frame = results.training(planned.cell)
            names = [str(name) for name in frame.columns if name != "step"]
            curve = thin(frame["step"].to_numpy(), frame[names].to_numpy(dtype=float), POINTS)
            curves.setdefault((planned.label, planned.cell.task), []).append((names, *curve))
    records = []
    for (label, task), found in curves.items():
        names, steps, _ = found[0]
        alike = [values for mine, at, values in found if mine == names and np.array_equal(at, steps)]
        together = np.stack(alike)  # (agents, points, metrics)
        logged = np.isfinite(together).all(0)
        shape = {"mean": together.mean(0), "low": together.min(0), "high": together.max(0)}
        for column, metric in enumerate(names):
            at = logged[:, column]
            lists = {name: [float(f"{value:.4g}") for value in one[at, column]] for name, one in shape.items()}
            share = [float(f"{step / steps[-1]:.4g}") for step in steps[at]]
            where = {"label": label, "task": task, "metric": metric, "agents": len(alike)}
            records.append(where | {"share": share} | lists)
    return records
