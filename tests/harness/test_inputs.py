"""What is refused before anything starts, as it is not there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
from running import refusal, require

from harness.data.dataset import LABELS, dataset_path, load_dataset, require_file
from harness.data.hdf5 import write
from harness.data.manifest import manifest_path
from harness.errors import UserError
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


@pytest.mark.parametrize("manifest", [True, False])
def test_agents_data_in_the_place_of_dsrls_is_refused(
    manifest: bool, write_suite: WriteSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its manifest says what it is, and so does the file."""
    monkeypatch.setenv("DSRL_DATASET_DIR", str(tmp_path))
    task = find_task("BallRun")
    demo, path = dataset_path(task, "demo"), tmp_path / task.dataset_file
    shutil.copy(demo, path)
    if manifest:
        shutil.copy(manifest_path(demo), manifest_path(path))
        with h5py.File(path, "r+") as file:
            file.attrs.clear()
    file = SuiteFile(write_suite("name: mine\ntasks: [BallRun]\nalgorithms: [bc]\n"))
    assert refusal(lambda: require(file)) == (
        f"{tmp_path}/suite.yaml:2: {path}: it is labelled 'agent-collected data, not DSRL', but lies where source "
        f"'dsrl' is looked for: move it and its manifest to {tmp_path}/agents/{task.id}.hdf5, and use 'data: {{source: "
        "agents}'"
    )
    with pytest.raises(UserError, match="it is labelled 'agent-collected data, not DSRL'"):
        load_dataset(task)
    for place in (path, manifest_path(path)) if manifest else (path,):
        (tmp_path / "agents").mkdir(exist_ok=True)
        place.rename(tmp_path / "agents" / place.name.replace(path.name, f"{task.id}.hdf5"))
    require(SuiteFile(write_suite("name: mine\ntasks: [BallRun]\ndata: {source: agents}\nalgorithms: [bc]\n")))


def test_a_label_is_of_the_source_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSRL_DATASET_DIR", str(tmp_path))
    task = find_task("BallRun")
    path = dataset_path(task, "agents")
    path.parent.mkdir()
    write(path, {}, {"label": LABELS["demo"]})
    with pytest.raises(UserError, match=r"move it elsewhere, and name it: 'data: {files: {BallRun: FILE}}'"):
        require_file(task, "agents")
    write(path, {}, {"label": "converted from D4RL's layout"})
    assert require_file(task, "agents") == path
    shutil.copy(dataset_path(task, "demo"), path)
    assert require_file(task, "agents") == path


def test_demo_data_there_is_not_for_every_task(write_suite: WriteSuite) -> None:
    file = SuiteFile(write_suite("name: mine\ndata: {source: demo}\ntasks: [CarRun]\nalgorithms: [bc]\n"))
    found = refusal(lambda: require(file))
    assert "no demo data for OfflineCarRun-v0, only for OfflineBallRun-v0, OfflineBallCircle-v0" in found
    assert "'data: {source: dsrl}'" in found
