"""What is refused before anything starts, as it is not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from running import refusal, require

from harness.suite import SuiteFile
from harness.tasks import find_task

WriteSuite = Callable[[str], Path]


def test_a_missing_dataset_says_how_to_get_it(
    write_suite: WriteSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSRL_DATASET_DIR", str(tmp_path / "data"))
    file = SuiteFile(write_suite("name: mine\ntasks: [CarRun, BallRun]\nalgorithms: [bc]\n"))
    found = refusal(lambda: require(file))
    name = find_task("BallRun").dataset_file
    assert found.startswith(f"{tmp_path}/suite.yaml:2: the dataset of BallRun is missing: {tmp_path}/data/{name}. ")
    assert "'lspc-bench data download BallRun' gets it" in found
    assert "DSRL_DATASET_DIR" in found
    assert found.endswith("(1 more of the suite's 2 tasks cannot run)")
    (tmp_path / "data").mkdir()
    for task in ("BallRun", "CarRun"):
        (tmp_path / "data" / find_task(task).dataset_file).touch()
    require(file)


def test_demo_data_there_is_not_for_every_task(write_suite: WriteSuite) -> None:
    file = SuiteFile(write_suite("name: mine\ndata: {source: demo}\ntasks: [CarRun]\nalgorithms: [bc]\n"))
    found = refusal(lambda: require(file))
    assert "no demo data for OfflineCarRun-v0, only for OfflineBallRun-v0, OfflineBallCircle-v0" in found
    assert "'data: {source: dsrl}'" in found
