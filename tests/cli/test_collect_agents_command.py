"""``lspc-bench data collect --agents`` as a user types it: from a task to a leaderboard, refusals, interrupts."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from running import REACH, call

from harness.data.agents import together
from harness.errors import UserError
from harness.simulators import require_simulator
from harness.tasks import find_task

WriteSuite = Callable[[str], Path]

TINY = ("--agents", "--steps", 200, "--targets", "5", "--trajectories", 4, "--jobs", 1)
"""One update of one agent."""


def need(task: str) -> None:
    """Skip where the task's simulator is not installed."""
    try:
        require_simulator(find_task(task))
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where data lies."""
    monkeypatch.setenv("DSRL_DATASET_DIR", str(tmp_path / "data"))
    return tmp_path / "data" / "agents"


@pytest.mark.long
@pytest.mark.parametrize("name", ["BallRun", "PointCircle1", "SwimmerVelocity", "easysparse"])
def test_every_family_from_agents_to_the_leaderboard(
    name: str, folder: Path, tmp_path: Path, write_suite: WriteSuite
) -> None:
    need(name)
    task, runs = find_task(name), tmp_path / "runs"
    path = folder / f"{task.id}.hdf5"
    suite = write_suite(
        f"name: mine\ntasks: [{name}]\ndata: {{source: agents}}\nseeds: 1\ncost_limits: [1000]\n"
        "algorithms:\n  bc: {hyperparameters: {steps: 3, batch_size: 8, hidden_sizes: [8]}}\nevaluation: {final: 1}\n"
    )
    missing = call("run", suite, "--results", runs)
    assert missing.exit_code == 2
    assert f"agent-collected data of {name} is missing: {path}. 'lspc-bench data collect {name} --agents' makes it" in (
        missing.stderr
    )
    done = call("data", "collect", name, *TINY)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"Wrote {path} (agent-collected data, not DSRL): 4 trajectories, ")
    manifest = json.loads(Path(f"{path}.json").read_text())
    assert manifest["pool"] == together(task)
    checked = call("data", "check", name, "--source", "agents")
    assert checked.stdout.startswith(f"{name}: good, {manifest['transitions']} transitions, ")
    run = call("run", suite, "--results", runs, "--workers", 0, "--device", "cpu")
    assert run.exit_code == 0, run.output
    (row,) = (
        row for row in csv.DictReader(call("leaderboard", runs, "--format", "csv").stdout.splitlines()) if row["task"]
    )
    assert (row["data"], row["runs"]) == ("agent-collected data, not DSRL", "1")
    assert f"## {name} (agent-collected data, not DSRL)" in call("leaderboard", runs).stdout


OWN = (
    """\
name: mine
tasks: [Reach]
"""
    + REACH
    + """\
data: {files: {Reach: made/reach.hdf5}}
algorithms:
  bc: {hyperparameters: {steps: 3, batch_size: 8, hidden_sizes: [8]}}
seeds: 1
evaluation: {final: 1}
"""
)


def test_an_own_task_from_agents_to_the_leaderboard(plugins: Path, tmp_path: Path, write_suite: WriteSuite) -> None:
    suite, runs = write_suite(OWN), tmp_path / "runs"
    assert call("run", suite, "--results", runs).exit_code == 2
    done = call("data", "collect", "Reach", "--suite", suite, *TINY)
    assert done.exit_code == 0, done.output
    path = tmp_path / "made" / "reach.hdf5"
    assert done.stdout.startswith(f"Wrote {path} (agent-collected data, not DSRL): 4 trajectories, 80 transitions, ")
    run = call("run", suite, "--results", runs, "--workers", 0, "--device", "cpu")
    assert run.exit_code == 0, run.output
    label = "own file reach.hdf5, agent-collected data, not DSRL"
    board = call("leaderboard", runs).stdout
    assert f"## Reach ({label})" in board
    assert f"Data: {label}.\n" in board
    path.unlink()
    Path(f"{path}.json").unlink()
    assert call("leaderboard", runs).stdout == board


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["BallRun", "--agents", "--episodes", "3"], "--episodes is for scripted behaviours"),
        (["BallRun", "--targets", "5"], "--targets goes with --agents"),
        (["BallRun", "--steps", "5"], "--steps goes with --agents"),
        (["BallRun", "--trajectories", "5"], "--trajectories goes with --agents"),
        (["BallRun", "--bins", "5"], "--bins goes with --agents"),
        (["BallRun", "--jobs", "2"], "--jobs goes with --agents"),
        (["BallRun", "--keep-pool"], "--keep-pool goes with --agents"),
        (["Reach", "--suite", "suite.yaml"], "--suite goes with --agents"),
        (["BallRun", "--agents", "--targets", "5,many"], "--targets takes costs with commas between them"),
        (["BallRun", "--agents", "--targets", ""], "--targets takes costs with commas between them"),
        (["BallRun", "--agents", "--targets", "5,0"], "agents need positive targets"),
        (["BallRun", "--agents", "--targets", "5,nan"], "agents need positive targets"),
        (["BallRun", "--agents", "--steps", "0"], "Invalid value for '--steps'"),
        (["BallRun", "--agents", "--trajectories", "0"], "Invalid value for '--trajectories'"),
        (["BallRun", "--agents", "--bins", "0"], "Invalid value for '--bins'"),
        (["BallRun", "--agents", "--jobs", "0"], "Invalid value for '--jobs'"),
        (["BallRun", "--agents", "--seed", "-1"], "Invalid value for '--seed'"),
        (["BalRun", "--agents"], "no task matches 'BalRun'. Did you mean 'BallRun'?"),
        (["BallRun", "--agents", "--output", "."], "is a folder: name the file to write"),
        (["BallRun", "--agents", "--output", "FILE/under"], "cannot write 'FILE/under': "),
        (["Ball*", "--agents", "--output", "a.hdf5"], "--output goes with one task, and 'Ball*' means 2"),
        (["Reach", "Other", "--agents", "--suite", "suite.yaml"], "--suite goes with one of its own tasks"),
        (["Rech", "--agents", "--suite", "suite.yaml"], "own_tasks has no 'Rech'. Did you mean 'Reach'?"),
        (["BallRun", "--agents", "--suite", "suite.yaml"], "own_tasks has no 'BallRun'"),
        (["Reach", "--agents", "--suite", "absent.yaml"], "absent.yaml"),
    ],
)
def test_what_makes_no_sense_is_refused(
    plugins: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "suite.yaml").write_text(OWN)
    (tmp_path / "FILE").touch()
    done = call("data", "collect", *arguments)
    assert (done.exit_code, message in done.stderr) == (2, True), done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["FILE", "suite.yaml"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Reach-v0", "Nothing-v0", "Reach ('lspc_bench_test_plugins:Nothing-v0') cannot be made"),
        ("Reach-v0", "Six-v0", "SafetyGymnasium2Gymnasium turns its six values"),
        ("Reach-v0", "Wide-v0", "has actions outside [-1, 1]"),
        ("{files: {Reach: made/reach.hdf5}}", "{}", "which file holds the dataset of Reach?"),
    ],
)
def test_an_own_task_that_cannot_serve_is_refused(
    plugins: Path, tmp_path: Path, write_suite: WriteSuite, old: str, new: str, message: str
) -> None:
    done = call("data", "collect", "Reach", "--suite", write_suite(OWN.replace(old, new)), *TINY)
    assert (done.exit_code, message in done.stderr) == (2, True), done.output
    assert not (tmp_path / "made").exists()


def test_collecting_many_leaves_out_what_is_there(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in ("BallRun", "BallCircle"):
        (folder / f"{find_task(name).id}.hdf5").touch()
    done = call("data", "collect", "Ball*", *TINY)
    assert (done.exit_code, done.stdout.count(" is there already.")) == (0, 2)
    assert all(not path.stat().st_size for path in folder.iterdir())


def test_an_interrupted_command_goes_on(folder: Path) -> None:
    """With the agents that were not finished; the file is that of a command that was not interrupted."""
    path = folder / "OfflineBallRun-v0.hdf5"
    pool = folder / ".OfflineBallRun-v0.hdf5.pool"
    options = ["BallRun", "--agents", "--steps", "200", "--targets", "5,none", "--trajectories", "6", "--jobs", "1"]
    # A shell that starts tests in the background lets them, and what they start, ignore interrupts.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from harness.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "data", "collect", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(pool.glob("*.npz")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (130, "")
    assert "Interrupted" in errors
    assert "Traceback" not in errors
    assert [one.name for one in folder.iterdir()] == [pool.name]
    (finished,) = pool.glob("*.npz")
    before = finished.stat().st_mtime_ns
    again = call("data", "collect", *options, "--keep-pool")
    assert again.exit_code == 0, again.output
    assert len(list(pool.glob("*.npz"))) == 2
    assert finished.stat().st_mtime_ns == before
    whole = call("data", "collect", *options, "--output", folder / "whole.hdf5")
    assert whole.exit_code == 0, whole.output
    assert (folder / "whole.hdf5").read_bytes() == path.read_bytes()
    assert sorted(one.name for one in folder.iterdir()) == [
        *(pool.name, path.name, f"{path.name}.json", "whole.hdf5", "whole.hdf5.json")
    ]
