"""Every command as a user types it: output, exit status, and what is written."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result
from running import REACH, call

from harness import __version__
from harness.cli import main, options
from harness.data.dataset import dataset_path
from harness.errors import UserError
from harness.simulators import require_simulator
from harness.store import Status, Store
from harness.suite import builtin_suites
from harness.tasks import all_tasks, find_task

WriteSuite = Callable[[str], Path]

TOY = """\
name: toys
data: {source: demo}
tasks: [BallRun]
seeds: 2
cost_limits: [10]
algorithms:
  toy: {hyperparameters: {steps: 10, batch_size: 4}}
evaluation: {final: 1}
"""


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def run(plugins: Path, write_suite: WriteSuite, runs: Path) -> Callable[..., Result]:
    """Run :data:`TOY`, or another suite, without workers."""

    def start(*options: object, suite: str = TOY, workers: int = 0) -> Result:
        path = write_suite(suite)
        return call("run", path, "--results", runs, "--workers", workers, "--device", "cpu", *options)

    return start


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of built-in algorithms."""
    results = tmp_path_factory.mktemp("finished")
    overrides = ["steps=4", "seeds=2", "cost_limits=[10, 20]", "evaluation={every: 2, episodes: 1, final: 2}"]
    options = [option for override in overrides for option in ("--set", override)]
    done = call("run", "smoke", "--results", results, "--workers", 0, "--device", "cpu", *options)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"smoke: 8 done, 0 failed, 0 skipped. Results: {results}\n"
    return results


def written(folder: Path) -> dict[str, tuple[int, bytes]]:
    """When and what was written to every result, but not the plan and the lock."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.glob("*/*"))
        if path.is_file() and path.parent.name != "suites"
    }


def states(results: Path) -> dict[tuple[str, int], Status]:
    """How each cell stands, by label and seed."""
    store = Store(results)
    (plan,) = store.plans()
    return {(planned.label, planned.cell.seed): store.status(planned.cell) for planned in plan.cells}


# Help


@pytest.mark.parametrize(
    "command",
    [
        "",
        "run",
        "status",
        "leaderboard",
        "archive",
        "algorithms",
        "tasks",
        "new",
        "policy",
        "data",
        "data check",
        "data download",
    ],
)
def test_help_imports_nothing_heavy(command: str) -> None:
    code = (
        "import sys; from click.testing import CliRunner; from harness.cli import main; "
        f"print(CliRunner().invoke(main, {[*command.split(), '--help']}).output); "
        "print('heavy:', {'torch', 'pandas', 'numpy', 'pydantic', 'h5py', 'rich', 'yaml', 'httpx2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage: " in done.stdout
    assert done.stdout.endswith("heavy: set()\n")


@pytest.mark.parametrize("arguments", [[], ["data"]])
def test_what_each_command_does_is_said_in_one_line(arguments: list[str]) -> None:
    done = CliRunner(env={"COLUMNS": "80"}).invoke(main, [*arguments, "--help"])
    commands = done.stdout.partition("\nCommands:\n")[2].partition("\n\n")[0].splitlines()
    assert len(commands) >= 5
    assert [line for line in commands if line.endswith("...") or not line[2:3].strip()] == []


def test_suites_are_listed_and_printed() -> None:
    done = call("suites")
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == list(builtin_suites())
    assert all(len(line.split()) > 3 for line in done.stdout.splitlines()[1:])
    assert call("suites", "smoke").stdout == builtin_suites()["smoke"].read_text()
    wrong = call("suites", "smok")
    assert (wrong.exit_code, "Did you mean 'smoke'?" in wrong.stderr) == (2, True)


def test_a_command_to_be_given_again_is_one_that_the_shell_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    with click.Context(click.Command("run"), info_name="run"):
        monkeypatch.setattr(options.sys, "argv", [".venv/bin/lspc-bench"])
        monkeypatch.setattr(options.shutil, "which", lambda name: None)
        assert options.same_command() == ".venv/bin/lspc-bench run"
        assert options.command_line("status", Path("my runs")) == ".venv/bin/lspc-bench status 'my runs'"
        monkeypatch.setattr(options.shutil, "which", lambda name: f"/bin/{name}")
        assert options.same_command() == "lspc-bench run"


def test_version() -> None:
    assert call("--version").output == f"lspc-bench, version {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["data"]])
def test_alone_it_says_what_there_is(arguments: list[str]) -> None:
    done = call(*arguments)
    assert done.exit_code == 2
    assert done.output.startswith("Usage: ")
    assert "Error" not in done.output
    assert ("  lspc-bench run demo  " in done.output) == (not arguments)


@pytest.mark.parametrize(
    "arguments",
    [["run"], ["runs"], ["run", "smoke", "--seeds", "3"], ["tasks", "Ball"], ["data", "describe", "Ball"]],
)
def test_an_error_says_where_help_is(arguments: list[str]) -> None:
    done = call(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert re.search(r"^Try 'main[a-z ]* --help' for help\.$", done.stderr, flags=re.MULTILINE), done.stderr


# run


def test_a_run_and_another_that_finds_nothing_to_do(
    run: Callable[..., Result], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.cli.progress.LINE_SECONDS", float("inf"))  # however slow the machine is
    first = run()
    assert (first.exit_code, first.stdout) == (0, f"toys: 2 done, 0 failed, 0 skipped. Results: {runs}\n")
    assert first.stderr.splitlines() == [
        "job 1 of 1: BallRun toy (toy), 2 replicas",
        "[1/2] BallRun toy seed 0 done",
        "[2/2] BallRun toy seed 1 done",
        f"Rank the policies: lspc-bench leaderboard {runs}",
    ]
    before = written(runs)
    second = run()
    assert (second.exit_code, second.stdout) == (0, f"toys: 0 done, 0 failed, 2 skipped. Results: {runs}\n")
    assert second.stderr == ""
    assert written(runs) == before


def test_a_dry_run_writes_nothing_and_starts_nothing(
    run: Callable[..., Result], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.executors.local.LocalExecutor.run", lambda *_: pytest.fail("started"))
    done = run("--dry-run")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0].split("  ")[0] == "cell"
    assert [line.split()[1:] for line in lines[1:3]] == [
        ["BallRun", "toy", seed, "-", "10", "10", "run"] for seed in ("0", "1")
    ]
    assert lines[-2:] == ["2 cells: 2 to run in 1 jobs, 0 skipped.", "  BallRun toy (toy), 2 replicas"]
    assert not runs.exists()


def test_a_dry_run_knows_what_is_done_and_what_is_missing(run: Callable[..., Result], runs: Path) -> None:
    run("--set", "seeds=1")
    before = written(runs)
    done = run("--dry-run")
    assert "2 cells: 1 to run in 1 jobs, 1 skipped." in done.stdout
    assert [line.split()[-1] for line in done.stdout.splitlines()[1:3]] == ["skip", "run"]
    assert "2 cells: 2 to run" in run("--dry-run", "--overwrite", "always").stdout
    missing = run("--dry-run", "--set", "tasks=[CarRun]")
    assert (missing.exit_code, "This would not run: " in missing.stderr) == (0, True)
    assert written(runs) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "cuda:4096"), "--device cuda"),
        (("--engine", "graph"), "--engine graph needs a GPU"),
        (("--precision", "tf32"), "--precision tf32 needs a GPU"),
    ],
)
def test_a_dry_run_says_what_a_run_would_be_refused_for(
    run: Callable[..., Result], options: tuple[str, ...], message: str
) -> None:
    dry = run("--dry-run", *options)
    assert (dry.exit_code, f"This would not run: {message}" in dry.stderr) == (0, True)
    real = run(*options)
    assert (real.exit_code, message in real.stderr) == (2, True)


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_results_that_cannot_be_written_are_refused_in_a_dry_run_too(tmp_path: Path, dry: tuple[str, ...]) -> None:
    (tmp_path / "file").touch()
    done = call("run", "smoke", "--results", tmp_path / "file" / "under", *dry)
    assert (done.exit_code, f"Not a directory: {tmp_path / 'file' / 'under'}" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    "arguments", [["run", "x" * 10_000], ["x" * 10_000], ["run", "smoke", "--device", "x" * 10_000]]
)
def test_what_is_long_is_not_repeated(arguments: list[str]) -> None:
    done = call(*arguments)
    assert done.exit_code == 2
    assert len(done.stderr) < 2000


def test_overwrite_always_runs_everything_afresh(run: Callable[..., Result], runs: Path) -> None:
    run()
    before = written(runs)
    done = run("--overwrite", "always")
    assert done.stdout.startswith("toys: 2 done, 0 failed, 0 skipped.")
    after = written(runs)
    assert after.keys() == before.keys()
    assert all(after[name][0] > before[name][0] for name in after)
    times = ("cell.json", "status.json")  # the one names them, the other holds its SHA-256
    assert all(after[name][1] == before[name][1] for name in after if not name.endswith(times))


def test_overwrite_never_leaves_what_was_started(run: Callable[..., Result], runs: Path) -> None:
    failing = TOY.replace("batch_size: 4", "batch_size: 4, failure: nan")
    assert run(suite=failing).exit_code == 1
    before = written(runs)
    done = run("--overwrite", "never", "--set", "seeds=3", suite=failing)
    assert (done.exit_code, done.stdout.split(" Results")[0]) == (0, "toys: 1 done, 0 failed, 2 skipped.")
    assert before.items() <= written(runs).items()


# run: cells that fail

EVALUATION = "the algorithm 'toy': evaluation of toy at step 10:"


@pytest.mark.parametrize(
    ("failure", "workers", "state", "reason"),
    [
        ("nan", 0, "diverged", "loss not finite in steps 6 to 6"),
        ("update", 0, "failed", "the algorithm 'toy' in update: ArithmeticError: the toy algorithm gives up"),
        ("policy", 0, "failed", f"{EVALUATION} the policy in act: ArithmeticError: the toy policy gives up"),
        ("policy", 1, "failed", f"{EVALUATION} the policy in act: ArithmeticError: the toy policy gives up"),
        ("kill", 1, "failed", f"{EVALUATION} the worker process was killed by signal 9, 3 times in a row"),
    ],
)
def test_a_failing_cell_is_recorded_and_tried_again_alone(
    run: Callable[..., Result],
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: str,
    workers: int,
    state: str,
    reason: str,
) -> None:
    marker = tmp_path / "marker"
    marker.touch()
    monkeypatch.setenv("LSPC_BENCH_TEST_MARKER", str(marker))
    suite = TOY.replace("batch_size: 4", f"batch_size: 4, failure: {failure}").replace("seeds: 2", "seeds: 3")
    suite = suite.replace("algorithms:", "algorithms:\n  bc: {hyperparameters: {steps: 2, batch_size: 4}}")
    first = run(suite=suite, workers=workers)
    assert first.exit_code == 1, first.output
    assert first.stdout == f"toys: 5 done, 1 failed, 0 skipped. Results: {runs}\n"
    assert f"BallRun toy seed 1 {state}: {reason}\n" in first.stderr
    found = states(runs)
    assert found.pop(("toy", 1)).state == state
    assert {status.state for status in found.values()} == {"done"}
    shown = call("status", runs)
    assert shown.exit_code == 0
    assert f"{state}: {reason}" in shown.stdout
    assert "Suite toys: 5 of 6 cells done." in shown.stdout

    before = written(runs)
    if failure == "kill":
        marker.unlink()
    second = run(suite=suite, workers=workers)
    healed = failure == "kill"
    assert second.exit_code == (0 if healed else 1)
    assert second.stdout == f"toys: {int(healed)} done, {int(not healed)} failed, 5 skipped. Results: {runs}\n"
    (failed,) = (
        planned.cell.hash
        for planned in Store(runs).plans()[0].cells
        if (planned.label, planned.cell.seed) == ("toy", 1)
    )
    others = {name for name in before if not name.startswith((failed, "jobs/"))}
    assert len(others) == 5 * 6
    after = written(runs)
    assert {name: after[name] for name in others} == {name: before[name] for name in others}
    assert [key for key, now in states(runs).items() if now.state != "done"] == ([] if healed else [("toy", 1)])


def test_the_reason_of_a_failure_has_the_plugins_traceback(run: Callable[..., Result], runs: Path) -> None:
    run(suite=TOY.replace("batch_size: 4", "batch_size: 4, failure: update, failing_seed: 0"))
    reason = states(runs)["toy", 0].reason
    assert reason.startswith("Traceback")
    assert 'raise ArithmeticError("the toy algorithm gives up")' in reason


def test_every_cell_may_fail(run: Callable[..., Result], runs: Path) -> None:
    done = run(suite=TOY.replace("seeds: 2", "seeds: [1]").replace("batch_size: 4", "batch_size: 4, failure: nan"))
    assert (done.exit_code, done.stdout.split(" Results")[0]) == (1, "toys: 0 done, 1 failed, 0 skipped.")
    board = call("leaderboard", runs)
    assert board.exit_code == 0
    assert "0 of 1 (1 diverged)" in board.stdout
    (row, _) = csv.DictReader(call("leaderboard", runs, "--format", "csv").stdout.splitlines())
    assert (row["policy"], row["rank"], row["runs"], row["diverged_runs"]) == ("toy", "", "0", "1")


def test_plugins_that_are_not_asked_for_do_no_harm(run: Callable[..., Result]) -> None:
    """The broken ones are installed, too."""
    assert run("--set", "seeds=1").exit_code == 0


# run: wrong input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["tasks=[BalRun]"], "--set tasks=[BalRun]: no task matches 'BalRun'. Did you mean 'BallRun'?"),
        (["algorithms=[lscp]"], "--set algorithms=[lscp]: unknown algorithm 'lscp'. Did you mean 'lspc'?"),
        (["algorithms.toy.hyperparameters.step=1"], "toy has no hyperparameter 'step'. Did you mean 'steps'?"),
        (["evaluation.finale=1"], "unknown key 'evaluation.finale'. Did you mean 'final'?"),
        (["seeds=many"], "--set seeds=many: seeds: "),
        (["evaluation.final=0"], "greater than or equal to 1, not 0"),
        (["algorithms.toy.hyperparameters.learning_rate=0"], "greater than 0, not 0"),
        (["algorithms.toy.grid={steps: []}"], "must not be empty: nothing would run"),
        (["data.source=dsrl"], "suite.yaml:3: the dataset of BallRun is missing: "),
        (["tasks=[CarRun]"], "--set tasks=[CarRun]: there is no demo data for OfflineCarRun-v0"),
        (["algorithms=[broken-import]"], "fails to import: ModuleNotFoundError"),
        (["algorithms=[no-algorithm]"], "is no subclass of harness.algorithm.Algorithm"),
        (["algorithms=[toy-stateless]"], "does not implement parts (or state_dict and load_state_dict)"),
        (
            ["algorithms=[toy-needy]"],
            "toy-needy needs lspc_bench_no_such_package, not installed here: make install",
        ),
        (
            ["algorithms={cdt: {hyperparameters: {num_heads: 3}}}"],
            "cdt: embedding_dim 128 is no multiple of num_heads 3",
        ),
        (
            ["algorithms={osrl-cpq: {hyperparameters: {ood_gradient: true}}}"],
            "hyperparameter 'ood_gradient' of osrl-cpq: Input should be False",
        ),
        (["nonsense"], "--set needs KEY=VALUE"),
    ],
)
def test_wrong_input_is_refused_before_anything_starts(
    run: Callable[..., Result],
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.setenv("DSRL_DATASET_DIR", str(tmp_path))
    done = run(*(option for override in options for option in ("--set", override)))
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: ")
    assert message in done.stderr
    assert done.stderr.splitlines()[1:] == ["Try 'main run --help' for help."]
    assert not runs.exists()


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        (TOY.replace("seeds:", "sedes:"), "suite.yaml:4: unknown key 'sedes'. Did you mean 'seeds'?"),
        (TOY.replace("BallRun]", "BallRun"), "suite.yaml:4: not valid YAML: "),
        (
            TOY.replace("steps: 10", "stops: 10"),
            "suite.yaml:7: toy has no hyperparameter 'stops'. Did you mean 'steps'?",
        ),
        ("", "suite.yaml: needs a mapping"),
    ],
)
def test_a_wrong_suite_is_refused_with_its_line(
    run: Callable[..., Result], runs: Path, suite: str, message: str
) -> None:
    done = run(suite=suite)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.splitlines()[1:] == ["Try 'main run --help' for help."]
    assert not runs.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "demmo"], "no such suite: 'demmo' is neither a file nor built in"),
        (["run"], "Missing argument 'SUITE'"),
        (["run", "smoke", "--workers", "-1"], "Invalid value for '--workers'"),
        (["run", "smoke", "--device", "gpu"], "'gpu' is none of auto, cpu, cuda"),
        (["run", "smoke", "--device", "cuda:²"], "'cuda:²' is none of auto, cpu, cuda"),
        (["run", "smoke", "--device", "cuda:4096"], "--device cuda"),
        (["run", "smoke", "--device", "cpu", "--engine", "graph"], "--engine graph needs a GPU"),
        (["run", "smoke", "--device", "cpu", "--precision", "tf32"], "--precision tf32 needs a GPU"),
        (["run", "smoke", "--engine", "fast"], "'fast' is not one of 'auto', 'eager', 'graph', 'compile'"),
        (["run", "smoke", "--memory-fraction", "0"], "0.0 is not in the range"),
        (["run", "smoke", "--memory-fraction", "nan"], "'nan' is not a finite number"),
        (["run", "smoke", "--checkpoint-every", "nan"], "'nan' is not a finite number"),
        (["run", "smoke", "--checkpoint-every", "inf"], "'inf' is not a finite number"),
        (["run", "smoke", "--device", f"cuda:{'9' * 5000}"], "is none of auto, cpu, cuda"),
        (["run", "smoke", "--workers", "1000000"], "is not in the range 0<=x<=1024"),
        (
            ["data", "describe", "BallRun", "--source", "demo", "--filter", "noise=yes"],
            "noise: must not be true or false",
        ),
        (["data", "describe", "BallRun", "--source", "demo", "--filter", "noise=0x1"], "is no plain decimal number"),
        (["data", "describe", "BallRun", "--source", "demo", "--filter", "noise=.nan"], "noise: "),
        (["run", "smoke", "--overwrite", "sometimes"], "'sometimes' is not one of"),
        (["run", "smoke", "--results", "FILE"], "is a file"),
        (["run", "smoke", "--results", "FILE/under"], "cannot write results: Not a directory: FILE/under"),
        (["status", "absent"], "no results folder 'absent'"),
        (["status", "."], "'.' holds no results of a suite"),
        (["leaderboard", "absent"], "no results folder 'absent'"),
        (["leaderboard", "absent", "--format", "pdf"], "'pdf' is not one of"),
        (["algorithms", "lscp"], "unknown algorithm 'lscp'. Did you mean 'lspc'?"),
        (["tasks", "BalRun"], "unknown task 'BalRun'. Did you mean 'BallRun'?"),
        (["data", "collect", "BalRun"], "no task matches 'BalRun'. Did you mean 'BallRun'?"),
        (["data", "collect", "CarRun"], "CarRun"),
        (["data", "collect", "BallRun", "--episodes", "0"], "Invalid value for '--episodes'"),
        (["data", "collect", "BallRun", "--episodes", "1", "--output", "FILE/under"], "cannot write 'FILE/under': "),
        (["data", "check", "BalRun"], "no task matches 'BalRun'. Did you mean 'BallRun'?"),
        (
            ["data", "check", "BallRun", "--file", "absent"],
            "BallRun: absent: not a usable dataset: there is no such file",
        ),
        (["data", "check", "BallRun", "--file", "."], "BallRun: .: not a usable dataset: it is a folder"),
        (["data", "check", "BallRun", "--file", "FILE"], "FILE: not a usable dataset: it is empty"),
        (["data", "check", "Ball*", "--file", "FILE"], "--file goes with one task, and 'Ball*' means 2"),
        (["data", "check", "BallRun"], "the dataset of BallRun is missing: "),
        (["data", "describe", "BallRun"], "the dataset of BallRun is missing: "),
        (["data", "describe", "CarRun", "--source", "demo"], "there is no demo data for OfflineCarRun-v0"),
        (["statsu", "."], "No such command 'statsu'"),
    ],
)
def test_wrong_arguments_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DSRL_DATASET_DIR", str(tmp_path / "nowhere"))
    (tmp_path / "FILE").touch()
    done = call(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not isinstance(done.exception, UnicodeError)
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"]


# run: interrupted


def test_an_interrupted_run_goes_on(write_suite: WriteSuite, plugins: Path, runs: Path) -> None:
    path = write_suite(TOY.replace("steps: 10", "steps: 60000"))
    command = [Path(sys.executable).with_name("lspc-bench"), "run", path, "--results", runs, "--workers", "0"]
    path_with_it = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        [*command, "--checkpoint-every", "0"],
        env={**os.environ, "PATH": path_with_it},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(runs.glob("jobs/*.checkpoint")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    said = f"lspc-bench run {path} --results {runs} --checkpoint-every 0 --workers 0"
    again_said = re.search(r"Interrupted: 0 of 2 cells are done\. '(.*)' resumes it\.\n", errors)
    assert again_said is not None
    assert {*again_said[1].split()} == {*said.split()}
    assert "0 of 2 cells done" in call("status", runs).stdout
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert "2 replicas, from step " in again.stderr
    assert again.stdout == f"toys: 2 done, 0 failed, 0 skipped. Results: {runs}\n"


# status and leaderboard


def test_status_counts_for_each_task_and_algorithm(finished: Path) -> None:
    done = call("status", finished)
    assert done.exit_code == 0
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[:5] == [
        "Suite smoke: 8 of 8 cells done.",
        "task algorithm done unfinished failed diverged missing",
        "BallRun lspc 2 of 2 0 0 0 0",
        "BallRun bc mode=all 2 of 2 0 0 0 0",
        "BallRun bc mode=safe 4 of 4 0 0 0 0",
    ]
    assert all(line.startswith("Warning: BallRun lspc, ") for line in lines[5:])  # of so few steps
    assert call("status", finished, "--suite", "smoke").stdout == done.stdout
    wrong = call("status", finished, "--suite", "smok")
    assert (wrong.exit_code, "Did you mean 'smoke'?" in wrong.stderr) == (2, True)


def test_status_counts_what_is_missing(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    store = Store(copy)
    store.forget(store.plans()[0].cells[0].cell)
    told = call("status", copy).stdout
    assert "Suite smoke: 7 of 8 cells done." in told
    assert f"To run what is not done: lspc-bench work {copy}\n" in told
    board = call("leaderboard", copy, "--format", "csv").stdout
    rows = {row["policy"]: row for row in csv.DictReader(board.splitlines()) if not row["task"]}
    assert (rows["lspc-s"]["runs"], rows["lspc-s"]["planned_runs"]) == ("2", "4")
    assert (rows["bc-all"]["runs"], rows["bc-all"]["planned_runs"]) == ("4", "4")


def test_the_leaderboard_in_every_format(finished: Path, tmp_path: Path) -> None:
    texts = {name: call("leaderboard", finished, "--format", name).stdout for name in ("markdown", "csv", "json")}
    assert call("leaderboard", finished).stdout == texts["markdown"]
    assert "demo data, not DSRL" in texts["markdown"]
    rows = list(csv.DictReader(texts["csv"].splitlines()))
    policies = {"lspc-s", "lspc-o", "bc-all", "bc-safe"}
    for task in ("", "OfflineBallRun-v0"):
        mine = [row for row in rows if row["task"] == task]
        assert {row["policy"] for row in mine} == policies
        assert [row["rank"] for row in mine] == ["1", "2", "3", "4"]
        assert {(row["data"], row["runs"], row["planned_runs"]) for row in mine} == {("demo data, not DSRL", "4", "4")}
    (board,) = json.loads(texts["json"])
    assert [row["policy"] for row in board["rows"]] == [row["policy"] for row in rows]
    for policy in policies:
        assert f"| {policy} " in texts["markdown"]
    for name, text in texts.items():
        path = tmp_path / name
        done = call("leaderboard", finished, "--format", name, "--output", path)
        assert (done.exit_code, done.stdout, done.stderr) == (0, "", f"Wrote {path}.\n")
        assert path.read_text() == text


def test_what_is_held_out_is_named_and_its_figures_stand_below_the_table(
    run: Callable[..., Result], runs: Path
) -> None:
    assert run("--set", "data.holdout=0.1").exit_code == 0
    text = call("leaderboard", runs).stdout
    assert "10% of trajectories held out" in text
    assert "## Held-out data: toys" in text
    assert "| action_error " in text
    assert "Held-out data" not in call("leaderboard", runs, "--format", "csv").stdout


@pytest.mark.parametrize("place", ["absent/table.md", "."])
def test_a_leaderboard_that_cannot_be_written(finished: Path, tmp_path: Path, place: str) -> None:
    done = call("leaderboard", finished, "--output", tmp_path / place)
    assert done.exit_code == 2
    assert str(tmp_path) in done.stderr
    assert list(tmp_path.iterdir()) == []


# algorithms and tasks


def test_algorithms_are_listed_with_origin_and_what_is_broken(plugins: Path) -> None:
    done = call("algorithms")
    assert done.exit_code == 0
    lines = {line.split("  ")[0]: line for line in done.stdout.splitlines()}
    assert "built-in" in lines["lspc"]
    assert "package lspc-bench-test-plugins 1.2.3" in lines["toy"]
    assert "BROKEN" not in lines["toy"]
    for name in ("broken-import", "no-attribute", "no-algorithm", "abstract", "toy-stateless", "Bad_Name"):
        assert "BROKEN" in lines[name]
    assert "the name 'bc' is taken by algorithms.bc:BC (built-in)" in done.stdout


def test_an_algorithm_is_checked(plugins: Path) -> None:
    good = call("algorithms", "toy", "--check")
    assert good.exit_code == 0
    lines = good.stdout.splitlines()
    assert len(lines) == 12
    assert all(line.startswith("holds   ") for line in lines)
    bad = call("algorithms", "toy-synchronising", "--check")
    assert bad.exit_code == 1
    assert "BROKEN  update: nothing is handed to the host\n        update synchronises" in bad.stdout
    assert bad.stdout.count("BROKEN") == 1
    for arguments, message in (
        (("--check",), "needs the NAME"),
        (("toi", "--check"), "Did you mean 'toy'?"),
        (("toy-needy", "--check"), "toy-needy needs lspc_bench_no_such_package"),
    ):
        wrong = call("algorithms", *arguments)
        assert wrong.exit_code == 2
        assert message in wrong.stderr


@pytest.mark.parametrize(
    "name",
    [
        "lspc",
        "bc",
        "bcq-lag",
        "bear-lag",
        "cpq",
        "coptidice",
        "cdt",
        "caps",
        "ccac",
        "fisor",
        "trac",
        "osrl-cdt",
        "toy",
    ],
)
def test_an_algorithm_is_shown_with_all_its_hyperparameters(plugins: Path, name: str) -> None:
    from harness import registry

    done = call("algorithms", name)
    assert done.exit_code == 0
    algorithm = registry.load(name)
    for policy in algorithm.policy_names(algorithm.Hyperparameters.model_validate({})):
        assert policy.removesuffix("-all") in done.stdout
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    for key, field in algorithm.Hyperparameters.model_fields.items():
        assert str(field.default) in rows[key]
        assert str(field.description) in rows[key]
    assert ">= 1" in rows["batch_size"]
    for pattern in algorithm.per_task:
        assert f"  {pattern}: " in done.stdout


def test_tasks_are_all_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSRL_DATASET_DIR", str(tmp_path))
    (tmp_path / find_task("BallRun").dataset_file).touch()
    done = call("tasks")
    rows = {line.split()[2]: line.split() for line in done.stdout.splitlines()[1:]}
    assert rows.keys() == all_tasks().keys()
    assert {task for task, row in rows.items() if row[-1] == "yes"} == {"OfflineBallRun-v0"}


@pytest.mark.parametrize("name", ["BallRun", "OfflineBallRun-v0"])
def test_a_task_is_shown_with_everything_about_it(name: str) -> None:
    done = call("tasks", name)
    assert done.exit_code == 0
    task = find_task(name)
    for fact in (task.id, "bullet", "10, 20, 40", f"{task.max_episode_steps} steps", task.dataset_file):
        assert fact in done.stdout
    assert f"{task.min_episode_reward:g} to {task.max_episode_reward:g}" in done.stdout


# data


def test_data_is_collected_checked_and_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = call("data", "collect", "BallRun", "--episodes", 2, "--seed", 1)
    assert done.exit_code == 0, done.output
    path = tmp_path / "OfflineBallRun-v0.hdf5"
    manifest = json.loads((tmp_path / "OfflineBallRun-v0.hdf5.json").read_text())
    assert done.stdout.startswith("Wrote OfflineBallRun-v0.hdf5 (demo data, not DSRL): 2 trajectories, ")
    assert manifest["sha256"] in done.stdout
    checked = call("data", "check", "BallRun", "--file", path)
    assert checked.exit_code == 0
    assert checked.stdout.startswith(f"BallRun: good, {manifest['transitions']} transitions, ")
    described = call("data", "describe", "BallRun", "--file", path)
    assert described.exit_code == 0
    assert described.stdout.startswith(f"BallRun (demo data, not DSRL): {path}\n")
    assert f"2 trajectories, {manifest['transitions']} transitions, 0 rows with both" in described.stdout

    with h5py.File(path, "r+") as file:
        file["rewards"][0] += 1
    changed = call("data", "check", "BallRun", "--file", path)
    assert changed.exit_code == 2
    assert "its manifest OfflineBallRun-v0.hdf5.json says" in changed.stderr
    path.write_bytes(path.read_bytes()[:-2000])
    truncated = call("data", "check", "BallRun", "--file", path)
    assert (truncated.exit_code, "truncated or damaged" in truncated.stderr) == (2, True)


@pytest.fixture
def d4rl(tmp_path: Path) -> Path:
    """Ten steps of BallRun in D4RL's layout."""
    path = tmp_path / "old.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = np.zeros((10, 7), "f4"), np.zeros((10, 2), "f4")
        file["rewards"], file["infos/cost"] = np.ones(10), np.zeros(10)
        file["terminals"], file["timeouts"] = np.arange(10) == 3, np.arange(10) == 7
    return path


def test_data_is_converted(d4rl: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.hdf5"
    refused = call("data", "check", "BallRun", "--file", d4rl)
    assert f"'lspc-bench data convert {d4rl} NEW.hdf5' makes DSRL's format of it" in refused.stderr
    done = call("data", "convert", d4rl, new)
    assert done.exit_code == 0, done.output
    assert done.stdout == (
        f"Wrote {new} (of D4RL's layout): 3 trajectories, 8 transitions.\n"
        "note: 2 rows that end a trajectory, but not in a terminal state, are left out: what came behind them is not "
        "known\n"
    )
    assert call("data", "check", "BallRun", "--file", new).stdout.startswith("BallRun: good, 8 transitions, ")
    for arguments, message in (
        ((d4rl, new), "is there already"),
        ((tmp_path / "absent", tmp_path / "newer.hdf5"), "there is no such file"),
        ((d4rl, tmp_path / "newer.hdf5", "--costs", "infos/none"), "infos/none"),
    ):
        wrong = call("data", "convert", *arguments)
        assert (wrong.exit_code, message in wrong.stderr) == (2, True), wrong.output
    assert not (tmp_path / "newer.hdf5").exists()


CHECKED = """\
name: mine
data: {files: {Mine: own.hdf5, BallRun: own.hdf5}}
tasks: [Mine]
algorithms: [bc]
own_tasks:
  Mine: {environment: no_module:Mine-v0, episode_length: LENGTH, cost_limits: [5], reference_returns: [0, 1]}
"""


def test_a_suite_s_datasets_are_checked_before_there_is_an_environment(
    d4rl: Path, tmp_path: Path, write_suite: WriteSuite
) -> None:
    call("data", "convert", d4rl, tmp_path / "own.hdf5")
    suite = write_suite(CHECKED.replace("LENGTH", "20"))
    for task in ("Mine", "BallRun"):
        done = call("data", "check", task, "--suite", suite)
        assert (done.exit_code, done.stdout.startswith(f"{task}: good, 8 transitions, ")) == (0, True), done.output
    described = call("data", "describe", "Mine", "--suite", suite)
    assert described.stdout.startswith(f"Mine (converted from D4RL's layout): {tmp_path / 'own.hdf5'}\n"), (
        described.output
    )
    short = call("data", "check", "Mine", "--suite", write_suite(CHECKED.replace("LENGTH", "2")))
    assert (short.exit_code, "Mine: " in short.stderr) == (2, True), short.output
    unknown = call("data", "check", "Mien", "--suite", suite)
    assert (unknown.exit_code, "Did you mean 'Mine'?" in unknown.stderr) == (2, True), unknown.output
    (tmp_path / "own.hdf5").unlink()
    gone = call("data", "check", "Mine", "--suite", suite)
    assert (gone.exit_code, "there is no such file" in gone.stderr) == (2, True), gone.output


def test_the_data_that_ships_is_good() -> None:
    for task in ("BallRun", "BallCircle"):
        done = call("data", "check", task, "--source", "demo")
        assert (done.exit_code, done.stdout.startswith(f"{task}: good, ")) == (0, True)
        described = call("data", "describe", task, "--source", "demo")
        assert described.stdout.startswith(
            f"{task} (agent-collected data, not DSRL): {dataset_path(find_task(task), 'demo')}\n"
        )


def test_what_is_not_dsrls_is_set_beside_dsrls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = [
        "this data DSRL",
        "trajectories 200 886",
        "least reward return -71.1 0.3831",
        "greatest reward return 610.2 881.5",
        "greatest cost return 145 80",
        "Not known here of DSRL's: quantiles, means, the share within each limit.",
    ]
    text = call("data", "describe", "BallCircle", "--source", "demo").stdout
    assert "\n".join(beside) in "\n".join(" ".join(line.split()) for line in text.splitlines())
    # The same arrays where DSRL's file is looked for, without the word of what they are, stand for themselves.
    monkeypatch.setenv("DSRL_DATASET_DIR", str(tmp_path))
    task = find_task("BallCircle")
    shutil.copy(dataset_path(task, "demo"), tmp_path / task.dataset_file)
    with h5py.File(tmp_path / task.dataset_file, "r+") as file:
        file.attrs.clear()
    plain = call("data", "describe", "BallCircle").stdout
    assert plain.startswith("BallCircle (DSRL): ")
    assert "Not known here" not in plain


def test_checking_many_tells_all_that_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSRL_DATASET_DIR", str(tmp_path))
    path = tmp_path / find_task("BallRun").dataset_file
    shutil.copy(dataset_path(find_task("BallRun"), "demo"), path)
    refused = call("data", "check", "bullet")
    assert f"{path}: it is labelled 'agent-collected data, not DSRL', but lies where source 'dsrl'" in refused.stderr
    with h5py.File(path, "r+") as file:
        file.attrs.clear()
    done = call("data", "check", "bullet")
    assert done.exit_code == 2
    assert done.stdout.count(": good, ") == 1
    assert done.stderr.count(" is missing: ") == 7


def test_a_dataset_is_drawn_and_filtered(tmp_path: Path) -> None:
    plain = call("data", "describe", "BallCircle", "--source", "demo", "--plot", tmp_path / "all.png")
    assert plain.exit_code == 0, plain.output
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")
    plot = plain.stdout.partition("reward return\n")[2].splitlines()
    assert len(plot) > 16
    assert any("|" in line for line in plot)  # cost limits
    filtered = call(
        "data", "describe", "BallCircle", "--source", "demo", "--filter", "density_grid={most: 2, fewest: 0}"
    )
    assert filtered.exit_code == 0, filtered.output
    assert "filtered: density_grid" in filtered.stdout.splitlines()[0]
    counts = [int(one.stdout.partition(" trajectories")[0].rsplit("\n", 1)[1]) for one in (plain, filtered)]
    assert counts[0] == 200
    assert 50 < counts[1] < 150


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--filter", "densty=0.5"], "--filter densty=0.5: no such filter. Did you mean 'density'?"),
        (["--filter", "density=2"], "--filter: density: Input should be less than 1"),
        (["--filter", "density=[1"], "--filter density=[1: not valid YAML"),
        (["--filter", "density=0.1"], "DSRL has no grid that leaves 0.1 of BallRun's trajectories"),
        (["--filter", "epsilon=3"], "outliers and epsilon want target_cost"),
        (["--plot", "picture.doc"], "cannot write the picture 'picture.doc': Format 'doc' is not supported"),
        (["--plot", "no/such/folder/a.png"], "cannot write the picture 'no/such/folder/a.png'"),
    ],
)
def test_wrong_filters_and_pictures_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call("data", "describe", "BallRun", "--source", "demo", *options)
    assert done.exit_code == 2
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_collecting_many_leaves_out_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSRL_DATASET_DIR", str(tmp_path))
    need("SwimmerVelocity")
    done = call("data", "collect", "velocity", "bullet", "--episodes", 1)
    assert done.exit_code == 0, done.output
    assert done.stdout.count(" is there already.") == 2  # what ships
    path = tmp_path / "demo" / "OfflineSwimmerVelocityGymnasium-v1.hdf5"
    assert f"Wrote {path} (demo data, not DSRL): 1 trajectories" in done.stdout
    before = path.read_bytes()
    again = call("data", "collect", "velocity", "--episodes", 2)
    assert again.stdout == f"SwimmerVelocity: {path} is there already.\n"
    assert path.read_bytes() == before
    both = call("data", "collect", "velocity", "--output", tmp_path / "a.hdf5")
    assert (both.exit_code, "--output goes with one task" in both.stderr) == (2, True)
    none = call("data", "collect", "hardmean", "hardsparse")
    assert (none.exit_code, "none of these tasks has a script" in none.stderr) == (2, True)


def need(task: str) -> None:
    """Skip where the task's simulator is not installed."""
    try:
        require_simulator(find_task(task))
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.long
def test_every_family_from_data_to_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Collect, train, evaluate in workers, rank and film, on one small task of each family."""
    monkeypatch.setenv("DSRL_DATASET_DIR", str(tmp_path / "data"))
    for task in ("PointGoal1", "SwimmerVelocity", "easysparse"):
        need(task)
    missing = call("run", "all-families", "--results", tmp_path / "runs")
    assert missing.exit_code == 2
    assert "the demo data of PointGoal1 is missing: 'lspc-bench data collect PointGoal1' makes it" in missing.stderr
    collected = call("data", "collect", "all", "--episodes", 3)
    assert collected.exit_code == 0, collected.output
    overrides = ["steps=5", "seeds=1", "cost_limits=[1000]", "evaluation.final=2"]
    options = [option for override in overrides for option in ("--set", override)]
    done = call("run", "all-families", "--results", tmp_path / "runs", "--workers", 2, "--device", "cpu", *options)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("all-families: 12 done, 0 failed, 0 skipped.")
    board = call("leaderboard", tmp_path / "runs").stdout
    assert all(
        f"## {task} (demo data, not DSRL)" in board
        for task in ("BallRun", "PointGoal1", "SwimmerVelocity", "easysparse")
    )
    film = call(
        *("render", tmp_path / "runs", "--task", "easysparse", "--policy", "lspc-o", "--every", 100),
        *("--output", tmp_path / "film.gif"),
    )
    assert film.exit_code == 0, film.output
    assert "As evaluated." in film.stdout


OWN = (
    """\
name: own
tasks: [Reach]
"""
    + REACH
    + """\
data: {files: {Reach: reach.hdf5}, density_grid: {cost_bins: 2, reward_bins: 2, most: 5, fewest: 0}}
seeds: 2
algorithms:
  bc: {hyperparameters: {steps: 150, batch_size: 64, hidden_sizes: [32], actor_lr: 0.01}}
evaluation: {final: 3}
"""
)


def test_an_own_task_from_its_file_to_the_leaderboard(
    plugins: Path, tmp_path: Path, write_suite: WriteSuite, runs: Path
) -> None:
    import lspc_bench_test_plugins as toys

    toys.write_reach(tmp_path / "reach.hdf5")
    path = write_suite(OWN)
    dry = call("run", path, "--dry-run", "--results", runs)
    assert dry.exit_code == 0, dry.output
    assert "Reach" in dry.stdout
    for workers in (0, 2):
        done = call("run", path, "--results", runs, "--workers", workers, "--device", "cpu", "--overwrite", "always")
        assert done.exit_code == 0, done.output
        board = call("leaderboard", runs, "--format", "csv").stdout
        rows = list(csv.DictReader(board.splitlines()))
        assert rows[1]["task"] == "Reach"
        assert "own file reach.hdf5, filtered: density_grid" in rows[1]["data"]
        assert float(rows[1]["normalized_reward"]) > 0.5  # it goes to the origin, as its data does
    assert "own file reach.hdf5, filtered" in call("leaderboard", runs).stdout
    assert "Reach" in call("status", runs).stdout
    store = Store(runs)
    (plan,) = store.plans()
    record = store.record(plan.cells[0].cell)["dataset"]
    assert (record["file"], record["source"]) == ("reach.hdf5", "own")
    assert 0 < record["trajectories"] < 30
    again = call("run", path, "--results", runs, "--workers", 0, "--device", "cpu")
    assert "0 done, 0 failed, 2 skipped" in again.stdout


def test_an_own_file_may_move_between_a_run_and_its_resumption(
    run: Callable[..., Result], tmp_path: Path, runs: Path
) -> None:
    """What failed is resumed from a checkpoint that still names the old place."""
    old, new = tmp_path / "old.hdf5", tmp_path / "new.hdf5"
    shutil.copy(dataset_path(find_task("BallRun"), "demo"), old)
    suite = TOY.replace("{source: demo}", "{files: {BallRun: old.hdf5}}").replace(
        "batch_size: 4", "batch_size: 4, failure: policy"
    )
    first = run(suite=suite)
    assert (first.exit_code, first.stdout) == (1, f"toys: 1 done, 1 failed, 0 skipped. Results: {runs}\n")
    assert list((runs / "jobs").iterdir())
    old.rename(new)
    second = run(suite=suite.replace("old.hdf5", "new.hdf5"))
    assert (second.exit_code, second.stdout) == (1, f"toys: 0 done, 1 failed, 1 skipped. Results: {runs}\n")
    assert "the toy policy gives up" in call("status", runs).stdout
    assert "no such file" not in call("status", runs).stdout


def test_selection_is_told_from_what_a_run_measured(run: Callable[..., Result], runs: Path) -> None:
    judged = "evaluation: {every: 5, episodes: 1, final: 1, fqe: {steps: 3}}\n"
    done = run(
        suite=TOY.replace("evaluation: {final: 1}\n", judged).replace("source: demo", "source: demo, holdout: 0.1")
    )
    assert done.exit_code == 0, done.output
    page = call("leaderboard", runs, "--selection").stdout
    for rule in ("at random", "last", "FQE", "held-out loss", "best of evaluations"):
        assert f"| all    | {rule} " in page
    rows = json.loads(call("leaderboard", runs, "--selection", "--format", "json").stdout)[0]["rows"]
    assert {(row["of"], row["policy"], row["runs"]) for row in rows} == {
        ("checkpoint", "", 2),
        ("checkpoint", "toy", 2),
    }
    assert "# Selection" not in call("leaderboard", runs).stdout
