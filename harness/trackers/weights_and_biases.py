"""Weights & Biases, offline unless ``WANDB_MODE`` says otherwise: no account, no network, ``wandb sync`` later."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import wandb

from harness.trackers import Run, Tracker

PROJECT = "lspc-bench"


class WeightsAndBiases(Tracker):
    """A run of W&B for every run; W&B's own environment variables (project, entity, mode, server) are heeded."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._runs: dict[str, wandb.Run] = {}

    def begin(self, run: Run) -> None:
        """Begin the run anew: a run of the same id replaces the one before, here and at the server."""
        self._finish(run, exit_code=1)
        for old in (self.folder / "wandb").glob(f"offline-run-*-{run.id}"):
            shutil.rmtree(old)
        begun = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=self.folder,
            id=run.id,
            name=run.name,
            group=run.group,
            tags=[run.suite, run.task, run.algorithm[:64]],
            config={"suite": run.suite, "task": run.task, "algorithm": run.algorithm, "cell": run.cell, **run.config},
            mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]  # W&B refuses what is no mode
            resume=None,  # "If the new run has the same ID as a previous run, this run overwrites that data"
            reinit="create_new",  # many at once
            settings=wandb.Settings(
                console="off", silent=True, disable_git=True, disable_code=True, x_disable_stats=True
            ),
        )
        # W&B's own counter only goes up; evaluations come late.
        begun.define_metric("step")
        begun.define_metric("*", step_metric="step")
        self._runs[run.id] = begun

    def log(self, run: Run, step: int, values: Mapping[str, float]) -> None:
        """A line of history."""
        self._runs[run.id].log({"step": step, **values})

    def end(self, run: Run, final: Mapping[str, float | str]) -> None:
        """The final row is the summary."""
        self._runs[run.id].summary.update(dict(final))
        self._finish(run, exit_code=0 if final["state"] == "done" else 1)

    def close(self) -> None:
        """Finish what was interrupted."""
        for run in self._runs.values():
            run.finish(exit_code=1)

    def _finish(self, run: Run, exit_code: int) -> None:
        if run.id in self._runs:
            self._runs.pop(run.id).finish(exit_code=exit_code)
