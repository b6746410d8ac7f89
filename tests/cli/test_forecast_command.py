"""``run --dry-run`` says how long it will take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from harness import forecast
from harness.cli import main
from harness.planning import make_plan
from harness.store import Status, Store
from harness.suite import read_suite

TOY = """\
name: toys
data: {source: demo}
tasks: [BallRun]
seeds: 2
cost_limits: [10]
algorithms:
  toy: {hyperparameters: {steps: 720000, batch_size: 4}}
  bc:
evaluation: {final: 1}
"""
SPEED = {
    "batch_size": 4,
    "flops": 1e6,
    "policy_seconds": {"toy": 0.001},
    "engines": {"eager": {"1": 100, "2": 100}},
}


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A file of a machine that nobody has."""
    machine = {"name": "Made Up", "kind": "cuda", "cores": 3, "torch": "2.0"}
    content = {"machine": machine, "keeps_memory": {"ours": False, "reference": False}, "algorithms": {"toy": SPEED}}
    path = tmp_path / "measured.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def dry_run(plugins: Path, write_suite: Callable[[str], Path], tmp_path: Path) -> Callable[..., Result]:
    def call(*options: Any, dry: bool = True) -> Result:
        arguments = ["run", write_suite(TOY), "--results", tmp_path / "runs", *(["--dry-run"] if dry else []), *options]
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return call


def test_a_forecast_from_a_file(dry_run: Callable[..., Result], measured: Path) -> None:
    done = dry_run("--throughput", measured)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-2:] == [
        "Forecast from what was measured on Made Up (3 cores): 2 h 00 min (training 2 h 00 min, evaluation less than a "
        "minute).",
        "Left out, because not measured there: bc.",
    ]


def test_a_forecast_for_several_devices(dry_run: Callable[..., Result], measured: Path) -> None:
    """The devices need not be here."""
    more = ("--devices", "cuda:0,cuda:1", "--set", "tasks=[BallRun, BallCircle]", "--throughput", measured)
    done = dry_run(*more)
    assert done.exit_code == 0, done.output
    assert "on Made Up (3 cores), for 2 such GPUs: 2 h 00 min (training 2 h 00 min" in done.stdout
    assert "on Made Up (3 cores): 4 h 00 min (training 4 h 00 min" in dry_run(*more[2:]).stdout


def test_a_forecast_from_what_was_measured_here(
    dry_run: Callable[..., Result], measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "find_measurement", lambda device: forecast.read_measurement(measured))
    assert "Made Up (3 cores): 2 h 00 min" in dry_run("--workers", 1).stdout


def test_only_what_is_still_to_run_counts(
    dry_run: Callable[..., Result], measured: Path, write_suite: Callable[[str], Path], tmp_path: Path
) -> None:
    store = Store(tmp_path / "runs")
    (tmp_path / "runs").mkdir()
    for planned in make_plan(read_suite(str(write_suite(TOY)))).cells:
        if planned.label == "toy":
            store.set_status(planned.cell, Status("failed", "as told"))
    done = dry_run("--throughput", measured, "--overwrite", "never")
    assert done.exit_code == 0
    assert "No forecast: bc was not measured on Made Up (3 cores)." in done.stderr
    assert "Forecast" not in done.stdout


def test_a_machine_that_was_not_measured(dry_run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "find_measurement", lambda device: None)
    done = dry_run("--device", "cuda")
    assert done.exit_code == 0
    assert "python benchmarks/throughput.py --output FILE" in done.stderr
    assert "Forecast" not in done.stdout


@pytest.mark.parametrize("content", ["", "{}", "no JSON", None])
def test_a_wrong_file_is_refused(dry_run: Callable[..., Result], tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "wrong.json"
    if content is not None:
        path.write_text(content)
    done = dry_run("--throughput", path)
    assert (done.exit_code, done.stdout) == (2, "")
    assert str(path) in done.stderr


def test_a_file_goes_with_a_dry_run(dry_run: Callable[..., Result], measured: Path) -> None:
    done = dry_run("--throughput", measured, dry=False)
    assert done.exit_code == 2
    assert "--throughput goes with --dry-run" in done.stderr
