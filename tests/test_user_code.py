"""Whatever a plugin or an environment does, its own cells fail with its name and reason, and all others finish."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from running import until

from harness import registry
from harness.cli import main
from harness.store import Store

sys.path.insert(0, str(Path(__file__).parent / "plugins"))
import lspc_bench_bad_plugins as bad

SUITE = """
name: strangers
data: {{source: demo, holdout: {holdout}}}
tasks: [BallRun]
seeds: 1
cost_limits: [10]
algorithms:
{algorithms}
  bc: {{hyperparameters: {{steps: 4, batch_size: 4, hidden_sizes: [4]}}}}
evaluation: {{final: 2}}
time_limits: {{episode: {seconds}, job: {seconds}}}
"""


@pytest.fixture(scope="module", autouse=True)
def offered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The bad plugins, installed for this process, its workers and its children."""
    site = tmp_path_factory.mktemp("site")
    folder = site / "lspc_bench_bad_plugins-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: lspc-bench-bad-plugins\nVersion: 1.0\n")
    points = [f"{name} = lspc_bench_bad_plugins:{name.replace('-', '_')}\n" for name in bad.offered()]
    (folder / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{''.join(points)}")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        here = Path(bad.__file__).parent
        patch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(here), os.environ.get("PYTHONPATH", "")]))
        registry.plugins.cache_clear()
        yield
    registry.plugins.cache_clear()
    registry._import.cache_clear()


def run(
    folder: Path, *names: str, workers: int = 0, seconds: float = 600, holdout: float = 0, extra: str = ""
) -> Result:
    algorithms = "\n".join(f"  {name}:" for name in names)
    suite = folder / "suite.yaml"
    suite.write_text(SUITE.format(algorithms=algorithms, seconds=seconds, holdout=holdout) + extra)
    arguments = ["--results", str(folder / "runs"), "--device", "cpu", "--workers", str(workers)]
    return CliRunner().invoke(main, ["run", str(suite), *arguments])


def statuses(folder: Path) -> dict[str, Any]:
    """How the cells stand, by algorithm."""
    store = Store(folder / "runs")
    return {one.cell.algorithm: store.status(one.cell) for plan in store.plans() for one in plan.cells}


# In training and acting


WRONG = {**bad.RUNNING, **bad.DIAGNOSED}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, offered: None) -> dict[str, Any]:
    """All at once, the good ones last; how the cells stand."""
    found = {}
    for kinds, holdout in ((bad.RUNNING, 0), (bad.DIAGNOSED, 0.2)):
        folder = tmp_path_factory.mktemp("ran")
        result = run(folder, *kinds, *bad.FINE, holdout=holdout)
        assert result.exit_code == 1, result.output
        assert f"{len(bad.FINE) + 1} done, {len(kinds)} failed, 0 skipped" in result.output
        found |= statuses(folder)
    return found


def test_the_others_finish(ran: dict[str, Any]) -> None:
    assert {name for name, status in ran.items() if status.state == "done"} == {*bad.FINE, "bc"}


@pytest.mark.parametrize("name", WRONG)
def test_a_bad_plugin_fails_with_its_name_and_reason(ran: dict[str, Any], name: str) -> None:
    assert ran[name].state == "failed"
    assert ran[name].brief.startswith(f"the algorithm {name!r}")
    assert WRONG[name][1] in ran[name].brief


def test_what_has_no_end_is_ended(tmp_path: Path) -> None:
    result = run(tmp_path, *bad.ENDLESS, seconds=12)
    found = statuses(tmp_path)
    assert result.exit_code == 1
    assert {name: status.state for name, status in found.items()} == {
        "update-loops": "failed",
        "act-loops": "failed",
        "bc": "done",
    }
    assert "that a job may train (time_limits.job)" in found["update-loops"].brief
    assert "time_limits.episode in the suite says" in found["act-loops"].brief


def test_a_worker_that_is_killed_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSPC_BENCH_TEST_MARKER", str(tmp_path / "marker"))
    result = run(tmp_path, *bad.ONCE, workers=1)
    assert (tmp_path / "marker").exists()
    assert result.exit_code == 0, result.output


def test_time_limits_are_no_part_of_a_cell(tmp_path: Path) -> None:
    assert run(tmp_path, seconds=500).exit_code == 0
    again = run(tmp_path, seconds=400)
    assert again.exit_code == 0
    assert "0 done, 0 failed, 1 skipped" in again.output
    (plan,) = json.loads((tmp_path / "runs" / "suites" / "strangers.json").read_text())["cells"]
    assert "400" not in json.dumps(plan)


# In planning


@pytest.mark.parametrize("name", bad.PLANNING)
def test_a_plugin_that_cannot_be_planned_with_is_refused_by_name(tmp_path: Path, name: str) -> None:
    result = run(tmp_path, name)
    assert result.exit_code == 2, result.output
    assert f"suite.yaml:8: the algorithm {name!r}" in result.output
    assert bad.PLANNING[name][1] in result.output
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("requires", "absent"), [("no.such.package", True), ("os.path", False), ("json.no", True)])
def test_dotted_packages(monkeypatch: pytest.MonkeyPatch, requires: str, absent: bool) -> None:
    monkeypatch.setattr(bad.Good, "requires", (requires,))
    if not absent:
        registry.require_packages("good")
        return
    with pytest.raises(registry.UserError, match=f"good needs {requires}, not installed"):
        registry.require_packages("good")


def test_the_check_of_a_plugin_survives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(main, ["algorithms", "update-exits", "--check"])
    assert result.exit_code == 1
    assert "SystemExit" in result.output
    listing = CliRunner().invoke(main, ["algorithms"])
    assert listing.exit_code == 0
    assert "BROKEN: the algorithm 'version-text'" in listing.output


# Environments

ENVIRONMENT = """
import sys, time
import gymnasium
import numpy as np

taken = 0

class Base(gymnasium.Env):
    def __init__(self, bad=""):
        if bad == "make":
            sys.exit(0)
        if bad == "slow":
            time.sleep(1000)
        self.bad = bad
        self.observation_space = gymnasium.spaces.Box(-9, 9, (7,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        if self.bad == "reset":
            sys.exit(0)
        if self.bad == "hang":
            time.sleep(1000)
        return np.zeros(7, np.float32), {}

    def step(self, action):
        global taken
        taken += 1
        if taken > 20:  # behind the trial, which is two episodes of 9 steps
            if self.bad == "late":
                sys.exit(0)
            if self.bad == "interrupt":
                raise KeyboardInterrupt
            if self.bad == "sleep":
                time.sleep(1000)
        return np.zeros(7, np.float32), 0.0, False, False, {"cost": 0.0}

for name in ("good", "make", "slow", "reset", "hang", "late", "interrupt", "sleep"):
    gymnasium.register(f"Stranger-{name}-v0", "lspc_bench_strange:Base", kwargs={"bad": name})
"""
OWN = """
own_tasks:
  {name}:
    environment: "lspc_bench_strange:Stranger-{name}-v0"
    episode_length: 9
    cost_limits: [5]
    reference_returns: [0, 1]
"""


@pytest.fixture
def strange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    import h5py
    import numpy as np

    (tmp_path / "lspc_bench_strange.py").write_text(ENVIRONMENT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    shapes = {"observations": (40, 7), "next_observations": (40, 7), "actions": (40, 2), "rewards": (40,)}
    with h5py.File(tmp_path / "own.hdf5", "w") as file:
        generator = np.random.default_rng(0)
        for name, shape in {**shapes, "costs": (40,)}.items():
            file[name] = generator.uniform(0, 0.5, shape).astype(np.float32)
        file["terminals"], file["timeouts"] = np.zeros(40, bool), np.arange(40) % 8 == 7
    yield tmp_path
    sys.modules.pop("lspc_bench_strange", None)


def own(folder: Path, name: str, *options: str, seconds: float = 600) -> Result:
    suite = folder / "own.yaml"
    suite.write_text(
        SUITE.format(algorithms="", seconds=seconds, holdout=0)
        .replace("source: demo,", f"source: demo, files: {{{name}: own.hdf5}},")
        .replace("[BallRun]", f"[BallRun, {name}]")
        + OWN.format(name=name)
    )
    return CliRunner().invoke(main, ["run", str(suite), "--results", str(folder / "runs"), "--device", "cpu", *options])


@pytest.mark.parametrize("name", ["make", "reset"])
def test_an_environment_that_fails_at_once_is_refused(strange: Path, name: str) -> None:
    result = own(strange, name, "--workers", "0")
    assert result.exit_code == 2, result.output
    assert f"lspc_bench_strange:Stranger-{name}-v0" in result.output.splitlines()[-2]
    assert "SystemExit: 0" in result.output


def test_an_environment_that_hangs_at_once_is_announced_and_refused(strange: Path) -> None:
    result = own(strange, "hang", "--workers", "0", seconds=6)
    assert result.exit_code == 2, result.output
    assert "trying lspc_bench_strange:Stranger-hang-v0" in result.output
    assert "in a trial took longer than the 6 s that an episode may take" in result.output


@pytest.mark.parametrize(
    ("name", "reason"),
    [("late", "SystemExit: 0"), ("interrupt", "KeyboardInterrupt"), ("sleep", "longer than its 16 s")],
)
def test_an_environment_that_fails_later_fails_its_own_cells(strange: Path, name: str, reason: str) -> None:
    result = own(strange, name, "--workers", "0", seconds=8 if name == "sleep" else 600)
    assert result.exit_code == 1, result.output
    store = Store(strange / "runs")
    found = {one.cell.task: store.status(one.cell) for plan in store.plans() for one in plan.cells}
    assert found["OfflineBallRun-v0"].state == "done"
    assert found[name].state == "failed"
    assert reason in found[name].brief
    if name != "sleep":
        assert f"the environment 'lspc_bench_strange:Stranger-{name}-v0' in step" in found[name].brief


def test_changed_code_is_told_and_runs_again(strange: Path) -> None:
    assert "1 skipped" not in own(strange, "good", "--workers", "0").output
    same = own(strange, "good", "--workers", "0").output
    assert "0 done, 0 failed, 2 skipped" in same
    assert "has changed" not in same
    with (strange / "lspc_bench_strange.py").open("a") as file:
        file.write("# another\n")
    dry = own(strange, "good", "--dry-run").output
    again = own(strange, "good", "--workers", "0").output
    for output in (dry, again):
        assert "The environment of good has changed since the suite last ran, from code " in output
    assert "1 done, 0 failed, 1 skipped" in again


@pytest.mark.parametrize("name", ["slow", "import"])
def test_an_environment_that_cannot_be_made_in_time_is_refused(strange: Path, name: str) -> None:
    if name == "import":
        with (strange / "lspc_bench_strange.py").open("a") as file:
            file.write("time.sleep(1000)\n")
    result = own(strange, name, "--workers", "0", seconds=2)
    assert result.exit_code == 2, result.output
    assert "own.yaml:15: took longer than the 2 s that an episode may take (time_limits.episode)" in result.output


# The user


def test_the_user_may_still_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a plugin's code too: once to stop at the next safe point, which an endless loop has not, twice at once."""
    (tmp_path / "suite.yaml").write_text(SUITE.format(algorithms="  update-loops:", seconds=600, holdout=0))
    command = [sys.executable, "-c", "from harness.cli import main; main()", "run", str(tmp_path / "suite.yaml")]
    options = ["--results", str(tmp_path / "runs"), "--device", "cpu", "--workers", "0"]
    monkeypatch.setenv("LSPC_BENCH_TEST_LOOPS", str(tmp_path / "loops"))
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    until((tmp_path / "loops").exists, "the plugin's code runs")
    try:
        process.send_signal(signal.SIGINT)
        assert any("interrupt again" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
    assert "Interrupted" in process.stderr.read()
