"""What the checksum of a checkpoint costs: the time to write one, beside the same without.

    python benchmarks/checksums.py --megabytes 1 30 200

"Without" is torch's own file, which has a CRC-32 of every tensor already, written as atomically.
The two take turns; told are the best and the median time in seconds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from harness.files import replacing
from harness.plan import Cell, CellData, Job
from harness.report.tables import markdown_table
from harness.store import Store
from harness.suite import Evaluation

TENSORS = 300


def job() -> Job:
    """A job to name the checkpoint after."""
    cell = Cell(
        task="OfflineBallRun-v0",
        algorithm="bc",
        algorithm_version=1,
        hyperparameters={"steps": 3},
        seed=0,
        cost_limit=None,
        evaluation_limits=(10.0,),
        evaluation=Evaluation(),
        data=CellData(source="demo"),
    )
    return Job(cells=(cell,))


def measure(folder: Path, megabytes: float, turns: int) -> list[str]:
    """A row of the table."""
    store, mine = Store(folder), job()
    with store.locked():
        state = {str(index): torch.randn(int(megabytes * 250_000 / TENSORS)) for index in range(TENSORS)}
        seconds: dict[str, list[float]] = {"plain": [], "sealed": []}
        for turn in range(turns + 1):
            for kind in sorted(seconds, reverse=bool(turn % 2)):
                begun = time.perf_counter()
                if kind == "sealed":
                    store.write_checkpoint(mine, state)
                else:
                    with replacing(folder / "jobs" / "plain") as temporary:
                        torch.save({"job": mine.model_dump_json(), **state}, temporary)
                if turn:  # the first is to warm up
                    seconds[kind].append(time.perf_counter() - begun)
    best, middle = ({kind: of(times) for kind, times in seconds.items()} for of in (min, statistics.median))
    row = [f"{times[kind]:.4f}" for times in (best, middle) for kind in seconds]
    return [f"{megabytes:g}", *row, f"{100 * (best['sealed'] / best['plain'] - 1):+.1f}%"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[1, 30, 200])
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--folder", type=Path, help="on the disk to measure  [default: the temporary files']")
    options = parser.parse_args()
    rows = []
    for megabytes in options.megabytes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            rows.append(measure(Path(folder), megabytes, options.turns))
    print(
        markdown_table(["MB", "best without", "best with", "median without", "median with", "added to the best"], rows)
    )


if __name__ == "__main__":
    main()
