"""What the checksum of a checkpoint costs: the time to write one, beside the same without.

    python benchmarks/checksums.py --megabytes 1 30 200

"Without" is torch's own file, which has a CRC-32 of every tensor already, written as atomically.
The two take turns; told are medians of what is taken without, and of each pair's difference, by the clock and of the
processor. The clock also counts the disk and whoever shares the machine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
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
    state = {str(index): torch.randn(int(megabytes * 250_000 / TENSORS)) for index in range(TENSORS)}

    def without() -> None:
        with replacing(folder / "jobs" / "plain") as temporary:
            torch.save({"job": mine.model_dump_json(), **state}, temporary)

    def sealed() -> None:
        store.write_checkpoint(mine, state)

    pairs = []
    store.prepare()
    for turn in range(turns + 1):
        times = {write: _times(write) for write in ((without, sealed) if turn % 2 else (sealed, without))}
        if turn:  # the first is to warm up
            pairs.append((*times[without], *times[sealed]))
    wall, processor = (statistics.median(pair[index] for pair in pairs) for index in (0, 1))
    added_wall, added = (statistics.median(pair[index + 2] - pair[index] for pair in pairs) for index in (0, 1))
    row = [f"{1000 * seconds:.1f}" for seconds in (wall, added_wall, processor, added)]
    return [f"{megabytes:g}", *row, f"{added / processor:+.1%}", f"{added / wall:+.1%}"]


def _times(write: Callable[[], None]) -> tuple[float, float]:
    """Seconds that it takes by the clock, and of the processor."""
    begun, worked = time.perf_counter(), time.process_time()
    write()
    return time.perf_counter() - begun, time.process_time() - worked


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
    head = ["MB", "ms without", "ms more with", "CPU ms without", "CPU ms more with", "more CPU time", "of the clock's"]
    print(markdown_table(head, rows))


if __name__ == "__main__":
    main()
