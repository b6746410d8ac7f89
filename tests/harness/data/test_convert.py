"""DSRL's format from D4RL's layout and Minari's."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from harness.data.convert import convert
from harness.data.dataset import load_dataset
from harness.errors import UserError
from harness.tasks import find_task

TASK = find_task("BallRun")
OBSERVATIONS = np.arange(10 * 7, dtype="f4").reshape(10, 7)


def d4rl(path: Path, timeouts: bool = True) -> Path:
    """Rows 0 to 3 end in a terminal state, 4 to 7 by time, 8 and 9 not at all."""
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = OBSERVATIONS, np.zeros((10, 2), "f4")
        file["rewards"], file["infos/cost"] = np.arange(10.0), np.arange(10.0) % 2
        file["terminals"] = np.arange(10) == 3
        if timeouts:
            file["timeouts"] = np.arange(10) == 7
    return path


def test_d4rl(tmp_path: Path) -> None:
    made = convert(d4rl(tmp_path / "old.hdf5"), tmp_path / "new.hdf5")
    assert (made.layout, made.rows, made.trajectories, made.dropped) == ("D4RL's", 8, 3, 2)
    dataset = load_dataset(TASK, "own", tmp_path / "new.hdf5")
    assert dataset.warnings == ()
    assert dataset.arrays["rewards"].tolist() == [0, 1, 2, 3, 4, 5, 6, 8]
    assert dataset.trajectories.lengths.tolist() == [4, 3, 1]
    following = dataset.arrays["next_observations"]
    assert np.array_equal(following, OBSERVATIONS[[1, 2, 3, 3, 5, 6, 7, 9]])


def test_d4rl_without_timeouts_wants_the_episodes_length(tmp_path: Path) -> None:
    old, new = d4rl(tmp_path / "old.hdf5", timeouts=False), tmp_path / "new.hdf5"
    with pytest.raises(UserError, match="--episode-length N says after how many steps"):
        convert(old, new)
    assert convert(old, new, episode_length=4).rows == 8
    assert load_dataset(TASK, "own", new).trajectories.lengths.tolist() == [4, 3, 1]
    with pytest.raises(UserError, match="is there already"):
        convert(old, new, episode_length=4)


@pytest.mark.parametrize("reset_info", [False, True])
def test_minari(tmp_path: Path, reset_info: bool) -> None:
    with h5py.File(tmp_path / "old.hdf5", "w") as file:
        for index in range(11):
            group = file.create_group(f"episode_{index}")
            group["observations"], group["actions"] = OBSERVATIONS[:4] + index, np.zeros((3, 2), "f4")
            group["rewards"] = np.full(3, index, "f4")
            group["infos/cost"] = np.array([9.0] * reset_info + [0, 1, 0])
            group["terminations"], group["truncations"] = np.zeros(3, bool), np.arange(3) == 2
    made = convert(tmp_path / "old.hdf5", tmp_path / "new.hdf5")
    assert (made.layout, made.rows, made.trajectories, made.dropped) == ("Minari's", 33, 11, 0)
    dataset = load_dataset(TASK, "own", tmp_path / "new.hdf5")
    assert dataset.warnings == ()
    assert dataset.arrays["rewards"][::3].tolist() == list(range(11))
    assert dataset.trajectories.cost_returns().tolist() == [1] * 11
    assert np.array_equal(dataset.arrays["next_observations"][:3], OBSERVATIONS[1:4])


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    old = d4rl(tmp_path / "old.hdf5")
    with pytest.raises(UserError, match="there is no array risk; --costs names another array"):
        convert(old, tmp_path / "new.hdf5", costs="risk")
