"""Killed at any moment and run again, a suite's tables are byte for byte those of an uninterrupted run."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from running import die_at, forks, outcome, suite_file, until

from harness.cli import main
from harness.engine import Engine
from harness.pending import Evaluations
from harness.store import Store

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("no_child_left")]

SUITE = """
name: crash
data: {source: demo}
tasks: [BallRun]
seeds: 2
cost_limits: [10, 20]
algorithms:
  lspc: {hyperparameters: {steps: 40, batch_size: 32, hidden_sizes: [16, 16], latent_dim: 4}}
  bc: {hyperparameters: {steps: 30, batch_size: 32, hidden_sizes: [16, 16], mode: safe}}
evaluation: {every: 15, episodes: 1, final: 3}
"""

# What is replaced by a function that kills the process at its n-th call.
PLACES: dict[str, tuple[Any, str]] = {
    "update": (Engine, "_advance"),
    "evaluate": (Evaluations, "submit"),
    "collect": (Evaluations, "collect"),
    "checkpoint": (Store, "write_checkpoint"),
    "write": (os, "fsync"),
    "status": (Store, "set_status"),
    "results": (Store, "write_results"),
    "remove": (Store, "remove_checkpoint"),
}


def run(folder: Path, where: str | None = None, count: int = 1, workers: int = 0) -> None:
    """The command line on the suite, in this process; ends it."""
    os.environ["CRASH_TEST"] = str(folder)  # workers inherit it
    if where is not None:
        die_at(*PLACES[where], count)
    arguments = ["run", str(suite_file(folder, SUITE)), "--results", str(folder / "runs")]
    main([*arguments, "--checkpoint-every", "0", "--device", "cpu", "--workers", str(workers)])


def start(*arguments: Any, **options: Any) -> Any:
    """:func:`run` in a process of its own."""
    process = forks.Process(target=run, args=arguments, kwargs=options)
    process.start()
    return process


def finish(*arguments: Any, **options: Any) -> int:
    """:func:`run` in a process of its own, to the end; its exit status."""
    process = start(*arguments, **options)
    process.join(120)
    assert process.exitcode is not None
    return int(process.exitcode)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert finish(folder) == 0
    found = outcome(folder / "runs")
    assert len(found) == 3 + 4 * 6  # two seeds of lspc, two seeds at two limits of bc
    return found


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("update", 2),
        ("update", 35),
        ("update", 55),
        ("evaluate", 3),
        ("evaluate", 14),
        ("checkpoint", 60),
        ("write", 9),
        ("write", 120),
        ("status", 8),
        ("results", 1),
        ("results", 4),
        ("remove", 1),
    ],
)
def test_killed_and_run_again(tmp_path: Path, undisturbed: dict[str, bytes], where: str, count: int) -> None:
    assert finish(tmp_path, where, count) == -signal.SIGKILL
    assert finish(tmp_path) == 0
    assert outcome(tmp_path / "runs") == undisturbed
    assert not list((tmp_path / "runs" / "jobs").iterdir())


@pytest.mark.parametrize("where", ["evaluate", "results"])
def test_killed_with_workers_under_way(tmp_path: Path, undisturbed: dict[str, bytes], where: str) -> None:
    assert finish(tmp_path, where, 2, workers=1) == -signal.SIGKILL
    assert finish(tmp_path, workers=2) == 0
    assert outcome(tmp_path / "runs") == undisturbed


def test_killed_again_and_again(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    for count in (20, 25, 30):
        finish(tmp_path, "update", count)
    assert finish(tmp_path) == 0
    assert outcome(tmp_path / "runs") == undisturbed


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(tmp_path: Path, undisturbed: dict[str, bytes], workers: int) -> None:
    assert finish(tmp_path, workers=workers) == 0
    assert outcome(tmp_path / "runs") == undisturbed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_goes_on(tmp_path: Path, undisturbed: dict[str, bytes], number: signal.Signals) -> None:
    process = start(tmp_path)
    until(lambda: list(tmp_path.glob("runs/jobs/*.checkpoint")), "a checkpoint")
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == 130
    assert list(tmp_path.glob("runs/jobs/*.checkpoint"))
    assert finish(tmp_path) == 0
    assert outcome(tmp_path / "runs") == undisturbed


def test_workers_do_not_outlive_a_killed_run(tmp_path: Path) -> None:
    process = start(tmp_path, "results", 1, workers=1)
    seen: set[str] = set()
    while process.exitcode is None:
        seen |= set(_running(tmp_path))
        time.sleep(0.05)
    assert process.exitcode == -signal.SIGKILL
    assert seen  # a worker
    until(lambda: not _running(tmp_path), "no worker left")


def _running(folder: Path) -> list[str]:
    """Processes that were started (spawned, not forked) with the folder in their environment."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                content = (process / "environ").read_bytes()
            except OSError:
                continue
            if f"CRASH_TEST={folder}".encode() in content:
                found.append(process.name)
    return found
