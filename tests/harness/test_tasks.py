"""The table of tasks is DSRL's, and its sizes are the simulators'; normalisation is DSRL's; patterns select."""

from __future__ import annotations

import fnmatch
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import load
from hypothesis import given
from hypothesis import strategies as st

from harness import simulators
from harness.errors import UserError
from harness.tasks import FAMILIES, Task, all_tasks, find_task, matches, normalize_cost, select_tasks

TASKS = list(all_tasks().values())
SIMULATED = [task for task in TASKS if task.family != "metadrive"]
# Task name and quantity -> (DSRL's value, reason), where the table differs from the package on purpose.
DIFFERENCES: dict[tuple[str, str], tuple[Any, str]] = {}


def load_dsrl(module: str) -> ModuleType:
    """A module of DSRL by its path: importing the package would import every simulator."""
    try:
        path = next(Path(str(file.locate())) for file in files("dsrl") or () if str(file) == f"dsrl/{module}.py")
    except (PackageNotFoundError, StopIteration):
        pytest.skip("dsrl is not installed")
    return load(path)


def test_table_is_dsrls() -> None:
    infos = load_dsrl("infos")
    names = {task.name for task in TASKS}
    assert len(TASKS) == 38
    theirs = {
        "dataset_file": {name: url.rsplit("/", 1)[-1] for name, url in infos.DATASET_URLS.items()},
        "max_episode_steps": infos.DEFAULT_MAX_EPISODE_STEPS,
        "min_episode_reward": infos.MIN_EPISODE_REWARD,
        "max_episode_reward": infos.MAX_EPISODE_REWARD,
        "min_episode_cost": infos.MIN_EPISODE_COST,
        "max_episode_cost": infos.MAX_EPISODE_COST,
    }
    assert all(set(values) == names for values in theirs.values())
    differences = {
        (task.name, key): values[task.name]
        for key, values in theirs.items()
        for task in TASKS
        if getattr(task, key) != values[task.name]
    }
    assert differences == {place: value for place, (value, _) in DIFFERENCES.items()}


def test_families_and_limits_are_those_of_the_protocol() -> None:
    counts = {family: sum(task.family == family for task in TASKS) for family in FAMILIES}
    assert counts == {"bullet": 8, "navigation": 16, "velocity": 5, "metadrive": 9}
    for task in TASKS:
        loose = task.family in ("navigation", "velocity")
        assert task.cost_limits == ((20, 40, 80) if loose else (10, 20, 40)), task.name


@pytest.mark.parametrize("task", SIMULATED, ids=lambda task: task.name)
def test_sizes_are_the_simulators(task: Task) -> None:
    if task.family != "bullet":
        pytest.importorskip("safety_gymnasium")
    environment = simulators.make(task)
    sizes = environment.observation_size, environment.action_size
    environment.close()
    assert sizes == (task.observation_size, task.action_size)


def test_normalisation_is_dsrls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSRL_DATASET_DIR", str(tmp_path))  # the module makes this folder when it is imported
    offline_env = load_dsrl("offline_env").OfflineEnv

    # Costs and limits of few digits: the smallest excess over a limit is then not lost in rounding.
    costs, limits = (st.integers(0, most).map(lambda value: value / 8) for most in (10_000, 1000))

    @given(st.sampled_from(TASKS), st.floats(-1e4, 1e4), costs, st.just(0.0) | limits)
    def check(task: Task, reward: float, cost: float, limit: float) -> None:
        theirs = offline_env(task.max_episode_reward, task.min_episode_reward)
        theirs.set_target_cost(limit)
        ours = task.normalize_reward(reward), normalize_cost(cost, limit)
        assert ours == theirs.get_normalized_score(reward, cost)
        assert (ours[1] <= 1) == (cost <= limit)

    check()


@given(st.lists(st.sampled_from(TASKS).flatmap(lambda task: st.sampled_from((task.id, task.name))), min_size=1))
def test_names_select_their_tasks_once_in_the_tables_order(names: list[str]) -> None:
    chosen = select_tasks(names)
    assert set(chosen) == {find_task(name) for name in names}
    assert chosen == sorted(set(chosen), key=TASKS.index)


@given(st.sampled_from(TASKS), st.data())
def test_a_glob_selects_what_it_matches(task: Task, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(task.name)))
    end = data.draw(st.integers(start, len(task.name)))
    pattern = f"{task.name[:start]}*{task.name[end:]}"
    chosen = select_tasks([pattern])
    assert task in chosen
    assert chosen == [one for one in TASKS if any(fnmatch.fnmatchcase(key, pattern) for key in (one.id, one.name))]
    assert all(matches(one, pattern) == (one in chosen) for one in TASKS)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_select(family: str) -> None:
    assert select_tasks([family]) == [task for task in TASKS if task.family == family]


def test_all_selects_all_and_globs_take_case_and_families_literally() -> None:
    assert select_tasks(["all", "CarRun"]) == TASKS
    assert [task.name for task in select_tasks(["Ball*", "velocity"])[:3]] == ["BallCircle", "BallRun", "AntVelocity"]
    with pytest.raises(UserError, match="no task matches 'ball\\*'"):
        select_tasks(["all", "ball*"])


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("CarCirle", "CarCircle"),
        ("OfflineBalRun-v0", "OfflineBallRun-v0"),
        ("carrun", "CarRun"),
        ("vellocity", "velocity"),
    ],
)
def test_an_unknown_pattern_names_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(UserError, match=f"no task matches '{wrong}'. Did you mean '{right}'\\?.*lspc-bench tasks"):
        select_tasks([wrong])
    if right not in FAMILIES:
        with pytest.raises(UserError, match=f"unknown task '{wrong}'. Did you mean '{right}'\\?"):
            find_task(wrong)


def test_nothing_near_is_not_guessed() -> None:
    with pytest.raises(UserError) as error:
        find_task("xyzzy")
    assert "Did you mean" not in str(error.value)
