"""Agents learn and keep to their targets; their data follows from the recipe, whatever happens on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data import agents as module
from harness.data.agents import (
    FREE,
    LABEL,
    Learner,
    Recipe,
    Scale,
    _gather,
    _sums,
    advantages,
    choose,
    collect_agents,
    train_agent,
)
from harness.data.collect import Arrays, Manifest
from harness.data.dataset import KEYS, load_dataset
from harness.errors import ResultsError, UserError
from harness.simulators import SimulatorError
from harness.tasks import Task, find_task

STEPS = 10


class Tempting(gymnasium.Env[Any, Any]):
    """What earns, costs: the reward is the action, and each action above 0 costs 1. Looking at the state is no use."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 1).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, ...]:
        observation = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return observation, float(action[0]), False, False, {"cost": float(action[0] > 0)}


@pytest.fixture
def tempting(monkeypatch: pytest.MonkeyPatch) -> Task:
    specification = gymnasium.envs.registration.EnvSpec(id="Tempting-v0", entry_point=Tempting)
    monkeypatch.setitem(gymnasium.registry, "Tempting-v0", specification)
    return own("Tempting-v0", 1, STEPS)


@pytest.fixture
def reach(plugins: Path) -> Task:
    """One that workers find, too."""
    return own("lspc_bench_test_plugins:Reach-v0", 2, 20)


def own(environment: str, size: int, steps: int) -> Task:
    return replace(
        find_task("BallRun"),
        id="Mine",
        name="Mine",
        family="own",
        environment=environment,
        observation_size=size,
        action_size=size,
        max_episode_steps=steps,
    )


class Here:
    """Stands in for the processes: the same work, in this one."""

    def __init__(self, workers: int, start: Callable[[], None], tasks_a_worker: int) -> None:
        (module._made,) = start.args  # type: ignore[attr-defined]

    def submit(self, function: Any, *args: Any, tries: int) -> Future[None]:
        future: Future[None] = Future()
        future.set_result(function(*args))
        return future

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *error: object) -> None:
        pass


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_made", None)
    monkeypatch.setattr(module, "Pool", Here)


def total(episode: Arrays, key: str) -> float:
    return float(episode[key].sum(dtype=np.float64))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"observation": np.nan}, "Mine gave an observation that is not finite at step 1: entry 0 is nan"),
        ({"reward": np.inf}, "Mine gave reward inf and cost 0.0 at step 1"),
        ({"cost": -1.0}, "Mine gave the negative cost -1.0 at step 1"),
    ],
)
def test_what_an_environment_may_not_give_is_no_data(
    tempting: Task, monkeypatch: pytest.MonkeyPatch, given: dict[str, float], message: str
) -> None:
    def step(self: Any, action: Any) -> tuple[Any, ...]:
        observation = np.full(1, given.get("observation", 0.0), np.float32)
        return observation, given.get("reward", 0.0), False, False, {"cost": given.get("cost", 0.0)}

    monkeypatch.setattr(Tempting, "step", step)
    with pytest.raises(SimulatorError, match=message):
        train_agent(tempting, Recipe((2.0,), 10), 0, lambda _: None)


# What learning is made of


def test_advantages_are_those_computed_by_hand() -> None:
    # Errors: 1 + 0.99 * 2 - 1 = 1.98; 0 + 0.99 * 4 - 2 = 1.96; 2 + 0 - 4 = -2. Each counts 0.99 * 0.95 = 0.9405 a step.
    found = advantages(np.array([1.0, 0.0, 2.0]), np.array([1.0, 2.0, 4.0, 0.0]))
    last, middle = -2.0, 1.96 + 0.9405 * -2.0
    np.testing.assert_allclose(found, [1.98 + 0.9405 * middle, middle, last], rtol=1e-12)


@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=4),
    st.integers(0, 1000),
    st.floats(-50, 50),
    st.floats(0.01, 100),
)
@settings(max_examples=25)
def test_scale_is_the_mean_and_deviation_of_all_that_it_saw(
    sizes: list[int], seed: int, middle: float, spread: float
) -> None:
    generator = np.random.default_rng(seed)
    batches = [middle + spread * generator.standard_normal((size, 3)) for size in (2, *sizes)]
    scale = Scale(3)
    assert scale.std.tolist() == [1, 1, 1]
    for batch in batches:
        scale.add(batch)
    everything = np.concatenate(batches)
    np.testing.assert_allclose(scale.mean, everything.mean(0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(scale.std, everything.std(0), rtol=1e-4)
    scaled = (everything - everything.mean(0)) / everything.std(0)
    np.testing.assert_allclose(scale(everything).numpy(), scaled, rtol=1e-3, atol=1e-3)
    assert scale(everything + 1e3 * spread * len(everything)).max() == 10


def test_scale_leaves_alone_what_never_varies() -> None:
    scale = Scale(1)
    scale.add(np.full((5, 1), 7.0))
    assert scale.std.tolist() == [1]
    assert scale(np.array([[7.0], [8.0]])).tolist() == [[0], [1]]


def test_defaults_follow_the_tasks_limits() -> None:
    assert Recipe.default(find_task("BallRun")) == Recipe((2, 8, 15, 25, 40, 60, FREE), 120_000)
    twice = replace(find_task("BallRun"), cost_limits=(20, 40, 80))
    assert Recipe.default(twice).targets == (4, 16, 30, 50, 80, 120, FREE)
    assert find_task("PointGoal1").cost_limits == (20, 40, 80)
    # And agents that see few episodes in so many steps are given more.
    assert Recipe.default(find_task("PointGoal1")) == replace(Recipe.default(twice), steps=300_000)
    # No share of a limit of 0 is a target.
    assert Recipe.default(replace(twice, cost_limits=(0.0,))) == Recipe.default(find_task("BallRun"))


def episode(cost: float) -> Arrays:
    """One of Tempting's in which nothing happens but its cost."""
    generator = np.random.default_rng(0)
    vectors = ("observations", "next_observations", "actions", "raw_actions")
    arrays = {key: generator.uniform(-1, 1, (STEPS, 1)).astype(np.float32) for key in vectors}
    arrays["rewards"] = np.zeros(STEPS, dtype=np.float32)
    arrays["costs"] = np.full(STEPS, cost / STEPS, dtype=np.float32)
    arrays["terminals"] = np.zeros(STEPS, dtype=bool)
    return arrays | {"timeouts": np.arange(STEPS) == STEPS - 1}


@pytest.mark.parametrize(
    ("target", "cost", "expected"),
    [
        (4, 6, [1.075, 1.15]),  # half as much again: half a step of 0.15
        (4, 400, [1.3, 1.6]),  # two steps at most
        (4, 4, [1.0, 1.0]),
        (4, 2, [0.925, 0.85]),
        (FREE, 400, [0.0, 0.0]),
    ],
)
def test_the_multiplier_follows_the_cost(tempting: Task, target: float, cost: float, expected: list[float]) -> None:
    learner = Learner(tempting, target, seed=0)
    found = []
    for _ in expected:
        learner.learn([episode(cost)])
        found.append(learner.multiplier)
    assert found == pytest.approx(expected, abs=1e-6)


def test_the_multiplier_stays_between_nothing_and_its_most(tempting: Task) -> None:
    learner = Learner(tempting, 4, seed=0)
    learner.multiplier = 0.05
    learner.learn([episode(0)])
    assert learner.multiplier == 0
    learner.multiplier = 19.9
    learner.learn([episode(400)])
    assert learner.multiplier == 20


def test_agents_learn_to_earn_and_to_keep_to_their_targets(tempting: Task) -> None:
    recipe = Recipe((2.0, FREE), 6_000)
    told: list[int] = []
    careful, free = (train_agent(tempting, recipe, index, told.append) for index in range(2))
    assert sum(told) == 12_000
    assert len(careful) == len(free) == 600
    first, last = free[:20], free[-20:]
    assert np.mean([total(one, "rewards") for one in first]) < 2  # noise around 0
    assert np.mean([total(one, "rewards") for one in last]) > 8  # of 10
    assert np.mean([total(one, "costs") for one in last]) > 9.5
    assert np.mean([total(one, "costs") for one in careful[:20]]) > 4
    assert np.mean([total(one, "costs") for one in careful[-20:]]) < 2.5
    for one in (*careful, *free):
        assert set(one) == set(KEYS)
        assert np.abs(one["actions"]).max() <= 1
        assert one["timeouts"].tolist() == [False] * (STEPS - 1) + [True]
        assert not one["terminals"].any()
        np.testing.assert_array_equal(one["next_observations"][:-1], one["observations"][1:])


def test_an_agent_repeats_in_a_simulator() -> None:
    """Whatever ran before in the process."""
    ball, recipe = find_task("BallRun"), Recipe((5.0, FREE), 2_001)  # two updates
    first, other, again = (train_agent(ball, recipe, index, lambda steps: None) for index in (0, 1, 0))
    assert len(first) == len(again) == 40
    for one, same in zip(first, again, strict=True):
        for key in KEYS:
            np.testing.assert_array_equal(one[key], same[key])
    assert (first[0]["observations"][:1] != other[0]["observations"][:1]).any()


# Thinning


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(-1000, 1000)), min_size=1, max_size=60),
    st.integers(1, 80),
    st.integers(1, 12),
    st.integers(0, 5),
)
@settings(max_examples=100)
def test_so_many_are_chosen_in_order(points: list[tuple[float, float]], count: int, bins: int, seed: int) -> None:
    costs, returns = np.array(points).T
    chosen = choose(costs, returns, count, bins, seed)
    assert len(chosen) == min(count, len(points))
    assert (np.diff(chosen) > 0).all()
    assert 0 <= chosen[0] <= chosen[-1] < len(points)
    np.testing.assert_array_equal(choose(costs, returns, count, bins, seed), chosen)


def test_the_crowded_make_room_for_the_rare() -> None:
    # 900 alike; and, among the other 100, ten in each of ten cells.
    rare = np.repeat(np.arange(1, 11), 10).astype(np.float64)
    costs, returns = np.r_[np.zeros(900), 9 * rare], np.r_[np.zeros(900), 100 * rare]
    chosen = choose(costs, returns, 110, bins=11, seed=0)
    assert np.count_nonzero(chosen >= 900) == 100
    # One cell: as many as wanted, drawn from all.
    assert len(choose(costs, returns, 110, bins=1, seed=0)) == 110
    assert (choose(costs, returns, 110, bins=1, seed=0) != choose(costs, returns, 110, bins=1, seed=1)).any()


def test_what_is_kept_is_gathered_from_all_agents(tmp_path: Path) -> None:
    lengths = [[2, 1, 3], [4], [1, 1]]
    values = iter(range(100))
    episodes: list[Any] = []
    for index, agent in enumerate(lengths):
        own = [np.array([next(values) for _ in range(length)], dtype=np.float32) for length in agent]
        joined = np.concatenate(own)
        np.savez(tmp_path / f"{index}.npz", lengths=agent, observations=joined[:, None], costs=joined, rewards=-joined)
        episodes += own
    paths = [tmp_path / f"{index}.npz" for index in range(3)]
    sums = [_sums(path) for path in paths]
    assert [sums[0]["costs"].tolist(), sums[0]["rewards"].tolist()] == [[1, 2, 12], [-1, -2, -12]]
    assert np.concatenate([one["costs"] for one in sums]).tolist() == [episode.sum() for episode in episodes]
    for kept in ([0, 2, 3, 5], [1], [3, 4], list(range(6))):
        gathered = _gather(paths, np.isin(np.arange(6), kept))
        assert list(gathered) == ["observations", "costs", "rewards"]
        assert gathered["costs"].tolist() == np.concatenate([episodes[index] for index in kept]).tolist()
        assert gathered["observations"].shape == (len(gathered["costs"]), 1)


# The file

RECIPE = Recipe((3.0, FREE), 800, seed=2)


def collect(task: Task, path: Path, recipe: Recipe = RECIPE, trajectories: int = 30, **options: Any) -> Manifest:
    return collect_agents(task, path, recipe, trajectories, **options)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_file_is_what_its_manifest_says(reach: Task, tmp_path: Path, here: None) -> None:
    path = tmp_path / "new" / "a.hdf5"
    told: list[tuple[int, int]] = []
    manifest = collect(reach, path, bins=5, progress=lambda done, total: told.append((done, total)))
    assert files(tmp_path) == ["new/a.hdf5", "new/a.hdf5.json"]
    assert json.loads((tmp_path / "new" / "a.hdf5.json").read_text()) == manifest
    options = "--suite SUITE --targets 3,none --steps 800 --trajectories 30 --bins 5 --seed 2"
    command = f"lspc-bench data collect Mine --agents {options}"
    assert (manifest["task"], manifest["label"], manifest["command"]) == ("Mine", LABEL, command)
    assert (manifest["pool"], manifest["bins"], manifest["steps"], manifest["seed"]) == (80, 5, 800, 2)
    assert [(one["target"], one["episodes"]) for one in manifest["agents"]] == [(3.0, 40), (None, 40)]
    assert "gymnasium" in manifest["versions"]
    with h5py.File(path) as file:
        assert {key: file.attrs[key] for key in file.attrs} == {
            key: manifest[key] for key in ("task", "label", "command")
        }
    dataset = load_dataset(reach, "own", path)  # checked, also against the manifest
    assert (len(dataset), len(dataset.trajectories)) == (manifest["transitions"], manifest["trajectories"]) == (600, 30)
    # The steps done are told between two agents or later, never more than there are.
    assert {everything for _, everything in told} == {1600}
    assert max(done for done, _ in told) <= 1600


def test_a_file_follows_from_its_recipe(reach: Task, tmp_path: Path, here: None) -> None:
    first = collect(reach, tmp_path / "a.hdf5", keep_pool=True)
    pool = tmp_path / ".a.hdf5.pool"
    agents = {path.name: path.read_bytes() for path in pool.iterdir()}
    assert sorted(agents) == [f"{RECIPE.digest(reach)}-{index}.npz" for index in range(2)]
    # Another place, and other random numbers before.
    np.random.seed(5)
    assert collect(reach, tmp_path / "b.hdf5") == first
    assert (tmp_path / "b.hdf5").read_bytes() == (tmp_path / "a.hdf5").read_bytes()
    # Interrupted when one agent was done: whichever it was, the other follows as it would have.
    for lost in agents:
        (pool / lost).unlink()
        (tmp_path / "a.hdf5").unlink()
        assert collect(reach, tmp_path / "a.hdf5", keep_pool=True) == first
        assert (tmp_path / "a.hdf5").read_bytes() == (tmp_path / "b.hdf5").read_bytes()


def test_processes_make_the_same_file(reach: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = collect(reach, tmp_path / "a.hdf5", jobs=2)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_made", None)
        patch.setattr(module, "Pool", Here)
        assert collect(reach, tmp_path / "b.hdf5") == first
    assert (tmp_path / "a.hdf5").read_bytes() == (tmp_path / "b.hdf5").read_bytes()
    assert files(tmp_path) == ["a.hdf5", "a.hdf5.json", "b.hdf5", "b.hdf5.json"]


def test_a_pool_is_thinned_again_without_training(
    reach: Task, tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.hdf5"
    collect(reach, path, keep_pool=True)
    assert len(files(tmp_path)) == 4
    monkeypatch.setattr(module, "train_agent", None)
    monkeypatch.setattr(module, "Pool", None)
    assert collect(reach, path, trajectories=20, keep_pool=True)["trajectories"] == 20
    everything = collect(reach, path, trajectories=1000)  # as many as there are
    assert (everything["trajectories"], everything["pool"]) == (80, 80)
    assert files(tmp_path) == ["a.hdf5", "a.hdf5.json"]


def test_a_pool_of_another_recipe_is_not_used(
    reach: Task, tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect(reach, tmp_path / "a.hdf5", keep_pool=True)
    trained: list[tuple[Recipe, int]] = []

    def train(task: Task, recipe: Recipe, index: int, progress: Any) -> list[Arrays]:
        trained.append((recipe, index))
        return train_agent(task, recipe, index, progress)

    monkeypatch.setattr(module, "train_agent", train)
    others = (replace(RECIPE, seed=3), replace(RECIPE, steps=400), replace(RECIPE, targets=(3.0, 4.0)))
    found = {collect(reach, tmp_path / "a.hdf5", other, keep_pool=True)["sha256"] for other in others}
    assert trained == [(other, index) for other in others for index in range(2)]
    assert len(found) == 3
    longer = replace(reach, max_episode_steps=25)
    assert RECIPE.digest(longer) != RECIPE.digest(reach)
    # Without keep_pool the own agents go, and what an interrupted process had begun; those of other recipes stay.
    pool = tmp_path / ".a.hdf5.pool"
    (pool / ".b.npz.1.tmp").touch()
    collect(reach, tmp_path / "a.hdf5")
    assert sorted(path.name for path in pool.iterdir()) == sorted(
        f"{other.digest(reach)}-{index}.npz" for other in others for index in range(2)
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"recipe": Recipe((), 400)},
        {"recipe": Recipe((3.0, 0.0), 400)},
        {"recipe": Recipe((-1.0,), 400)},
        {"recipe": Recipe((float("nan"),), 400)},
        {"recipe": Recipe((3.0, float("nan")), 400)},
        {"recipe": Recipe((3.0,), 0)},
        {"recipe": Recipe((3.0,), 400, seed=-1)},
        {"trajectories": 0},
        {"bins": 0},
        {"jobs": 0},
    ],
)
def test_what_makes_no_sense_is_refused(reach: Task, tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="at least"):
        collect(reach, tmp_path / "a.hdf5", **wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_file_to_write(reach: Task, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        collect(reach, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_an_agent_raises_is_not_lost(
    reach: Task, tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is written, but what the agents before it did."""
    first = train_agent

    def train(task: Task, recipe: Recipe, index: int, progress: Any) -> list[Arrays]:
        if index == 1:
            raise ArithmeticError("gives up")
        return first(task, recipe, index, progress)

    monkeypatch.setattr(module, "train_agent", train)
    with pytest.raises(ArithmeticError, match="gives up"):
        collect(reach, tmp_path / "a.hdf5")
    assert all(name.startswith(".a.hdf5.pool/") for name in files(tmp_path))


DYING = """\
import os
import gymnasium
import lspc_bench_test_plugins

class Dying(lspc_bench_test_plugins.Reach):
    def step(self, action):
        os._exit(3)

gymnasium.register("Dying-v0", Dying)
"""


def test_a_process_that_dies_is_told(reach: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lspc_bench_dying.py").write_text(DYING)
    monkeypatch.syspath_prepend(tmp_path)  # workers have it, too
    dying = replace(reach, environment="lspc_bench_dying:Dying-v0")
    with pytest.raises(ResultsError, match=r"an agent of Mine died: the worker process ended with status 3\. The same"):
        collect(dying, tmp_path / "a.hdf5")
    assert not (tmp_path / "a.hdf5").exists()


def test_a_write_that_fails_leaves_what_was_there(
    reach: Task, tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect(reach, tmp_path / "a.hdf5", keep_pool=True)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def break_off(path: Path, *_: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(module, "write", break_off)
    with pytest.raises(OSError, match="disk full"):
        collect(reach, tmp_path / "a.hdf5", trajectories=5)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
