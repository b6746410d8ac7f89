"""Killed at any moment and run again, a suite's tables are byte for byte those of an uninterrupted run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SUITE = """
name: crash
data: {source: demo}
tasks: [BallRun]
seeds: 2
cost_limits: [10, 20]
algorithms:
  lspc: {hyperparameters: {steps: 120, batch_size: 32, hidden_sizes: [16, 16], latent_dim: 4}}
  bc: {hyperparameters: {steps: 90, batch_size: 32, hidden_sizes: [16, 16], mode: safe}}
evaluation: {every: 40, episodes: 1, final: 3}
"""

# Runs the command line with one function replaced by one that kills the process at its n-th call.
KILLER = """
import os, signal, sys
from harness.cli import main

if __name__ == "__main__":  # workers import this file, too
    where, count = sys.argv[1], int(sys.argv[2])
    del sys.argv[1:3]
    import harness.files, harness.store, harness.training

    def dying(function):
        calls = [0]
        def called(*args, **kwargs):
            calls[0] += 1
            if calls[0] == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return called

    owner, name = {
        "update": (harness.training.Training, "_update"),
        "evaluate": (harness.training.Training, "_submit"),
        "collect": (harness.training.Training, "collect"),
        "checkpoint": (harness.store.Store, "write_checkpoint"),
        "rename": (os, "fsync"),
        "status": (harness.store.Store, "set_status"),
        "results": (harness.store.Store, "write_results"),
        "remove": (harness.store.Store, "remove_checkpoint"),
        "never": (harness.store.Store, "__str__"),
    }[where]
    setattr(owner, name, dying(getattr(owner, name)))
    main()
"""


def command(folder: Path, where: str = "never", count: int = 1, workers: int = 1) -> list[str]:
    (folder / "suite.yaml").write_text(SUITE)
    (folder / "killer.py").write_text(KILLER)
    run = ["run", str(folder / "suite.yaml"), "--results", str(folder / "runs")]
    options = ["--checkpoint-every", "0", "--device", "cpu", "--workers", str(workers)]
    return [sys.executable, str(folder / "killer.py"), where, str(count), *run, *options]


def outcome(folder: Path) -> dict[str, bytes]:
    """The leaderboard in every format, and every cell's episodes and weights."""
    from click.testing import CliRunner

    from harness.cli import main

    texts = {
        name: CliRunner().invoke(main, ["leaderboard", str(folder / "runs"), "--format", name]).stdout_bytes
        for name in ("markdown", "csv", "json")
    }
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for pattern in ("*/episodes.parquet", "*/training.parquet", "*/policy.safetensors")
        for path in sorted((folder / "runs").glob(pattern))
    }
    return texts | files


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(command(folder), check=True, capture_output=True)
    found = outcome(folder)
    assert len(found) == 3 + 3 * 6  # two seeds of lspc, two seeds at two limits of bc
    return found


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("update", 2),
        ("update", 101),
        ("update", 150),
        ("evaluate", 3),
        ("evaluate", 14),
        ("collect", 60),
        ("checkpoint", 1),
        ("checkpoint", 70),
        ("rename", 9),
        ("rename", 150),
        ("status", 8),
        ("results", 1),
        ("results", 4),
        ("remove", 1),
    ],
)
def test_killed_and_run_again(tmp_path: Path, undisturbed: dict[str, bytes], where: str, count: int) -> None:
    killed = subprocess.run(command(tmp_path, where, count), capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    again = subprocess.run(command(tmp_path), capture_output=True)
    assert again.returncode == 0, again.stderr.decode()
    assert outcome(tmp_path) == undisturbed
    assert not list((tmp_path / "runs" / "jobs").iterdir())


def test_killed_again_and_again(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    for count in (40, 55, 70):
        subprocess.run(command(tmp_path, "update", count), capture_output=True)
    subprocess.run(command(tmp_path), check=True, capture_output=True)
    assert outcome(tmp_path) == undisturbed


def test_the_number_of_workers_changes_nothing(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        subprocess.run(command(folder, workers=workers), check=True, capture_output=True)
        assert outcome(folder) == undisturbed


def test_an_interrupted_run_goes_on(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    process = subprocess.Popen(command(tmp_path), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("job 1"):
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    subprocess.run(command(tmp_path), check=True, capture_output=True)
    assert outcome(tmp_path) == undisturbed


def test_workers_do_not_outlive_a_killed_run(tmp_path: Path) -> None:
    environment = os.environ | {"CRASH_TEST": str(tmp_path)}  # workers inherit it
    process = subprocess.Popen(command(tmp_path, "results", 1), env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    seen = max(len(_running(tmp_path)) for _ in process.stderr)
    process.wait(timeout=120)
    assert seen >= 2  # this process and a worker
    deadline = time.monotonic() + 20
    while _running(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _running(tmp_path)


def _running(folder: Path) -> list[str]:
    """Processes that were started with the folder in their environment."""
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
