"""A tracker that writes down what it is told, and ways in which one may go wrong."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.trackers import Run, Tracker


class Told(Tracker):
    """A line a call."""

    def _write(self, *what: Any) -> None:
        with (self.folder / "told.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(what) + "\n")

    def begin(self, run: Run) -> None:
        print("this is no result")
        self._write("begin", run.group, run.name, run.config["hyperparameters"]["steps"])

    def log(self, run: Run, step: int, values: Mapping[str, float]) -> None:
        self._write("log", run.name, step, dict(values))

    def end(self, run: Run, final: Mapping[str, float | str]) -> None:
        self._write("end", run.name, dict(final))

    def close(self) -> None:
        self._write("close")


class Quiet(Tracker):
    def log(self, run: Run, step: int, values: Mapping[str, float]) -> None:
        pass


class RefusesToBegin(Quiet):
    def __init__(self, folder: Path) -> None:
        raise ConnectionError("no such server")


class Raises(Quiet):
    def log(self, run: Run, step: int, values: Mapping[str, float]) -> None:
        raise ValueError(f"cannot take step {step}")


class Exits(Quiet):
    def begin(self, run: Run) -> None:
        sys.exit(3)


class Dies(Quiet):
    def log(self, run: Run, step: int, values: Mapping[str, float]) -> None:
        os._exit(4)


class Hangs(Quiet):
    def log(self, run: Run, step: int, values: Mapping[str, float]) -> None:
        time.sleep(1000)


class HangsAtClose(Quiet):
    def close(self) -> None:
        time.sleep(1000)


class Lingers(Quiet):
    """Its process would not end by itself."""

    def close(self) -> None:
        threading.Thread(target=time.sleep, args=(1000,)).start()


class Kills(Quiet):
    """Kills the run in the midst of it."""

    def log(self, run: Run, step: int, values: Mapping[str, float]) -> None:
        if step >= 20:
            os.kill(os.getppid(), signal.SIGKILL)


class Abstract(Tracker):
    pass


class Unrelated:
    pass
