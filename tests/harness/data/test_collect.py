"""The committed demo data is what its manifest says and fit to learn from; scripts repeat and leave no debris."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from harness.data import agents
from harness.data import collect as module
from harness.data.agents import FREE, Recipe
from harness.data.collect import collect, file_name, manifest_path
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
    assert (manifest["task"], manifest["label"]) == (task_id, agents.LABEL)
    assert manifest["command"] == f"lspc-bench data collect {task.name} --agents --trajectories 200"
    arrays = read(path)
    assert manifest["transitions"] == len(arrays["rewards"])
    assert manifest["trajectories"] == np.count_nonzero(arrays["terminals"] | arrays["timeouts"]) == 200
    # The command's defaults are still those that the data was made with.
    recipe = Recipe.default(task)
    assert [one["target"] for one in manifest["agents"]] == [None if one == FREE else one for one in recipe.targets]
    assert (manifest["steps"], manifest["seed"]) == (recipe.steps, recipe.seed)
    episodes = [one["episodes"] for one in manifest["agents"]]
    assert episodes == [recipe.steps // task.max_episode_steps] * len(recipe.targets)
    assert manifest["pool"] == sum(episodes)
    with h5py.File(path) as file:
        assert {key: file.attrs[key] for key in file.attrs} == {
            key: manifest[key] for key in ("task", "label", "command")
        }


@per_task
def test_committed_agents_differ_as_their_targets_do(task_id: str) -> None:
    task = find_task(task_id)
    made = json.loads(manifest_path(DEMO / file_name(task)).read_text())["agents"]
    *careful, free = made
    assert all(one["last_cost"] < 2 * one["target"] for one in careful)
    assert all(one["last_cost"] <= task.cost_limits[-1] for one in careful if one["target"] <= 25)
    assert free["last_cost"] > 1.3 * max(one["last_cost"] for one in careful)
    assert free["last_return"] > max(one["last_return"] for one in careful)
    assert careful[0]["last_return"] == min(one["last_return"] for one in made)


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

    assert costs.min() == 0
    assert np.quantile(costs, 0.95) > 2 * loose
    # Some trajectories within each limit, more within a looser one, and most within none.
    shares = [np.mean(costs <= limit) for limit in (tight, middle, loose)]
    assert 0.05 < shares[0] < shares[1] < shares[2] < 0.5
    # What imitates everything is far from safe.
    assert costs.mean() > 2 * middle
    # Who may cost more can earn more; and among the safe some earn much more than others.
    assert returns.min() < 0.05
    assert returns.max() > 0.65
    best = [returns[costs <= limit].max() for limit in (tight, loose, np.inf)]
    assert best == sorted(set(best))
    safe = returns[costs <= tight]
    assert safe.max() > safe.mean() + 0.2


def test_demo_data_is_small() -> None:
    assert sum((DEMO / file_name(find_task(task_id))).stat().st_size for task_id in SHIPPED) < 4_000_000


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
