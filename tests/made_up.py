"""A small suite whose results are made up: fixed numbers, hostile names, for tests of tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from running import suite_plan

from harness.plan import Cell, Plan
from harness.store import DIAGNOSTICS, Status

HOSTILE = "50% & $x_1$ \\end{table} {^~#} *[a](b)* <b>|`--'\""
SUITE = f"""
name: made-up
description: {json.dumps(HOSTILE)}
tasks: [BallRun, PointGoal1]
algorithms:
  lspc: {{hyperparameters: {{steps: 200}}}}
  bc: {{hyperparameters: {{steps: 100}}, grid: {{mode: [all, safe]}}}}
  cpq: {{hyperparameters: {{steps: 100, gamma: 0.9}}}}
  {json.dumps(HOSTILE)}: {{algorithm: cpq, hyperparameters: {{steps: 100}}}}
seeds: 2
cost_limits: {{bullet: [10, 20], navigation: [20, 40]}}
evaluation: {{every: 50, episodes: 1, final: 2}}
"""


class MadeUp:
    """Results that follow from policy, seed, limit and step: safe ones, unsafe ones, and one that lacks a seed."""

    root = Path("made-up")

    def __init__(self, plan: Plan, data: str = "DSRL") -> None:
        self.plan = plan
        self.data = data

    def plans(self) -> list[Plan]:
        return [self.plan]

    def status(self, cell: Cell) -> Status:
        if cell.algorithm == "cpq" and cell.hyperparameters["gamma"] == 0.9 and cell.seed == 1:
            return Status("failed", f"RuntimeError: {HOSTILE}")
        warnings = {HOSTILE: 50} if cell.algorithm == "lspc" else {}
        return Status("done", warnings=warnings)

    def record(self, cell: Cell) -> dict[str, Any]:
        return {"dataset": {"sha256": "ab" * 32}, "group": [cell.hash], "training_seconds": 1.0}

    def score(self, cell: Cell, row: str, step: int, episode: int) -> tuple[float, float]:
        """Normalised return and raw cost of an episode."""
        reward, cost = LEVELS[cell.algorithm]
        other = row == "lspc-o"
        return (
            reward + cell.seed / 8 + other / 16 + (step == 50) / 2,
            cost + 2.0 * other + 4.0 * cell.seed + 2.0 * episode,
        )

    def episodes(self, cell: Cell) -> pd.DataFrame:
        rows = next(one.rows for one in self.plan.cells if one.cell.hash == cell.hash)
        task, last = cell.definition, cell.hyperparameters["steps"]
        span = task.max_episode_reward - task.min_episode_reward
        found = []
        for step in range(50, last + 1, 50):
            for policy, row in rows.items():
                for episode in range(2 if step == last else 1):
                    reward, cost = self.score(cell, row, step, episode)
                    found.append(
                        {"step": step, "policy": policy, "cost_limit": np.nan, "episode": episode, "seed": episode}
                        | {"length": 9, "episode_return": task.min_episode_reward + span * reward, "cost": cost}
                    )
        return pd.DataFrame(found)

    def training(self, cell: Cell) -> pd.DataFrame:
        return pd.DataFrame({"step": [100], "loss": [1.0]})

    def diagnostics(self, cell: Cell) -> pd.DataFrame:
        return pd.DataFrame(columns=list(DIAGNOSTICS))


LEVELS: Mapping[str, tuple[float, float]] = {"lspc": (0.25, 5.0), "bc": (0.5, 8.0), "cpq": (0.75, 40.0)}
"""Of an algorithm, normalised reward and raw cost."""


def make(folder: Path, *changes: tuple[str, str]) -> MadeUp:
    """The results of the suite above, with texts of it exchanged."""
    text = SUITE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return MadeUp(suite_plan(folder, text))
