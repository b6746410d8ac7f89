"""Every way in which a dataset file can be wrong is told; what is odd but usable is loaded with a warning."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from harness.data.dataset import COLUMNS, KEYS, Dataset, dataset_path, load_dataset, require_file
from harness.data.manifest import manifest_path
from harness.errors import UserError
from harness.tasks import find_task

TASK = find_task("BallRun")
ROWS = 12
Arrays = dict[str, NDArray[Any]]


@pytest.fixture
def arrays() -> Arrays:
    """Three trajectories of four steps; the first ends in a terminal state, the others by time."""
    rng = np.random.default_rng(0)
    flags = np.arange(ROWS) % 4 == 3
    observations = rng.normal(size=(ROWS, TASK.observation_size)).astype(np.float32)
    return {
        "observations": observations,
        "next_observations": np.roll(observations, -1, 0),
        "actions": rng.uniform(-1, 1, (ROWS, TASK.action_size)).astype(np.float32),
        "rewards": rng.normal(size=ROWS).astype(np.float32),
        "costs": rng.integers(0, 2, ROWS).astype(np.float32),
        "terminals": flags & (np.arange(ROWS) < 4),
        "timeouts": flags & (np.arange(ROWS) >= 4),
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Arrays], Path]:
    def write(arrays: Arrays) -> Path:
        path = tmp_path / TASK.dataset_file
        with h5py.File(path, "w") as file:
            for key, values in arrays.items():
                file[key] = values
        return path

    return write


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as error:
        load_dataset(TASK, path=path)
    message = str(error.value)
    assert message.startswith(f"{path}: not a usable dataset: ")
    return message.removeprefix(f"{path}: not a usable dataset: ")


def set_at(key: str, index: Any, value: float) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[key] = arrays[key].astype(np.float32)
        arrays[key][index] = value

    return change


def replace(key: str, make: Callable[[NDArray[Any]], Any]) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[key] = make(arrays[key])

    return change


def test_a_right_file_loads(arrays: Arrays, write: Callable[[Arrays], Path]) -> None:
    path = write(arrays)
    dataset = load_dataset(TASK, path=path)
    assert len(dataset) == ROWS
    assert dataset.warnings == ()
    assert dataset.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    for key in KEYS:
        np.testing.assert_array_equal(dataset.arrays[key], arrays[key])
    np.testing.assert_array_equal(dataset.done, np.arange(ROWS) % 4 == 3)
    for name in COLUMNS:
        column = dataset.column(name)
        assert (column.dtype, len(column)) == (np.float32, ROWS)
    for name, key in (("reward_returns", "rewards"), ("cost_returns", "costs")):
        sums = np.repeat(arrays[key].reshape(3, 4).sum(1), 4)
        np.testing.assert_allclose(dataset.column(name), sums, rtol=1e-5)


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_key(arrays: Arrays, write: Callable[[Arrays], Path], key: str) -> None:
    del arrays[key]
    assert refusal(write(arrays)).split("; ")[0] == f"the key '{key}' is missing"


def test_a_group_is_no_array(arrays: Arrays, write: Callable[[Arrays], Path]) -> None:
    path = write({key: values for key, values in arrays.items() if key != "costs"})
    with h5py.File(path, "a") as file:
        file.create_group("costs")
    assert refusal(path) == "the key 'costs' is missing"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace("observations", lambda v: v[:, 1:]), "observations has shape (12, 6), BallRun needs (12, 7)"),
        (
            replace("next_observations", lambda v: v[:, :, None]),
            "next_observations has shape (12, 7, 1), BallRun needs",
        ),
        (replace("actions", lambda v: v[:, 0]), "actions has shape (12,), BallRun needs (12, 2)"),
        (replace("rewards", lambda v: v[:-1]), "rewards has shape (11,), BallRun needs (12,)"),
        (replace("costs", lambda v: np.stack([v, v], 1)), "costs has shape (12, 2), BallRun needs (12,)"),
        (replace("timeouts", lambda v: v[:5]), "timeouts has shape (5,), BallRun needs (12,)"),
        (replace("terminals", lambda v: True), "terminals has shape (), BallRun needs (12,)"),
        (replace("observations", lambda v: 1.0), "it holds no transition"),
        (set_at("observations", (3, 2), np.nan), "observations holds 1 values that are not finite"),
        (set_at("next_observations", (slice(2), 2), np.inf), "next_observations holds 2 values that are not finite"),
        (set_at("actions", (0, 0), -np.inf), "actions holds 1 values that are not finite"),
        (set_at("rewards", 11, np.nan), "rewards holds 1 values that are not finite"),
        (set_at("costs", 0, np.nan), "costs holds 1 values that are not finite"),
        (set_at("costs", 5, -1), "costs are negative in places"),
        (set_at("terminals", 5, 0.5), "terminals holds other values than 0 and 1"),
        (set_at("timeouts", 5, 2), "timeouts holds other values than 0 and 1"),
        (set_at("timeouts", 5, np.nan), "timeouts holds other values than 0 and 1"),
        (set_at("actions", (7, 1), -80), "actions reach 80; they are to lie in [-1, 1]"),
        (replace("rewards", lambda v: v.astype("S4")), "rewards holds |S4, not numbers"),
        (replace("costs", lambda v: v.astype(complex)), "costs holds complex128, not numbers"),
    ],
)
def test_wrong_content(
    arrays: Arrays, write: Callable[[Arrays], Path], change: Callable[[Arrays], None], message: str
) -> None:
    change(arrays)
    assert message in refusal(write(arrays))


def test_a_value_that_float32_cannot_hold(arrays: Arrays, write: Callable[[Arrays], Path]) -> None:
    arrays["rewards"] = arrays["rewards"].astype(np.float64)
    arrays["rewards"][3] = 1e300
    assert "rewards holds 1 values that are not finite" in refusal(write(arrays))


@pytest.mark.parametrize(("key", "sign"), [("rewards", -1), ("costs", 1)])
def test_returns_that_float32_cannot_hold(arrays: Arrays, write: Callable[[Arrays], Path], key: str, sign: int) -> None:
    arrays[key] = arrays[key].astype(np.float32)
    arrays[key][:2] = sign * np.float32(3e38)
    assert refusal(write(arrays)) == f"{key} of a trajectory add up to more than float32 holds"


def test_no_transition(arrays: Arrays, write: Callable[[Arrays], Path]) -> None:
    assert refusal(write({key: values[:0] for key, values in arrays.items()})) == "it holds no transition"


def test_all_problems_are_told_at_once(arrays: Arrays, write: Callable[[Arrays], Path]) -> None:
    del arrays["costs"], arrays["timeouts"]
    arrays["rewards"] = arrays["rewards"].astype("S4")
    assert refusal(write(arrays)).split("; ") == [
        "rewards holds |S4, not numbers",
        "the key 'costs' is missing",
        "the key 'timeouts' is missing",
    ]


def test_all_wrong_values_are_told_at_once(arrays: Arrays, write: Callable[[Arrays], Path]) -> None:
    for key, value in (("rewards", np.nan), ("costs", np.inf), ("terminals", 3)):
        set_at(key, 1, value)(arrays)
    assert len(refusal(write(arrays)).split("; ")) == 3


def test_files_that_are_none(tmp_path: Path, arrays: Arrays, write: Callable[[Arrays], Path]) -> None:
    text = tmp_path / "text.hdf5"
    text.write_text("404 Not Found")
    assert refusal(text) == "it is no HDF5 file"
    assert refusal(tmp_path) == "it is a folder"
    assert refusal(tmp_path / "none.hdf5") == "there is no such file"


def test_shapes_are_judged_before_content_is_read(arrays: Arrays, write: Callable[[Arrays], Path]) -> None:
    """Of the wrong shape and damaged: the shape is told."""
    del arrays["costs"]
    path = write(arrays)
    with h5py.File(path, "a") as file:
        file.create_dataset("costs", data=np.zeros(3 * ROWS), compression="gzip", chunks=(3 * ROWS,))
        place, size = file["costs"].id.get_chunk_info(0)[2:]
    content = bytearray(path.read_bytes())
    content[place : place + size] = bytes(size)
    path.write_bytes(content)
    assert refusal(path) == "costs has shape (36,), BallRun needs (12,)"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file(arrays: Arrays, write: Callable[[Arrays], Path], share: float) -> None:
    path = write(arrays)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "it is truncated or damaged" in refusal(path)


def test_a_file_with_flipped_bits_is_read_or_refused(arrays: Arrays, write: Callable[[Arrays], Path]) -> None:
    """Whatever h5py raises."""
    path = write(arrays)
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        for place in generator.integers(len(damaged), size=4):
            damaged[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        try:
            load_dataset(TASK, path=path)
        except UserError:
            refused += 1
    assert refused > 20


def test_a_file_is_recorded_at_first_use_and_compared_from_then_on(
    arrays: Arrays, write: Callable[[Arrays], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSRL_DATASET_DIR", str(tmp_path))
    path = write(arrays)
    load_dataset(TASK, path=path)  # somebody's file, not DSRL's
    assert not manifest_path(path).exists()
    first = load_dataset(TASK)
    recorded = json.loads(manifest_path(path).read_text())
    assert (recorded["sha256"], recorded["size"]) == (first.sha256, path.stat().st_size)
    assert load_dataset(TASK).sha256 == first.sha256

    arrays["rewards"][0] += 1
    write(arrays)
    with pytest.raises(UserError, match=r"its SHA-256 is .*delete the manifest"):
        load_dataset(TASK)
    arrays["rewards"][0] = np.nan
    write(arrays)
    with pytest.raises(UserError, match=r"rewards holds 1 values.*; its SHA-256 is"):
        load_dataset(TASK)
    manifest_path(path).unlink()
    with pytest.raises(UserError, match="rewards holds 1"):
        load_dataset(TASK)
    assert not manifest_path(path).exists()  # nothing is recorded of a bad file


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(arrays: Arrays, write: Callable[[Arrays], Path]) -> None:
    path = write(arrays)
    path.chmod(0)
    assert refusal(path) == "no permission to read it"


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (set_at("actions", (slice(2), 1), 1.25), "2 of 12 actions leave [-1, 1] (up to 1.25)"),
        (set_at("terminals", 7, 1), "1 rows carry both terminal flags; they count as one end"),
        (set_at("timeouts", 11, 0), "the last trajectory has no end; it counts as a trajectory of its own"),
        (set_at("next_observations", slice(None), 0), "next_observations are all zero"),
        (
            lambda arrays: arrays.update(next_observations=arrays["observations"]),
            "next_observations are copies of observations",
        ),
        (
            set_at("next_observations", ([0, 1, 3], 2), 7.5),  # row 3 ends a trajectory: nothing follows that is known
            "in 2 of 9 steps inside trajectories next_observations is not the next row's observation",
        ),
        (
            replace("next_observations", lambda v: np.random.default_rng(1).permutation(v)),
            "in 9 of 9 steps inside trajectories next_observations is not the next row's observation",
        ),
    ],
)
def test_oddities_are_warnings(
    arrays: Arrays, write: Callable[[Arrays], Path], change: Callable[[Arrays], None], warning: str
) -> None:
    change(arrays)
    dataset = load_dataset(TASK, path=write(arrays))
    assert dataset.warnings == (warning,)
    assert len(dataset.trajectories) == 3
    assert set(dataset.column("done")) == {0, 1}
    assert dataset.trajectories.unfinished == ("no end" in warning)


def test_next_observations_that_were_rounded_follow(arrays: Arrays, write: Callable[[Arrays], Path]) -> None:
    arrays["next_observations"] = arrays["next_observations"] * np.float32(1 + 1e-6)
    assert load_dataset(TASK, path=write(arrays)).warnings == ()


def test_no_flag_at_all_is_noted(arrays: Arrays, write: Callable[[Arrays], Path]) -> None:
    for key in ("terminals", "timeouts"):
        arrays[key][:] = False
    dataset = load_dataset(TASK, path=write(arrays))
    assert len(dataset.trajectories) == 1
    assert "no row carries a terminal or timeout flag; all 12 rows count as one trajectory" in dataset.warnings


@pytest.mark.parametrize(("longest", "refused"), [(100, False), (101, True)])
@pytest.mark.parametrize("ended", [True, False])
def test_a_trajectory_longer_than_the_tasks_episode_is_refused(
    write: Callable[[Arrays], Path], longest: int, refused: bool, ended: bool
) -> None:
    rows = 40 + longest
    arrays: Arrays = {key: np.zeros(rows) for key in KEYS[3:]}
    arrays["timeouts"][[39, -1]] = 1, ended
    for key, size in zip(KEYS, (TASK.observation_size, TASK.observation_size, TASK.action_size), strict=False):
        arrays[key] = np.zeros((rows, size))
    path = write(arrays)
    if not refused:
        assert load_dataset(TASK, path=path).trajectories.lengths.tolist() == [40, longest]
        return
    assert refusal(path) == (
        "1 of 2 trajectories is longer than an episode of BallRun, 100 steps: the longest, of 101 steps, begins at row "
        "40. Are timeouts not marked?"
    )


def test_columns_of_width_one_and_other_number_types_are_accepted(
    arrays: Arrays, write: Callable[[Arrays], Path]
) -> None:
    expected = load_dataset(TASK, path=write(arrays)).arrays
    for key in KEYS[3:]:
        arrays[key] = arrays[key].reshape(-1, 1)
    arrays["rewards"] = arrays["rewards"].astype(np.float64)
    arrays["costs"] = arrays["costs"].astype(np.int64)
    arrays["terminals"] = arrays["terminals"].astype(np.float32)
    loaded = load_dataset(TASK, path=write(arrays)).arrays
    for key in KEYS:
        np.testing.assert_array_equal(loaded[key], expected[key])
        assert loaded[key].dtype == expected[key].dtype


def test_the_folder_is_the_environments_or_the_homes(
    arrays: Arrays, write: Callable[[Arrays], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(arrays)
    monkeypatch.setenv("DSRL_DATASET_DIR", str(path.parent))
    assert load_dataset(TASK).path == path
    for unset in (lambda: monkeypatch.setenv("DSRL_DATASET_DIR", ""), lambda: monkeypatch.delenv("DSRL_DATASET_DIR")):
        unset()
        monkeypatch.setenv("HOME", "/home/somebody")
        assert dataset_path(TASK, "dsrl") == Path("/home/somebody/.dsrl/datasets") / TASK.dataset_file


def test_a_missing_files_message_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSRL_DATASET_DIR", str(tmp_path))
    place = re.escape(str(tmp_path / TASK.dataset_file))
    with pytest.raises(UserError, match=f"BallRun is missing: {place}. 'lspc-bench data download BallRun' gets it"):
        load_dataset(TASK)
    with pytest.raises(UserError, match=r"no demo data for OfflineCarRun-v0, only for OfflineBall.*source: dsrl"):
        require_file(find_task("CarRun"), "demo")


@pytest.mark.parametrize("task_id", ["OfflineBallRun-v0", "OfflineBallCircle-v0"])
def test_demo_data_load_and_match_their_manifests(task_id: str) -> None:
    dataset = load_dataset(find_task(task_id), "demo")
    manifest = json.loads(Path(f"{dataset.path}.json").read_text())
    found = dataset.task.id, dataset.sha256, len(dataset), len(dataset.trajectories)
    assert found == tuple(manifest[key] for key in ("task", "sha256", "transitions", "trajectories"))
    assert (dataset.source, dataset.warnings) == ("demo", ())


# What is held out


def test_a_split_is_by_whole_trajectories_and_loses_none(arrays: Arrays, write: Callable[[Arrays], Path]) -> None:
    whole = load_dataset(TASK, path=write(arrays))
    training, held_out = whole.split(0.34, seed=3)
    assert (len(training.trajectories), len(held_out.trajectories)) == (2, 1)
    (start,) = [row for row in range(0, ROWS, 4) if whole.arrays["rewards"][row] == held_out.arrays["rewards"][0]]
    held = np.isin(np.arange(ROWS), np.arange(start, start + 4))
    for key in KEYS:
        assert np.array_equal(held_out.arrays[key], whole.arrays[key][held])
        assert np.array_equal(training.arrays[key], whole.arrays[key][~held])
    assert (training.path, training.sha256, training.task) == (whole.path, whole.sha256, whole.task)
    again, _ = whole.split(0.34, seed=3)
    assert np.array_equal(training.arrays["rewards"], again.arrays["rewards"])


def test_a_larger_share_holds_out_what_a_smaller_one_does_and_a_seed_says_which() -> None:
    whole = load_dataset(TASK, "demo")
    returns = [set(whole.split(share, 0)[1].trajectories.reward_returns().tolist()) for share in (0.1, 0.2, 0.5)]
    assert [len(one) for one in returns] == [20, 40, 100]
    assert returns[0] < returns[1] < returns[2]
    other = set(whole.split(0.1, 1)[1].trajectories.reward_returns().tolist())
    assert other != returns[0]


def test_a_split_keeps_an_unfinished_trajectory_whole(arrays: Arrays, write: Callable[[Arrays], Path]) -> None:
    arrays["timeouts"][-1] = False
    whole = load_dataset(TASK, path=write(arrays))
    for seed in range(6):
        parts = whole.split(0.34, seed)
        assert sorted(part.trajectories.unfinished for part in parts) == [False, True]
        assert sorted(length for part in parts for length in part.trajectories.lengths) == [4, 4, 4]


@pytest.mark.parametrize(("share", "left"), [(0.1, "none held out"), (0.9, "none to train on")])
def test_a_split_that_leaves_a_side_empty_is_refused(
    arrays: Arrays, write: Callable[[Arrays], Path], share: float, left: str
) -> None:
    whole: Dataset = load_dataset(TASK, path=write(arrays))
    with pytest.raises(UserError, match=f"{whole.path}: a holdout of {share} of its 3 trajectories leaves {left}"):
        whole.split(share, 0)


def test_safe_marks_the_steps_of_trajectories_within_the_middle_limit(
    arrays: Arrays, write: Callable[[Arrays], Path]
) -> None:
    arrays["costs"][:] = [5.0] * 4 + [6.0] * 4 + [0.0] * 4  # BallRun's limits are 10, 20 and 40
    safe = load_dataset(TASK, path=write(arrays)).column("safe")
    assert safe.tolist() == [1.0] * 4 + [0.0] * 4 + [1.0] * 4
