"""The committed demo data is what its manifest says and fit to learn from; collecting repeats and leaves no debris."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from harness.data import collect as module
from harness.data.behaviours import SCRIPTS
from harness.data.collect import LABEL, collect, file_name, manifest_path
from harness.errors import UserError
from harness.tasks import find_task

DEMO = Path(module.__file__).parent / "demo"

SHIPPED = ("OfflineBallRun-v0", "OfflineBallCircle-v0")
per_task = pytest.mark.parametrize("task_id", SHIPPED)


def read(path: Path) -> dict[str, NDArray[Any]]:
    with h5py.File(path) as file:
        return {key: file[key][:] for key in file}


def episode_sums(arrays: dict[str, NDArray[Any]], key: str) -> NDArray[np.float64]:
    ends = np.flatnonzero(arrays["terminals"] | arrays["timeouts"]) + 1
    return np.add.reduceat(arrays[key].astype(np.float64), np.r_[0, ends[:-1]])


@per_task
def test_committed_data_is_what_its_manifest_says(task_id: str) -> None:
    task = find_task(task_id)
    path = DEMO / file_name(task)
    manifest = json.loads(manifest_path(path).read_text())
    assert manifest["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (manifest["task"], manifest["label"]) == (task_id, LABEL)
    assert manifest["command"] == f"lspc-bench data collect {task.name}"
    arrays = read(path)
    assert manifest["transitions"] == len(arrays["rewards"])
    assert manifest["trajectories"] == np.count_nonzero(arrays["terminals"] | arrays["timeouts"])
    assert manifest["trajectories"] == sum(behaviour["episodes"] for behaviour in manifest["behaviours"])
    # The scripts in the code are those that the data was made with.
    assert [(one["name"], one["parameters"], one["noise"]) for one in manifest["behaviours"]] == [
        (behaviour.name, {key: list(ends) for key, ends in behaviour.parameters.items()}, list(behaviour.noise))
        for behaviour in SCRIPTS[task_id].behaviours
    ]
    with h5py.File(path) as file:
        assert file.attrs["label"] == LABEL


@per_task
def test_committed_data_has_dsrls_format(task_id: str) -> None:
    arrays = read(DEMO / file_name(find_task(task_id)))
    transitions = len(arrays["rewards"])
    assert set(arrays) == {
        *("observations", "next_observations", "actions", "rewards", "costs", "terminals", "timeouts")
    }
    for key in ("observations", "next_observations", "actions", "rewards", "costs"):
        assert arrays[key].dtype == np.float32
        assert len(arrays[key]) == transitions
        assert np.isfinite(arrays[key]).all()
    assert np.abs(arrays["actions"]).max() <= 1
    assert set(np.unique(arrays["costs"])) == {0.0, 1.0}
    inside = ~(arrays["terminals"] | arrays["timeouts"])[:-1]
    np.testing.assert_array_equal(arrays["next_observations"][:-1][inside], arrays["observations"][1:][inside])
    assert arrays["timeouts"][-1]


@per_task
def test_committed_data_leaves_something_to_learn(task_id: str) -> None:
    task = find_task(task_id)
    arrays = read(DEMO / file_name(task))
    costs = episode_sums(arrays, "costs")
    returns = task.normalize_reward(episode_sums(arrays, "rewards"))
    tight, middle, loose = task.cost_limits

    assert 100 <= len(costs) <= 200
    assert costs.min() == 0
    assert costs.max() > 4 * tight
    assert np.quantile(costs, 0.95) > 60
    assert 0.25 <= np.mean(costs <= tight) <= 0.4
    assert np.mean(costs <= tight) < np.mean(costs <= middle) < np.mean(costs <= loose) <= 0.75
    # What imitates everything is far from safe.
    assert costs.mean() > 1.4 * middle
    # More cost, more reward; and among the safe episodes some earn much more than others.
    assert returns.min() < 0.05
    assert returns.max() > 0.8
    assert np.corrcoef(costs, returns)[0, 1] > 0.7
    best = [returns[costs <= limit].max() for limit in (tight, loose, np.inf)]
    assert best == sorted(set(best))
    safe = returns[costs <= tight]
    assert safe.max() > 1.5 * safe.mean()


def test_demo_data_is_small() -> None:
    assert sum((DEMO / file_name(find_task(task_id))).stat().st_size for task_id in SHIPPED) < 4_000_000


def test_committed_data_can_be_made_again(tmp_path: Path) -> None:
    task = find_task("BallRun")
    collect(task, tmp_path / "again.hdf5")
    again, committed = read(tmp_path / "again.hdf5"), read(DEMO / file_name(task))
    for key in committed:
        np.testing.assert_allclose(again[key], committed[key], atol=1e-3, err_msg=key)


@pytest.mark.parametrize("task_id", [*SHIPPED, "OfflineSwimmerVelocityGymnasium-v1"])
def test_collecting_repeats(task_id: str, tmp_path: Path) -> None:
    task = find_task(task_id)
    seen: list[tuple[int, int]] = []
    first = collect(
        task, tmp_path / "new" / "a.hdf5", 5, seed=3, progress=lambda done, total: seen.append((done, total))
    )
    second = collect(task, tmp_path / "b.hdf5", 5, seed=3)
    other = collect(task, tmp_path / "c.hdf5", 5, seed=4)
    assert first == second
    assert first["sha256"] != other["sha256"]
    assert first["command"] == f"lspc-bench data collect {task.name} --episodes 5 --seed 3"
    assert first == json.loads((tmp_path / "new" / "a.hdf5.json").read_text())
    assert seen == [(done, 5) for done in range(1, 6)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("b.hdf5", "b.hdf5.json", "c.hdf5", "c.hdf5.json", "new")
    ]


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    ball = find_task("BallRun")
    with pytest.raises(UserError, match=r"no scripted behaviour.*OfflineBallRun-v0, OfflineBallCircle-v0"):
        collect(find_task("CarRun"), tmp_path / "a.hdf5")
    with pytest.raises(UserError, match="at least 1"):
        collect(ball, tmp_path / "a.hdf5", 0)
    with pytest.raises(UserError, match="negative"):
        collect(ball, tmp_path / "a.hdf5", 1, seed=-1)
    with pytest.raises(UserError, match="folder"):
        collect(ball, tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(find_task("BallRun"), tmp_path / "a.hdf5", 3, progress=interrupt)
    assert list(tmp_path.iterdir()) == []

    # While writing: the file of before stays whole.
    collect(find_task("BallRun"), tmp_path / "a.hdf5", 1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def break_off(path: Path, *_: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(module, "write", break_off)
    with pytest.raises(OSError, match="disk full"):
        collect(find_task("BallRun"), tmp_path / "a.hdf5", 2)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
