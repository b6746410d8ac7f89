"""TensorBoard: ``tensorboard --logdir RESULTS/trackers/tensorboard``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from harness.trackers import Run, Tracker


class TensorBoard(Tracker):
    """A folder of event files for every run. The final row is scalars at the last step, and a text."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._writers: dict[str, SummaryWriter] = {}
        self._steps: dict[str, int] = {}

    def begin(self, run: Run) -> None:
        """Begin the run's folder anew."""
        self._close(run)
        place = self.folder / run.path
        for old in place.glob("events.out.tfevents.*"):
            old.unlink()
        # What a TensorBoard that is looking on has read of the old ones, the purge makes it forget.
        writer = SummaryWriter(str(place), purge_step=0)
        writer.add_text(
            "config", f"    {json.dumps({'cell': run.cell, **run.config}, indent=1)}".replace("\n", "\n    "), 0
        )
        self._writers[run.id], self._steps[run.id] = writer, 0

    def log(self, run: Run, step: int, values: Mapping[str, float]) -> None:
        """A scalar a number."""
        self._steps[run.id] = max(self._steps[run.id], step)
        for name, value in values.items():
            self._writers[run.id].add_scalar(name, value, step)

    def end(self, run: Run, final: Mapping[str, float | str]) -> None:
        """The final row."""
        writer, step = self._writers[run.id], self._steps[run.id]
        for name, value in final.items():
            if isinstance(value, str):
                writer.add_text(name, value, step)
            else:
                writer.add_scalar(name, value, step)
        self._close(run)

    def close(self) -> None:
        """Write what is left."""
        for writer in self._writers.values():
            writer.close()

    def _close(self, run: Run) -> None:
        if run.id in self._writers:
            self._writers.pop(run.id).close()
