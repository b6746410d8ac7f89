"""Policies come back from the store as they were, and films show the episodes that were evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from running import call, plan_of, run

from harness import simulators
from harness.errors import UserError
from harness.evaluation import roll_out
from harness.plan import Plan
from harness.policies import restore_policy
from harness.rendering import save
from harness.store import Store
from harness.tasks import find_task


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every algorithm of the demo, hardly trained."""
    folder = tmp_path_factory.mktemp("results")
    overrides = ["tasks=[BallRun]", "steps=3", "seeds=1", "cost_limits=[10, 20]", "evaluation={final: 2}"]
    options = [option for override in overrides for option in ("--set", override)]
    done = run("demo", folder, *options)
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def plan(results: Path) -> Plan:
    return plan_of(results)


def test_policies_come_back_as_they_were(results: Path, plan: Plan) -> None:
    store = Store(results)
    seen = set()
    for planned in plan.cells:
        cell = planned.cell
        episodes = store.episodes(cell)
        for name in planned.rows:
            policy = restore_policy(store, cell, name)
            for limit in cell.evaluation_limits if cell.told_limit else (None,):
                mine = episodes[episodes["policy"] == name]
                if limit is not None:
                    mine = mine[mine["cost_limit"] == limit]
                again = roll_out(cell.definition, policy, mine["seed"].tolist(), limit)
                assert [episode.episode_return for episode in again] == mine["episode_return"].tolist(), name
                assert [episode.cost for episode in again] == mine["cost"].tolist(), name
            seen.add(name)
    classic = {"lspc-s", "lspc-o", "bc-all", "bc-safe", "bcq-lag", "bear-lag", "cpq", "coptidice", "cdt"}
    assert seen == classic | {"caps-iql", "caps-sac", "ccac", "fisor", "trac"}


@pytest.mark.parametrize("name", ["BallRun", "CarCircle", "PointGoal1", "SwimmerVelocity", "easysparse"])
def test_pictures_change_nothing_and_show_something(name: str) -> None:
    task = find_task(name)
    try:
        simulators.require_simulator(task)
    except UserError as error:
        pytest.skip(str(error))

    def episode(drawn: bool) -> tuple[list[Any], list[Any]]:
        environment = simulators.make(task, drawn=drawn)
        records: list[Any] = [environment.reset(3).tobytes()]
        pictures = []
        for action in np.random.default_rng(0).uniform(-0.2, 0.8, (20, task.action_size)).astype(np.float32):
            if drawn:
                pictures.append(environment.draw())
            observation, *rest = environment.step(action)
            records.append((observation.tobytes(), *rest))
        environment.close()
        return records, pictures

    plain, _ = episode(drawn=False)
    drawn, pictures = episode(drawn=True)
    assert drawn == plain
    assert {(picture.dtype, picture.ndim, picture.shape[2]) for picture in pictures} == {(np.dtype(np.uint8), 3, 3)}
    assert min(pictures[0].shape[:2]) >= 300
    assert pictures[0].std() > 5  # not all of one colour
    assert any(not np.array_equal(pictures[0], picture) for picture in pictures[1:])


def test_a_film_shows_the_evaluated_episode(results: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "film.gif"
    common = ("render", results, "--task", "BallRun", "--every", 10)
    done = call(*common, "--policy", "cdt", "--limit", 20, "--episode", 1, "--output", path)
    assert done.exit_code == 0, done.output
    assert f"Wrote {path}: 11 frames of 100 steps, return " in done.stdout
    assert done.stdout.endswith(" of 20. As evaluated.\n")
    with Image.open(path) as image:
        assert (image.n_frames, image.size) == (11, (480, 404))
        first = np.asarray(image.convert("RGB"))
        image.seek(10)
        last = np.asarray(image.convert("RGB"))
    assert not np.array_equal(first[:360], last[:360])  # the picture
    assert not np.array_equal(first[360:], last[360:])  # step, reward and cost under it
    again = call(*common, "--policy", "bc-safe", "--output", tmp_path / "film.mp4")
    assert again.exit_code == 0, again.output
    assert "As evaluated." in again.stdout
    assert (tmp_path / "film.mp4").read_bytes()[4:8] == b"ftyp"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "BalRun", "--policy", "cdt"], "the suite demo has no task 'BalRun'. Did you mean 'BallRun'?"),
        (["--task", "BallRun", "--policy", "cdtt"], "no policy 'cdtt' there, only lspc-s"),
        (["--task", "BallRun", "--policy", "cdt", "--limit", "7"], "no cost limit 7 there, only 10, 20"),
        (["--task", "BallRun", "--policy", "cdt", "--episode", "2"], "evaluated in 2 episodes, counted from 0"),
        (["--task", "BallRun", "--policy", "cdt", "--seed", "4"], "no seed 4 there"),
        (["--task", "BallRun", "--policy", "cdt", "--output", "film.avi"], "must end in .gif or .mp4"),
        (["--task", "BallRun", "--policy", "cdt", "--suite", "dmo"], "no suite 'dmo' ran"),
    ],
)
def test_what_cannot_be_filmed_is_refused(results: Path, options: list[str], message: str) -> None:
    done = call("render", results, *options)
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_film_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(path: str, *_: Any, **__: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("imageio_ffmpeg.write_frames", break_off)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path / "film.mp4", [np.zeros((8, 8, 3), np.uint8)])
    assert list(tmp_path.iterdir()) == []
