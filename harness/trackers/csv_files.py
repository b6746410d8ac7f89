"""Plain files: of every run ``metrics.csv`` and, when it is over, ``final.csv``, both of a number a line."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from harness.trackers import Run, Tracker


class CsvFiles(Tracker):
    """``metrics.csv`` has the columns step, name, value; ``final.csv`` has name, value."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._files: dict[str, TextIO] = {}

    def begin(self, run: Run) -> None:
        """Begin the run's files anew."""
        self._close(run)
        place = self.folder / run.path
        place.mkdir(parents=True, exist_ok=True)
        (place / "final.csv").unlink(missing_ok=True)
        file = self._files[run.id] = (place / "metrics.csv").open("w", encoding="utf-8", newline="")
        csv.writer(file).writerow(["step", "name", "value"])
        file.flush()

    def log(self, run: Run, step: int, values: Mapping[str, float]) -> None:
        """Append a line a number."""
        file = self._files[run.id]
        csv.writer(file).writerows([step, name, repr(value)] for name, value in values.items())
        file.flush()  # for whoever looks at it meanwhile

    def end(self, run: Run, final: Mapping[str, float | str]) -> None:
        """Write the final row."""
        with (self.folder / run.path / "final.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["name", "value"], *final.items()])
        self._close(run)

    def close(self) -> None:
        """Close what is open."""
        for file in self._files.values():
            file.close()

    def _close(self, run: Run) -> None:
        if run.id in self._files:
            self._files.pop(run.id).close()
