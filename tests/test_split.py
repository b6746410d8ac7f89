"""Train here, evaluate there: the bytes of one machine, whoever is killed on either side; and what is said."""

from __future__ import annotations

import multiprocessing.forkserver
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from running import die_at, forks, outcome, suite_file

from harness.cli import main
from harness.engine import Engine
from harness.pending import Evaluations
from harness.plan import CellData
from harness.store import Store
from harness.training import Training

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("no_child_left")]

SUITE = """
name: split
data: {source: demo, holdout: 0.2}
tasks: [BallRun]
seeds: 2
cost_limits: [10, 20]
algorithms:
  lspc: {hyperparameters: {steps: 20, batch_size: 32, hidden_sizes: [16, 16], latent_dim: 4}}
  bc: {hyperparameters: {steps: 20, batch_size: 32, hidden_sizes: [16, 16], mode: multi-task}}
evaluation: {every: 8, episodes: 1, final: 3, fqe: {steps: 5, batch_size: 16, hidden_sizes: [8, 8]}}
"""
CELLS = 2 + 2
SIMULATORS = ("gymnasium", "bullet_safety_gym", "pybullet", "mujoco", "safety_gymnasium", "metadrive")
PLACES: dict[str, tuple[Any, str]] = {
    "update": (Engine, "_advance"),
    "keep": (Evaluations, "submit"),
    "checkpoint": (Store, "write_checkpoint"),
    "status": (Store, "set_status"),
    "roll out": (Evaluations, "load_state_dict"),
    "results": (Store, "write_results"),
    "remove": (Store, "remove_checkpoint"),
}
"""What is replaced by a function that kills the process at its n-th call."""
TRAIN = ("run", "suite.yaml", "--results", "runs", "--no-evaluation", "--checkpoint-every", "0")
TRAIN_ON = ("work", "runs", "--no-evaluation", "--checkpoint-every", "0")
EVALUATE = ("work", "runs", "--only-evaluation", "--workers", "0")

SIMULATED = pytest.mark.skipif(find_spec("bullet_safety_gym") is None, reason="bullet_safety_gym is not installed")

PRELOADED = ["harness.executors.local", "pandas", "pyarrow.parquet", "torch._dynamo"]


@pytest.fixture(scope="module", autouse=True)
def _fork_server_without_simulators() -> Iterator[None]:
    """Other tests' evaluation processes have imported them into the one server that a process has."""
    server = multiprocessing.forkserver._forkserver  # type: ignore[attr-defined]
    before = server._preload_modules
    server._stop()
    forks.set_forkserver_preload(PRELOADED)
    yield
    server._stop()
    server._preload_modules = before


class _Without:
    """Finds no simulator, as on a machine that has none."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] in SIMULATORS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def _no(*_: Any, **__: Any) -> Any:
    raise AssertionError("the machine that evaluates neither reads data nor trains")


def _process(folder: Path, arguments: Sequence[str], where: str | None, count: int) -> None:
    """The command line in this process; ends it. One that only trains has no simulator, one that evaluates no data."""
    os.chdir(folder)
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    if "--no-evaluation" in arguments:
        assert not set(SIMULATORS) & set(sys.modules)
        sys.meta_path.insert(0, _Without())  # type: ignore[arg-type]
    if "--only-evaluation" in arguments:
        CellData.load = Training.__init__ = _no  # type: ignore[method-assign]
    if where is not None:
        die_at(*PLACES[where], count)
    main([*arguments, "--device", "cpu"])


def start(folder: Path, *arguments: str, where: str | None = None, count: int = 1) -> Any:
    suite_file(folder, SUITE)
    process = forks.Process(target=_process, args=(folder, arguments, where, count))
    process.start()
    return process


def ends(process: Any) -> int:
    process.join(240)
    return int(process.exitcode)


def call(folder: Path, *arguments: str) -> Result:
    """The command line in this process."""
    os.chdir(folder)
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture(autouse=True)
def back() -> Any:
    before = Path.cwd()
    yield
    os.chdir(before)


@pytest.fixture(scope="module")
def one_machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    assert ends(start(folder, "run", "suite.yaml", "--results", "runs", "--workers", "0")) == 0
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder whose cells are all trained and not evaluated."""
    folder = tmp_path_factory.mktemp("trained")
    assert ends(start(folder, *TRAIN)) == 0
    return folder


@SIMULATED
@pytest.mark.parametrize(
    ("train", "evaluate"),
    [
        (("keep", 7), ("results", 2)),
        (("status", 7), ("remove", 1)),  # between two cells that are marked
        (("checkpoint", 20), ("roll out", 2)),  # after the last step, before it is kept
    ],
)
def test_so_they_do_when_each_is_killed(
    tmp_path: Path, one_machine: Path, train: tuple[str, int], evaluate: tuple[str, int]
) -> None:
    assert ends(start(tmp_path, *TRAIN, where=train[0], count=train[1])) == -signal.SIGKILL
    assert ends(start(tmp_path, *TRAIN_ON)) == 0
    assert not list(tmp_path.glob("runs/*/*.parquet"))
    assert ends(start(tmp_path, *EVALUATE, where=evaluate[0], count=evaluate[1])) == -signal.SIGKILL
    assert ends(start(tmp_path, *EVALUATE)) == 0
    assert outcome(tmp_path / "runs") == outcome(one_machine / "runs")
    assert not list((tmp_path / "runs" / "jobs").iterdir())


@SIMULATED
def test_two_machines_give_the_bytes_of_one(trained: Path, tmp_path: Path, one_machine: Path) -> None:
    """Learning curves, diagnostics, fitted Q-evaluation, policies that are told a limit, chosen checkpoints, films."""
    copied = _copy(trained, tmp_path)
    assert ends(start(copied, *EVALUATE)) == 0
    expected = outcome(one_machine / "runs")
    assert len(expected) == 3 + 5 * CELLS
    assert outcome(copied / "runs") == expected
    assert not list((copied / "runs" / "jobs").iterdir())
    for arguments in (
        ("leaderboard", "runs", "--selection", "--format", "json"),
        ("render", "runs", "--task", "BallRun", "--policy", "lspc-s", "--every", "50", "--output", "film.gif"),
    ):
        ours, theirs = (call(folder, *arguments) for folder in (copied, one_machine))
        assert (ours.exit_code, ours.output) == (theirs.exit_code, theirs.output) == (0, ours.output)
    assert (copied / "film.gif").read_bytes() == (one_machine / "film.gif").read_bytes()


def _copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder / "runs", to / "runs")
    return to


@SIMULATED
def test_an_ordinary_run_finishes_what_is_trained(trained: Path, tmp_path: Path, one_machine: Path) -> None:
    copied = _copy(trained, tmp_path)
    assert ends(start(copied, "run", "suite.yaml", "--results", "runs", "--workers", "0")) == 0
    assert outcome(copied / "runs") == outcome(one_machine / "runs")


@SIMULATED
def test_one_evaluates_while_another_trains(tmp_path: Path, one_machine: Path) -> None:
    training = start(tmp_path, *TRAIN)
    while not list(tmp_path.glob("runs/jobs/*.checkpoint")) and training.exitcode is None:
        training.join(0.01)
    evaluating = start(tmp_path, *EVALUATE)
    assert (ends(training), ends(evaluating)) == (0, 0)
    assert ends(start(tmp_path, *EVALUATE)) == 0  # if the other was between two groups for very long
    assert outcome(tmp_path / "runs") == outcome(one_machine / "runs")


def test_what_is_trained_is_said(trained: Path) -> None:
    status = call(trained, "status", "runs").stdout
    assert "Suite split: 0 of 4 cells done." in status
    assert "trained, not evaluated" in status
    again = call(trained, *TRAIN)
    assert (again.exit_code, again.stdout) == (0, "split: 0 trained, 0 failed, 4 skipped. Results: runs\n")
    board = call(trained, "leaderboard", "runs")
    assert "0 of 4 (4 trained, not evaluated)" in board.stdout
    dry = call(trained, *TRAIN, "--dry-run").stdout
    assert "4 cells: 0 to run in 0 jobs, 4 skipped." in dry


@SIMULATED
def test_what_is_left_out_is_said(trained: Path, one_machine: Path, tmp_path: Path) -> None:
    both = call(trained, *EVALUATE, "--no-evaluation")
    assert both.exit_code == 2
    assert "--no-evaluation and --only-evaluation leave nothing to do" in both.stderr
    nothing = call(one_machine, *EVALUATE)
    assert (nothing.exit_code, nothing.stdout) == (0, "split: 0 done, 0 failed, 4 skipped. Results: runs\n")
    assert nothing.stderr.endswith("Nothing of split is trained and not evaluated.\n")
    none = call(one_machine, "run", "suite.yaml", "--results", "runs", "--no-evaluation")
    assert (none.exit_code, none.stdout) == (0, "split: 0 trained, 0 failed, 4 skipped. Results: runs\n")
    suite_file(tmp_path, SUITE)
    assert call(tmp_path, *TRAIN, "--for", "0.001s").exit_code == 130  # the plan alone
    early = call(tmp_path, *EVALUATE)
    assert (early.exit_code, early.stdout) == (0, "split: 0 done, 0 failed, 4 not trained, 0 skipped. Results: runs\n")
    assert "'lspc-bench work runs --no-evaluation' trains what is left" in early.stderr


@SIMULATED
def test_policies_that_are_gone_are_trained_again(trained: Path, tmp_path: Path, one_machine: Path) -> None:
    copied = _copy(trained, tmp_path)
    checkpoint = next((copied / "runs" / "jobs").iterdir())
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    assert ends(start(copied, *EVALUATE)) == 0
    assert "its job starts afresh" in (copied / "log").read_text()
    assert "2 done, 0 failed, 2 not trained" in (copied / "log").read_text()
    assert ends(start(copied, *TRAIN)) == 0
    assert "2 trained, 0 failed, 2 skipped" in (copied / "log").read_text()
    assert ends(start(copied, *EVALUATE)) == 0
    assert outcome(copied / "runs") == outcome(one_machine / "runs")


@SIMULATED
def test_a_failed_evaluation_leaves_what_is_trained(trained: Path, tmp_path: Path, one_machine: Path) -> None:
    """And so do policies that cannot be made again."""
    copied = _copy(trained, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("algorithms.bc.BC.policies", _no)
        failed = call(copied, *EVALUATE)
    assert (failed.exit_code, failed.stdout) == (1, "split: 2 done, 2 failed, 0 skipped. Results: runs\n")
    assert ends(start(copied, *EVALUATE)) == 0
    assert outcome(copied / "runs") == outcome(one_machine / "runs")
