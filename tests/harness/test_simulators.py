"""Episodes depend on their seed alone, and equal what DSRL's own environments do."""

from __future__ import annotations

import contextlib
import io
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
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


def test_a_step_of_bullet_reads_the_agents_state_once_and_anew_when_something_changed() -> None:
    environment: Any = simulators.make(find_task("BallRun"))
    environment.reset(0)
    client, agent, reads = environment._env.unwrapped.bc, environment._env.unwrapped.agent, []
    read = client.getBaseVelocity

    def counted(body: int) -> Any:
        reads.append(body)
        return read(body)

    client.getBaseVelocity = counted
    for action in actions(environment, 0, steps=5):
        environment.step(action)
    assert len(reads) == 5
    agent.get_state()[:] = 7
    assert not (agent.get_state() == 7).any()
    client.resetBaseVelocity(agent.body_id, [1.5, 0, 0], [0, 0, 0])
    assert agent.get_state()[3] == 1.5
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


def test_drawing_one_bullet_environment_does_not_make_the_next_one_draw(capfd: pytest.CaptureFixture[str]) -> None:
    for drawn in (True, False):
        environment = simulators.make(find_task("BallRun"), drawn=drawn)
        environment.reset(0)
        environment.close()
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


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


@pytest.mark.parametrize("name", ["PointCircle1", "SwimmerVelocity", "easysparse"])
def test_the_others_are_truncated_at_dsrls_length(name: str) -> None:
    task = find_task(name)
    need(task)
    environment = simulators.make(task)
    environment.reset(0)
    still = np.zeros(task.action_size, dtype=np.float32)
    flags = [environment.step(still)[-2:] for _ in range(task.max_episode_steps)]
    assert flags == [(False, False)] * (len(flags) - 1) + [(False, True)]
    environment.close()


# All of them

ALL = list(all_tasks().values())


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.name)
def test_every_task_is_made_reset_and_stepped(task: Task) -> None:
    need(task)
    environment = simulators.make(task)
    assert (environment.observation_size, environment.action_size) == (task.observation_size, task.action_size)
    records = list(roll_out(environment, seed=3, steps=20))
    assert len(records) > 3
    for _, reward, cost, terminated, truncated in records[1:]:
        assert np.isfinite([reward, cost]).all()
        assert cost >= 0
        assert isinstance(terminated, bool)
        assert isinstance(truncated, bool)
    environment.close()


def need(task: Task) -> None:
    """Skip where the task's simulator is not installed."""
    try:
        simulators.require_simulator(task)
    except UserError as error:
        pytest.skip(str(error))


def test_simulators_may_follow_one_another_in_a_process() -> None:
    """In another order, and again after others, an episode is the same."""
    names = ["easydense", "BallRun", "PointGoal1", "mediumsparse", "CarCircle", "SwimmerVelocity"]
    for name in names:
        need(find_task(name))

    def episode(name: str) -> list[tuple[Any, ...]]:
        environment = simulators.make(find_task(name))
        try:
            return list(roll_out(environment, seed=9, steps=60))
        finally:
            environment.close()

    first = {name: episode(name) for name in names}
    for name in reversed(names):
        assert episode(name) == first[name], name


# MetaDrive


def drive(environment: Environment, seed: int, steps: int = 120) -> list[tuple[Any, ...]]:
    """An episode at full throttle, a little to and fro: it meets traffic."""
    records = [(environment.reset(seed).tobytes(),)]
    steering = np.random.default_rng(seed).normal(0, 0.02, steps)
    for angle in steering:
        observation, *rest = environment.step(np.array([angle, 0.6], np.float32))
        records.append((observation.tobytes(), *rest))  # type: ignore[arg-type]
        if rest[2] or rest[3]:
            break
    return records


def test_metadrive_depends_on_the_seed_alone() -> None:
    task = find_task("easydense")
    need(task)
    environment = simulators.make(task)
    np.random.seed(4)
    drawn = np.random.random()
    np.random.seed(4)
    first, other = drive(environment, 7), drive(environment, 8)
    assert np.random.random() == drawn  # global generators stay as they were
    assert first[0] == other[0]  # the car's own start is the scenario's; traffic comes into sight later
    assert first != other
    assert drive(environment, 7) == first
    environment.close()
    environment.close()
    again = simulators.make(task)
    assert drive(again, 7) == first
    with pytest.raises(RuntimeError, match="one environment in a process"):
        simulators.make(task)
    again.close()


@pytest.mark.parametrize("name", ["easydense", "mediummean", "hardsparse"])
def test_metadrive_equals_dsrls_class(name: str, dsrl: ModuleType) -> None:
    """With the traffic's generator seeded, which DSRL leaves to the operating system."""
    task = find_task(name)
    need(task)
    import gymnasium

    from harness.simulators import metadrive

    environment = simulators.make(task)
    mine = drive(environment, 5)
    environment.close()
    assert len(mine) > 20
    modules = {
        "gym": gymnasium,
        "gym.envs": gymnasium.envs,
        "gym.envs.registration": gymnasium.envs.registration,
    }
    with metadrive._standing_in(modules):
        from dsrl.offline_metadrive import gym_envs

    road = name.removesuffix("dense").removesuffix("mean").removesuffix("sparse")
    reference = getattr(gym_envs, f"{road.title()}{name.removeprefix(road).title()}Env")()
    reference.lazy_init()
    reference.engine.traffic_manager.np_random = np.random.RandomState(5)
    start = metadrive.ROADS[road][0]
    observation, _ = reference.reset(seed=start)
    assert np.float32(observation).tobytes() == mine[0][0]
    steering = np.random.default_rng(5).normal(0, 0.02, 120)
    for angle, record in zip(steering, mine[1:], strict=False):
        observation, reward, terminated, truncated, info = reference.step(np.array([angle, 0.6], np.float32))
        assert (np.float32(observation).tobytes(), reward, info["cost"], terminated, truncated) == record
    reference.close()


# Navigation, sooner

WITHOUT = """
import sys
from harness.simulators import safety_gymnasium
safety_gymnasium.speed_up = lambda: None
"""
EPISODES = """
import hashlib
import numpy as np
from harness import simulators
from harness.tasks import all_tasks

for task in all_tasks().values():
    if task.family == "navigation":
        environment = simulators.make(task)
        digest = hashlib.sha256(environment.reset(1).tobytes())
        generator, total = np.random.default_rng(1), 0.0
        for _ in range(400):
            action = np.clip(generator.uniform(-0.5, 1.5, environment.action_size), -1, 1)
            observation, *rest = environment.step(action.astype(np.float32))
            digest.update(observation.tobytes() + repr(rest).encode())
            total += rest[1]
        print(task.name, total > 0, digest.hexdigest())
        environment.close()
"""


@pytest.mark.long
def test_navigation_is_the_same_bit_for_bit_without_the_speed_up() -> None:
    pytest.importorskip("safety_gymnasium")
    plain, fast = (
        subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout
        for text in (WITHOUT + EPISODES, EPISODES)
    )
    assert fast == plain
    lines = plain.splitlines()
    assert len(lines) == 16
    assert sum("True" in line for line in lines) > 8, plain  # most meet what costs


def test_a_navigation_environments_first_episode_is_like_its_later_ones() -> None:
    """To the last bit of the reward: safety-gymnasium builds a first world in another way."""
    task = find_task("CarCircle2")
    need(task)
    fresh, used = simulators.make(task), simulators.make(task)
    list(roll_out(used, seed=4))
    assert list(roll_out(fresh, seed=3)) == list(roll_out(used, seed=3))
    for environment in (fresh, used):
        environment.close()


def test_worlds_have_their_sky_only_for_pictures() -> None:
    pytest.importorskip("safety_gymnasium")
    from harness.simulators.navigation import sky

    environment: Any = simulators.make(find_task("PointCircle1"))

    def textures() -> int:
        environment.reset(0)
        return int(environment._env.unwrapped.task.model.ntex)

    without = textures()
    with sky():
        assert textures() == without + 1
    assert textures() == without
    environment.close()


# A user's own


def own(environment: str) -> Task:
    sizes = {"observation_size": 2, "action_size": 2, "max_episode_steps": 20}
    return replace(
        find_task("BallRun"),
        id="Mine",
        name="Mine",
        family="own",
        environment=f"lspc_bench_test_plugins:{environment}-v0",
        **sizes,  # type: ignore[arg-type]
    )


def test_an_own_environment_depends_on_its_seed_alone(plugins: Path) -> None:
    used, fresh = simulators.make(own("Reach")), simulators.make(own("Reach"))
    np.random.seed(1)
    expected = list(roll_out(used, seed=4))
    assert len(expected) == 21  # truncated at the suite's length
    assert expected[-1][-1] is True
    np.random.seed(2)
    assert list(roll_out(used, seed=3)) != expected
    assert list(roll_out(used, seed=4)) == list(roll_out(fresh, seed=4)) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ("Free", "an info without 'cost', the cost of the step, at step 1"),
        ("Six", "SafetyGymnasium2Gymnasium turns its six values"),
    ],
)
def test_an_own_environment_that_cannot_serve_is_refused(plugins: Path, environment: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        simulators.require_simulator(own(environment))


def test_what_cannot_be_made_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulators, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=r"metadrive.*make metadrive"):
        simulators.make(find_task("OfflineMetadrive-easysparse-v0"))
    with pytest.raises(UserError, match=r"bullet_safety_gym.*pip install"):
        simulators.make(find_task("BallRun"))
    with pytest.raises(UserError, match=r"safety_gymnasium.*make install"):
        simulators.make(find_task("PointGoal1"))
