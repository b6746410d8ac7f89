"""``resources``: what the algorithms of a suite take."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from harness import resources
from harness.cli import main

SUITE = "name: one\ntasks: [BallRun, AntRun]\nalgorithms: {bc: {hyperparameters: {batch_size: 4, hidden_sizes: [3]}}}\n"


@pytest.fixture
def call(write_suite: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setattr(resources, "SECONDS", 0.0)
    path = str(write_suite(SUITE))
    return lambda *options: CliRunner().invoke(main, ["resources", path, *options])


def test_a_table_of_a_suite(call: Callable[..., Result]) -> None:
    done = call()
    assert done.exit_code == 0, done.output
    first, _, header, _, row = done.stdout.splitlines()
    assert first.startswith("AntRun on ")
    cells = dict(zip((name.strip() for name in header.split("|")), row.split("|"), strict=True))
    assert int(cells["batch"]) == 4
    assert int(cells["trained parameters"]) == int(cells["policy's parameters"]) == 34 * 3 + 4 * 8
    assert "measured bc-all" in done.stderr


def test_a_line_for_programs_with_other_settings(call: Callable[..., Result]) -> None:
    done = call("--task", "BallRun", "--set", "algorithms.bc.hyperparameters.batch_size=8", "--format", "csv")
    (row,) = csv.DictReader(io.StringIO(done.stdout))
    assert (row["task"], row["policy"], row["batch_size"]) == ("BallRun", "bc-all", "8")
    assert float(row["seconds_per_1000_updates"]) > 0
    assert float(row["milliseconds_an_action_of_10"]) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "AntRum"], "the suite one has no task 'AntRum'. Did you mean 'AntRun'?"),
        (["--set", "algorithms.bc.hyperparameters.bach=3"], "bc has no hyperparameter 'bach'"),
    ],
)
def test_wrong_input(call: Callable[..., Result], options: list[str], message: str) -> None:
    done = call(*options)
    assert done.exit_code == 2
    assert message in done.stderr
