"""Many workers on one folder: every cell is trained once, and tables are those of one process that was left alone."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import signal
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from running import call, forks, left, outcome, run, suite_file, until

from harness import claims
from harness.cli import main
from harness.store import Store

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("no_child_left")]

SUITE = """
name: shared
data: {source: demo}
tasks: [BallRun]
seeds: 2
cost_limits: [10, 20]
algorithms:
  lspc: {hyperparameters: &lspc {steps: 40, batch_size: 32, hidden_sizes: [16, 16], latent_dim: 4}}
  live: {algorithm: lspc, hyperparameters: {<<: *lspc, cost_value_gradient: live}}
  bc:
    hyperparameters: {steps: 30, batch_size: 32, hidden_sizes: [16, 16]}
    grid: {mode: [all, safe], actor_lr: [0.001, 0.01]}
evaluation: {every: 15, episodes: 1, final: 3}
"""
CELLS = 2 + 2 + 2 * (2 + 2 * 2)


def _refuse() -> None:
    """What network and guests' file systems do: no locks, no hard links, no syncing of folders."""
    sync = os.fsync

    def refused(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    def of_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(descriptor)

    fcntl.flock = fcntl.lockf = os.link = refused  # type: ignore[assignment]
    os.fsync = of_files  # type: ignore[assignment]


def _work(folder: Path, command: str, lease: float) -> None:
    """A worker, in this process; ends it. What it trains and when it starts to is noted."""
    claims.LEASE, claims.BEAT = lease, lease / 10
    if (folder / "refuses").exists():
        _refuse()
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    write = Store.write_results

    def noted(self: Store, cell: Any, *arguments: Any, **options: Any) -> None:
        write(self, cell, *arguments, **options)
        os.write(log, f"WROTE {cell.hash} {os.getpid()}\n".encode())

    Store.write_results = noted  # type: ignore[method-assign]
    results = ["--results", str(folder / "runs")]
    first = ["run", str(folder / "suite.yaml"), *results] if command == "run" else ["work", str(folder / "runs")]
    main([*first, "--checkpoint-every", "0", "--device", "cpu", "--workers", "0"])


def start(folder: Path, command: str = "run", lease: float = claims.LEASE) -> Any:
    suite_file(folder, SUITE)
    process = forks.Process(target=_work, args=(folder, command, lease))
    process.start()
    return process


def ends(processes: list[Any]) -> list[int]:
    for process in processes:
        process.join(240)
    return [process.exitcode for process in processes]


def written(folder: Path) -> list[str]:
    """The cells whose results were written, as often as they were."""
    lines = (folder / "log").read_text().splitlines()
    return sorted(line.split()[1] for line in lines if line.startswith("WROTE "))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("alone")
    assert ends([start(folder)]) == [0]
    found = outcome(folder / "runs")
    assert len(found) == 3 + 4 * CELLS
    assert left(folder / "runs") == []
    return found


def test_four_at_once_train_every_cell_once(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    assert ends([start(tmp_path) for _ in range(4)]) == [0] * 4
    assert len(written(tmp_path)) == len(set(written(tmp_path))) == CELLS
    assert outcome(tmp_path / "runs") == undisturbed
    assert left(tmp_path / "runs") == []


def test_a_folder_that_refuses_locks_links_and_syncs(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    (tmp_path / "refuses").touch()
    assert ends([start(tmp_path) for _ in range(2)]) == [0] * 2
    assert len(written(tmp_path)) == len(set(written(tmp_path))) == CELLS
    assert outcome(tmp_path / "runs") == undisturbed
    assert left(tmp_path / "runs") == []


def test_what_a_killed_worker_leaves_the_others_take_up(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    """At random moments, again and again: whoever is left, or comes later, ends the suite."""
    draws = random.Random(0)
    first = start(tmp_path)
    while not list(tmp_path.glob("runs/suites/*.json")) and first.exitcode is None:
        time.sleep(0.02)
    steady = start(tmp_path, "work")
    for _ in range(4):
        victim = start(tmp_path, "work")
        victim.join(draws.uniform(0.5, 3))
        victim.kill()
        victim.join()
    assert ends([first, steady]) == [0, 0]
    assert ends([start(tmp_path, "work")]) == [0]  # whatever the last victim left
    assert outcome(tmp_path / "runs") == undisturbed
    assert left(tmp_path / "runs") == []


def test_one_that_was_stopped_past_its_lease_writes_nothing_more(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    paused = start(tmp_path, lease=3)
    while not list(tmp_path.glob("runs/jobs/*.checkpoint")) and paused.exitcode is None:
        time.sleep(0.01)
    os.kill(paused.pid, signal.SIGSTOP)
    other = start(tmp_path, "work", lease=3)
    assert ends([other]) == [0]
    before = written(tmp_path)
    assert len(before) == CELLS
    os.kill(paused.pid, signal.SIGCONT)
    assert ends([paused]) == [0]
    assert written(tmp_path) == before
    assert "another worker has taken over" in (tmp_path / "log").read_text()
    assert outcome(tmp_path / "runs") == undisturbed
    assert ends([start(tmp_path, "work")]) == [0]  # had it been stopped just before it put a checkpoint in its place
    assert left(tmp_path / "runs") == []


def test_status_says_who_is_at_work(tmp_path: Path) -> None:
    process = start(tmp_path, lease=1)
    while not list(tmp_path.glob("runs/jobs/*.checkpoint")) and process.exitcode is None:
        time.sleep(0.01)
    until(lambda: any("job" in one.about for one in claims.workers(tmp_path / "runs")), "it says what it does")
    os.kill(process.pid, signal.SIGSTOP)
    said = call("status", tmp_path / "runs")
    os.kill(process.pid, signal.SIGCONT)
    assert said.exit_code == 0
    assert f"At work: process {process.pid} on {os.uname().nodename} since " in said.stdout
    assert "BallRun lspc (lspc-s, lspc-o), 2 replicas on cpu, step " in said.stdout
    process.kill()
    process.join()
    assert "At work" not in call("status", tmp_path / "runs").stdout


def test_time_that_is_up_ends_a_worker_in_good_order(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    suite, results = suite_file(tmp_path, SUITE), tmp_path / "runs"
    done = run(suite, results, "--for", "0.5s")
    assert done.exit_code == 130
    assert "resumes it" in done.stderr
    assert ends([start(tmp_path)]) == [0]
    assert outcome(tmp_path / "runs") == undisturbed
    for wrong in ("0", "-1", "soon", "nan", "3d"):
        assert run(suite, results, "--for", wrong).exit_code == 2
