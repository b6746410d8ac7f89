"""How reading grows with the results: leaderboard and report of folders full of made-up episodes.

    python benchmarks/reading.py --seeds 3 14

Every folder holds all cells of a suite with so many seeds, a learning curve of so many points, and 200 points of ten
training metrics. "First" has no summary yet, "again" has one. Told are wall time, processor time of the whole process,
and the most memory that it had.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from harness import files
from harness.plan import Plan, PlannedCell
from harness.planning import make_plan
from harness.report.tables import markdown_table
from harness.store import Store
from harness.suite import read_suite
from harness.summary import FOLDER

METRICS = 10


def fill(root: Path, plan: Plan, points: int) -> None:
    """A results folder of the plan."""
    (root / "suites").mkdir(parents=True)
    store, draws = Store(root), np.random.default_rng(0)
    store.write_plan(plan)
    for planned in plan.cells:
        weights = {policy: {"w": torch.zeros(10)} for policy in planned.rows}
        dataset = {"file": planned.cell.definition.dataset_file, "sha256": "0" * 64}
        record = {"dataset": dataset, "group": [planned.cell.hash], "training_seconds": 1.0, "versions": {}}
        steps = np.arange(1, 201) * max(1, planned.cell.hyperparameters["steps"] // 200)
        training = pd.DataFrame({"step": steps, **{f"m{one}": draws.normal(size=200) for one in range(METRICS)}})
        store.write_results(planned.cell, record, episodes(planned, points, draws), training, weights, {})


def episodes(planned: PlannedCell, points: int, draws: np.random.Generator) -> pd.DataFrame:
    """Ten episodes a point and policy, twenty at the last, of a policy that is neither good nor bad."""
    cell, task = planned.cell, planned.cell.definition
    quality, frames = draws.uniform(0.1, 0.9), []
    for policy in planned.rows:
        for limit in cell.evaluation_limits if cell.told_limit else (np.nan,):
            for point in range(1, points + 1):
                count = cell.evaluation.final if point == points else cell.evaluation.episodes
                span = task.max_episode_reward - task.min_episode_reward
                reward = task.min_episode_reward + span * (quality + draws.normal(0, 0.1, count))
                cost = np.maximum(0, draws.normal(task.cost_limits[0], task.cost_limits[0], count)).round()
                about = {"step": cell.hyperparameters["steps"] * point // points, "policy": policy, "cost_limit": limit}
                drawn = {"episode": range(count), "seed": range(count), "episode_return": reward, "cost": cost}
                frames.append(pd.DataFrame({**about, **drawn, "length": task.max_episode_steps}))
    return pd.concat(frames, ignore_index=True)


def measure(command: str, root: Path) -> list[str]:
    """Wall time and processor time in seconds, and the most memory in MB, of one command in a process of its own."""
    arguments = [sys.executable, "-m", "lspc_bench", command, str(root), "--output", str(root / "output")]
    begun = time.perf_counter()
    process = os.posix_spawn(sys.executable, arguments, os.environ)
    _, status, used = os.wait4(process, 0)
    if status:
        raise SystemExit(f"{command} failed: {status}")
    wall = time.perf_counter() - begun
    return [f"{wall:.1f}", f"{used.ru_utime + used.ru_stime:.1f}", f"{used.ru_maxrss / 1e3:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="dsrl-classic")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 14], help="of each folder")
    parser.add_argument("--points", type=int, default=20, help="of the learning curve")
    options = parser.parse_args()
    files.sync = lambda path: None  # type: ignore[assignment]  # writing is not measured
    rows = []
    for seeds in options.seeds:
        folder = Path(tempfile.mkdtemp())
        try:
            plan = make_plan(read_suite(options.suite, [f"seeds={seeds}"]))
            fill(folder / "results", plan, options.points)
            time.sleep(3)  # a summary holds what has been left alone for two seconds
            for command in ("leaderboard", "report"):
                shutil.rmtree(folder / "results" / FOLDER, ignore_errors=True)
                about = [str(len(plan.cells)), command]
                rows += [[*about, which, *measure(command, folder / "results")] for which in ("first", "again")]
        finally:
            shutil.rmtree(folder)
    print(markdown_table(["cells", "command", "", "seconds", "processor seconds", "MB"], rows))


if __name__ == "__main__":
    main()
