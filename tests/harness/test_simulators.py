"""Episodes depend on their seed alone, and equal what DSRL's own environments do."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from harness import simulators
from harness.errors import UserError
from harness.simulators import Environment, FloatArray
from harness.simulators.bullet import real_streams
from harness.tasks import Task, all_tasks, find_task

BULLET = [task for task in all_tasks().values() if task.family == "bullet"]
STEPS = 30

per_bullet_task = pytest.mark.parametrize("task", BULLET, ids=lambda task: task.name)


@pytest.fixture(scope="module")
def dsrl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """DSRL itself, which registers its environments when it is imported, and makes a folder for datasets."""
    pytest.importorskip("safety_gymnasium")
    from harness.simulators.safety_gymnasium import make_importable

    make_importable()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSRL_SUPPRESS_IMPORT_ERROR", "1")
        patch.setenv("DSRL_DATASET_DIR", str(tmp_path_factory.mktemp("dsrl")))
        yield pytest.importorskip("dsrl")


def actions(environment: Environment, seed: int, steps: int = STEPS) -> FloatArray:
    """Random actions, (steps, action_size) in [-1, 1]."""
    uniform = np.random.default_rng(seed).uniform(-1, 1, (steps, environment.action_size))
    return uniform.astype(np.float32)


def roll_out(environment: Environment, seed: int, steps: int = STEPS) -> Iterator[tuple[Any, ...]]:
    """The episode's records one by one: the first observation, then what each step returns; observations as bytes."""
    yield (environment.reset(seed).tobytes(),)
    for action in actions(environment, seed, steps):
        observation, *rest = environment.step(action)
        yield (observation.tobytes(), *rest)
        if rest[2] or rest[3]:
            return


@per_bullet_task
def test_bullet_episodes_depend_on_their_seed_alone(task: Task) -> None:
    fresh, used, *crowd = (simulators.make(task) for _ in range(5))
    expected = list(roll_out(fresh, seed=7))
    assert len(expected) > 2

    for other in (11, 12):
        list(roll_out(used, other, steps=task.max_episode_steps))
    assert list(roll_out(used, seed=7)) == expected
    assert list(roll_out(fresh, seed=7)) == expected
    assert list(roll_out(fresh, seed=8)) != expected

    # Several at once, stepped in turn, one of them with the same seed and one with a past.
    interleaved = [list(records) for records in zip(*(roll_out(env, 7) for env in (*crowd, used)), strict=True)]
    assert all(record == [wanted] * 4 for record, wanted in zip(interleaved, expected, strict=True))
    for environment in (fresh, used, *crowd):
        environment.close()


@pytest.mark.parametrize(("name", "gain", "damping"), [("BallRun", 5, 0.5), ("BallCircle", 5, 2)])
def test_a_ball_that_came_to_rest_where_it_began_leaves_no_contacts_behind(
    name: str, gain: float, damping: float
) -> None:
    """Bullet's restoreState keeps contact points, which turned the first steps of the next episode."""
    environment = simulators.make(find_task(name))

    def push() -> list[bytes]:
        return [environment.reset(5).tobytes(), *(environment.step(np.full(2, 0.3))[0].tobytes() for _ in range(50))]

    fresh = push()
    first = observation = environment.reset(5)
    for step in range(find_task(name).max_episode_steps):
        back = -gain * (observation[:2] - first[:2]) - damping * observation[2:4]
        stir = 0.3 * np.array([np.sin(0.9 * step), np.cos(0.9 * step)]) if step % 40 <= 15 else 0
        observation = environment.step((back + stir).clip(-1, 1).astype(np.float32))[0]
    assert push() == fresh
    environment.close()


@per_bullet_task
def test_bullet_equals_dsrl_step_for_step(task: Task, dsrl: ModuleType) -> None:
    import gymnasium

    environment = simulators.make(task)
    for seed in (3, 4):
        # A fresh one for each seed: DSRL's Cars and Drones start an episode with the motor targets of the last one.
        with real_streams():
            reference = gymnasium.make(task.id)
        assert reference.spec is not None
        assert reference.spec.max_episode_steps == task.max_episode_steps
        assert reference.observation_space.shape == (environment.observation_size,)
        assert reference.action_space.shape == (environment.action_size,)
        np.random.seed(seed)
        observation, _ = reference.reset()
        np.testing.assert_array_equal(environment.reset(seed), np.float32(observation))
        for action in actions(environment, seed, task.max_episode_steps):
            observation, reward, terminated, truncated, info = reference.step(action)
            mine, *rest = environment.step(action)
            np.testing.assert_array_equal(mine, np.float32(observation))
            assert rest == [reward, info["cost"], terminated, truncated]
            if terminated or truncated:
                break
        reference.close()
    environment.close()


def test_bullet_leaves_global_generators_and_standard_output_alone(capfd: pytest.CaptureFixture[str]) -> None:
    np.random.seed(0)
    random.seed(0)
    drawn = np.random.random(), random.random()

    np.random.seed(0)
    random.seed(0)
    environment = simulators.make(find_task("CarCircle"))
    list(roll_out(environment, seed=1))
    environment.close()
    environment.close()
    assert (np.random.random(), random.random()) == drawn
    assert capfd.readouterr().out == ""


def test_bullet_can_be_made_where_standard_output_has_no_file_descriptor() -> None:
    stand_in = io.TextIOWrapper(io.BytesIO())
    with contextlib.redirect_stdout(stand_in), contextlib.redirect_stderr(stand_in):
        simulators.make(find_task("BallRun")).close()
    assert stand_in.tell() == 0


@pytest.mark.parametrize("name", ["BallRun", "BallCircle"])
def test_bullet_is_truncated_at_dsrls_length(name: str) -> None:
    task = find_task(name)
    environment = simulators.make(task)
    records = list(roll_out(environment, seed=0, steps=1000))
    assert len(records) == task.max_episode_steps + 1
    assert records[-1][-2:] == (False, True)
    environment.close()


@pytest.mark.parametrize("name", ["PointCircle1", "HalfCheetahVelocity"])
def test_safety_gymnasium_equals_dsrl_and_repeats(name: str, dsrl: ModuleType) -> None:
    import gymnasium

    task = find_task(name)
    environment = simulators.make(task)
    reference = gymnasium.make(task.id, disable_env_checker=True)
    observation, _ = reference.reset(seed=5)
    np.testing.assert_array_equal(environment.reset(5), np.float32(observation))
    for action in actions(environment, 5):
        observation, reward, terminated, truncated, info = reference.step(action)
        mine, *rest = environment.step(action)
        np.testing.assert_array_equal(mine, np.float32(observation))
        assert rest == [reward, info["cost"], terminated, truncated]
    reference.close()

    used, again = list(roll_out(environment, 6)), list(roll_out(environment, 6))
    assert used == again
    environment.close()


@pytest.mark.parametrize("name", ["PointCircle1", "SwimmerVelocity"])
def test_safety_gymnasium_is_truncated_at_dsrls_length(name: str) -> None:
    pytest.importorskip("safety_gymnasium")
    task = find_task(name)
    environment = simulators.make(task)
    records = list(roll_out(environment, seed=0, steps=2000))
    assert len(records) == task.max_episode_steps + 1
    assert records[-1][-2:] == (False, True)
    environment.close()


def test_what_cannot_be_made_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="MetaDrive"):
        simulators.make(find_task("OfflineMetadrive-easysparse-v0"))
    monkeypatch.setattr(simulators, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=r"bullet_safety_gym.*pip install"):
        simulators.make(find_task("BallRun"))
    with pytest.raises(UserError, match=r"safety_gymnasium.*make install"):
        simulators.make(find_task("PointGoal1"))
