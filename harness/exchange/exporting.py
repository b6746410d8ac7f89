"""All episodes of suites as one tidy table."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from harness.plan import Plan
from harness.statistics import checkpoint_episodes
from harness.store import Results

COLUMNS = (
    "suite",
    "task",
    "algorithm",
    "policy",
    "row",
    "imported",
    "seed",
    "cost_limit",
    "step",
    "last",
    "episode",
    "episode_return",
    "cost",
    "length",
    "episodes",
    "normalized_reward",
    "normalized_cost",
    "satisfied",
)
"""Of :func:`episodes_of`."""
THEIRS = {
    "limit": "cost_limit",
    "reward": "normalized_reward",
    "cost": "normalized_cost",
    "episode_cost": "cost",
}
"""Columns of :func:`harness.statistics.checkpoint_episodes`, and what they are called outside."""


def episodes_of(results: Results, plans: Sequence[Plan]) -> pd.DataFrame:
    """Every evaluation episode of every finished cell, once for each cost limit that it is judged by.

    Returns:
        :data:`COLUMNS`: suite, task (id), algorithm, policy (its own name), row (its name in tables, which tells points
        of a grid apart), imported, seed, cost_limit, step, last (of the last checkpoint), episode (its number there),
        episode_return, cost and length (raw), episodes (of how many they are the mean; 1 but for some that are
        imported), normalized_reward, normalized_cost and satisfied (1 within the limit, 0 above it, NaN of a mean).
    """
    frames = []
    for plan in plans:
        names = {row: (one.cell.algorithm, policy) for one in plan.cells for policy, row in one.rows.items()}
        frame = checkpoint_episodes(results, plan, raw=True).rename(columns=THEIRS)
        rows = frame["row"].astype(object)
        frame["algorithm"] = rows.map({row: algorithm for row, (algorithm, _) in names.items()})
        frame["policy"] = rows.map({row: policy for row, (_, policy) in names.items()})
        frames.append(frame.assign(suite=plan.suite, imported=rows.isin(plan.imported))[list(COLUMNS)])
    some = [frame for frame in frames if len(frame)]
    return pd.concat(some, ignore_index=True) if some else pd.DataFrame(columns=list(COLUMNS))
