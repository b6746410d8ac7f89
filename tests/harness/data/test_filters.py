"""The filters equal dsrl's own, number for number, on the same data and seeds."""

from __future__ import annotations

import inspect
import random
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot
from numpy.typing import NDArray

from harness.data.dataset import Dataset
from harness.data.filters import DensityGrid, Filters, apply
from harness.errors import UserError
from harness.tasks import Task, all_tasks, find_task

TASK = find_task("CarCircle")  # rewards 3 to 534, costs to 100
Arrays = dict[str, NDArray[Any]]

MAIN = {
    # What GitHub's main has where the registry's 0.1.0 looks at the data's own extremes.
    "cost_min=cmin": "cost_min=self.min_episode_cost",
    "cost_max=cmax": "cost_max=self.max_episode_cost",
    "rew_min=rmin": "rew_min=self.min_episode_reward",
    "rew_max=rmax": "rew_max=self.max_episode_reward",
    "(cmax - cmin)": "(self.max_episode_cost - self.min_episode_cost)",
    "pcmin + cmin": "pcmin + self.min_episode_cost",
    "pcmax + cmin": "pcmax + self.min_episode_cost",
}


@pytest.fixture(scope="module")
def dsrl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    folder = tmp_path_factory.mktemp("dsrl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSRL_SUPPRESS_IMPORT_ERROR", "1")
        patch.setenv("DSRL_DATASET_DIR", str(folder))
        patch.setenv("MPLBACKEND", "Agg")
        patch.chdir(folder)  # dsrl saves a picture there
        pytest.importorskip("dsrl")
        from dsrl import offline_env

        yield offline_env


@pytest.fixture(scope="module")
def reference(dsrl: ModuleType) -> Callable[..., Arrays]:
    """``pre_process_data`` of dsrl's main branch."""
    source = textwrap.dedent(inspect.getsource(dsrl.OfflineEnv.pre_process_data))
    for old, new in MAIN.items():
        assert old in source
        source = source.replace(old, new)
    namespace: dict[str, Any] = dict(vars(dsrl))
    exec(source, namespace)

    def run(task: Task, arrays: Arrays, seed: int, target_cost: float, **settings: Any) -> Arrays:
        environment = dsrl.OfflineEnv(
            max_episode_reward=task.max_episode_reward,
            min_episode_reward=task.min_episode_reward,
            max_episode_cost=task.max_episode_cost,
            min_episode_cost=task.min_episode_cost,
        )
        environment.rng = np.random.Generator(np.random.PCG64(seed))
        environment.set_target_cost(target_cost)
        random.seed(seed)
        copies = {key: values.copy() for key, values in arrays.items()}
        processed: Arrays = namespace["pre_process_data"](environment, copies, **settings)
        pyplot.close("all")
        return processed

    return run


def make(seed: int, count: int = 300, rounded: bool = False) -> Dataset:
    """Trajectories of 20 to 60 steps; what they earn and cost goes beyond the task's bounds in places."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(20, 60, count)
    rows = int(lengths.sum())
    ends = np.cumsum(lengths) - 1
    grade = np.repeat(generator.uniform(0, 1.2, count), lengths)
    length = np.repeat(lengths, lengths)
    rewards = grade * 500 / length * generator.uniform(0.5, 1.5, rows)
    costs = (generator.uniform(size=rows) < grade * np.repeat(generator.uniform(0, 1, count), lengths)) * 3.0
    done = np.zeros(rows, dtype=bool)
    done[ends] = True
    terminals = done & (generator.uniform(size=rows) < 0.3)
    arrays = {
        "observations": generator.normal(3, 2, (rows, TASK.observation_size)).astype(np.float32),
        "next_observations": generator.normal(3, 2, (rows, TASK.observation_size)).astype(np.float32),
        "actions": generator.uniform(-1, 1, (rows, TASK.action_size)).astype(np.float32),
        "rewards": (rewards.round() if rounded else rewards).astype(np.float32),
        "costs": costs.astype(np.float32),
        "terminals": terminals,
        "timeouts": done & ~terminals,
    }
    return Dataset(TASK, Path("made-up.hdf5"), "dsrl", arrays)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ({"noise": 0.1}, {"noise_scale": 0.1}),
        ({"density": 0.5}, {"density": 0.5, "cbins": 10, "rbins": 50, "max_npb": 5, "min_npb": 2}),
        ({"density": 0.75}, {"density": 0.75, "cbins": 10, "rbins": 50, "max_npb": 9, "min_npb": 2}),
        (
            {"density_grid": DensityGrid(cost_bins=3, reward_bins=4, most=6, fewest=0)},
            {"density": 0.9, "cbins": 3, "rbins": 4, "max_npb": 6, "min_npb": 0},
        ),
        ({"outliers": 0.05}, {"outliers_percent": 0.05}),
        ({"outliers": 0.0001}, {"outliers_percent": 0.0001}),
        ({"inpaint": ((0.2, 0.6, 0.3, 0.9),)}, {"inpaint_ranges": ((0.2, 0.6, 0.3, 0.9),)}),
        ({"epsilon": 60.0}, {"epsilon": 60.0}),
        ({"epsilon": -60.0}, {"epsilon": -60.0}),
        (
            {"outliers": 0.05, "inpaint": ((0.0, 0.5, 0.0, 0.9),), "noise": 0.2},
            {"outliers_percent": 0.05, "inpaint_ranges": ((0.0, 0.5, 0.0, 0.9),), "noise_scale": 0.2},
        ),
        (
            {"density": 0.5, "outliers": 0.02, "epsilon": 40.0, "noise": 0.05},
            {
                **{"density": 0.5, "cbins": 10, "rbins": 50, "max_npb": 5, "min_npb": 2},
                **{"outliers_percent": 0.02, "epsilon": 40.0, "noise_scale": 0.05},
            },
        ),
    ],
)
def test_filters_equal_dsrls(
    reference: Callable[..., Arrays], mine: dict[str, Any], theirs: dict[str, Any], seed: int, rounded: bool
) -> None:
    dataset = make(seed, rounded=rounded)
    before = {key: values.copy() for key, values in dataset.arrays.items()}
    expected = reference(TASK, dataset.arrays, seed, 20.0, **theirs)
    filtered = apply(Filters(**mine, target_cost=20, filter_seed=seed), dataset)
    assert set(filtered.arrays) == set(expected)
    for key, values in expected.items():
        np.testing.assert_array_equal(filtered.arrays[key], values, err_msg=key)
        assert filtered.arrays[key].dtype == before[key].dtype
        np.testing.assert_array_equal(dataset.arrays[key], before[key])  # the original stays
    if "noise" not in mine or len(mine) > 1:
        assert len(filtered) != len(dataset) or "outliers" in mine
    else:
        assert not np.array_equal(filtered.arrays["observations"], before["observations"])


def test_the_densities_are_dsrls(dsrl: ModuleType) -> None:
    from dsrl.infos import DENSITY_CFG

    mine = {
        f"{task.id}_density{share:g}": Filters(density=share).thinning(task)
        for task in all_tasks().values()
        for share in (0.25, 0.5, 0.75)
        if f"{task.id}_density{share:g}" in DENSITY_CFG
    }
    assert len(mine) == len(DENSITY_CFG) == 60
    for name, theirs in DENSITY_CFG.items():
        grid = mine[name]
        assert grid is not None
        assert (grid.cost_bins, grid.reward_bins, grid.most, grid.fewest) == (
            *(theirs[key] for key in ("cbins", "rbins", "max_npb", "min_npb")),
        )
    with pytest.raises(UserError, match=r"no grid that leaves 0.5 of hardmean's trajectories \(none at all\)"):
        Filters(density=0.5).thinning(find_task("hardmean"))


def test_where_dsrl_has_bugs_the_right_trajectories_go() -> None:
    """Several inpainted ranges, and epsilon behind them: dsrl fails, or looks in the wrong places."""
    dataset = make(1)
    costs, rewards = dataset.trajectories.cost_returns(), dataset.trajectories.reward_returns()
    ranges = ((0.0, 0.05, 0.0, 1.0), (0.9, 1.0, 0.0, 1.0))
    filtered = apply(Filters(inpaint=ranges, epsilon=30.0, target_cost=20), dataset)
    inpainted = (costs <= 5) | (costs >= 90) & (costs <= 100)
    remaining = rewards[~inpainted]
    safe = costs[~inpainted] <= 20
    best = remaining[safe].max()
    kept = remaining[~(safe & (remaining >= best - 30))]
    np.testing.assert_allclose(filtered.trajectories.reward_returns(), kept, rtol=1e-5)


def test_nothing_asked_for_is_nothing_done() -> None:
    dataset = make(0)
    assert apply(Filters(), dataset) is dataset
    assert apply(Filters(target_cost=10, filter_seed=3), dataset) is dataset
    assert Filters().describe() == ""


def test_an_unfinished_trajectory_is_left_out() -> None:
    dataset = make(0)
    flags = dataset.arrays["terminals"], dataset.arrays["timeouts"]
    ends = np.flatnonzero(flags[0] | flags[1])
    for flag in flags:
        flag[ends[-1]] = False
    filtered = apply(Filters(noise=0.1), dataset)
    assert len(filtered) == ends[-2] + 1


def test_nothing_finished_is_nothing_to_filter() -> None:
    dataset = make(0, count=1)
    for flag in ("terminals", "timeouts"):
        dataset.arrays[flag][:] = False
    with pytest.raises(UserError, match="no finished trajectory"):
        apply(Filters(noise=0.1), dataset)


def kept(filters: Filters, dataset: Dataset) -> set[tuple[float, float]]:
    """Cost and reward of the trajectories that are left; no two of :func:`make` have both alike."""
    left = apply(filters, dataset).trajectories
    return set(zip(left.cost_returns().tolist(), left.reward_returns().tolist(), strict=True))


@pytest.mark.parametrize("name", ["share", "safe_share"])
def test_a_smaller_share_is_part_of_a_larger_one(name: str) -> None:
    dataset = make(0)
    costs = dataset.trajectories.cost_returns()
    among = costs <= (20 if name == "safe_share" else np.inf)
    assert among.sum() > 30
    larger = kept(Filters(**{name: 1.0}, noise=0.1), dataset)  # all of them
    assert len(larger) == len(costs)
    for share, count in ((0.5, round(0.5 * among.sum())), (0.1, round(0.1 * among.sum())), (1e-6, 1)):
        left = kept(Filters(**{name: share}, target_cost=20), dataset)
        assert left < larger
        assert len(left) == count + (~among).sum()
        assert left == kept(Filters(**{name: share}, target_cost=20), dataset)
        assert left != kept(Filters(**{name: share}, target_cost=20, filter_seed=5), dataset)
        larger = left
    unsafe = {(cost, reward) for cost, reward in larger if cost > 20}
    assert len(unsafe) == (~among).sum() if name == "safe_share" else len(larger) == 1


def test_a_share_is_drawn_uniformly() -> None:
    """Not the first ones, and not the cheap ones: over seeds every trajectory is as likely."""
    dataset = make(0, count=40)
    every = sorted(kept(Filters(noise=0.1), dataset))
    counts = dict.fromkeys(every, 0)
    for seed in range(200):
        for trajectory in kept(Filters(share=0.25, filter_seed=seed), dataset):
            counts[trajectory] += 1
    assert sum(counts.values()) == 200 * 10
    assert min(counts.values()) > 20  # of 50 expected, five standard deviations
    assert max(counts.values()) < 81


def test_no_safe_trajectory_may_be_left() -> None:
    left = kept(Filters(safe_share=0, target_cost=20), make(0))
    assert min(cost for cost, _ in left) > 20


def test_a_share_of_no_safe_trajectory_is_refused() -> None:
    dataset = make(0)
    dataset.arrays["costs"] += 1
    with pytest.raises(UserError, match="safe_share finds no trajectory within target_cost 10"):
        apply(Filters(safe_share=0.5, target_cost=10), dataset)


def test_scarce_data_keeps_its_order() -> None:
    dataset = make(0)
    filtered = apply(Filters(share=0.5, safe_share=0.5, target_cost=20), dataset)
    rows = {row.tobytes(): index for index, row in enumerate(dataset.arrays["observations"])}
    found = [rows[row.tobytes()] for row in filtered.arrays["observations"]]
    assert found == sorted(found)
    assert 0 < len(found) < len(dataset)


def test_a_seed_says_which() -> None:
    dataset = make(0)

    def left(seed: int) -> bytes:
        return apply(Filters(density=0.5, filter_seed=seed), dataset).arrays["rewards"].tobytes()

    assert left(1) == left(1) != left(2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"outliers": 1.0, "target_cost": 10}, r"outliers 1 needs 300 trajectories .* 50 and 267.153; there are"),
        ({"inpaint": ((0.0, 1.0, 0.0, 1.0), (0.0, 1.0, 0.0, 1.0))}, "inpaint finds no trajectory between 0 and 1"),
        ({"epsilon": -1e9, "target_cost": 1e9}, "epsilon -1e.09 finds no unsafe trajectory at target_cost 1e.09"),
        ({"density_grid": DensityGrid(fewest=1000, most=1001)}, "leave no trajectory"),
        ({"epsilon": 1e9, "target_cost": 1e9}, "leave no trajectory"),
        ({"outliers": 0.05, "target_cost": 1e6}, r"cannot let a trajectory of \d+ steps cost \d+: lower target_cost"),
    ],
)
def test_a_filter_that_finds_nothing_says_so(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        apply(Filters(**settings), make(2))


def test_an_own_tasks_bounds_are_the_datas() -> None:
    from dataclasses import replace

    dataset = replace(make(3), task=replace(TASK, family="own", max_episode_cost=1.0, max_episode_reward=1.0))
    wide = replace(
        dataset,
        task=replace(
            TASK, max_episode_cost=1e9, min_episode_cost=-1e9, min_episode_reward=-1e9, max_episode_reward=1e9
        ),
    )
    filters = Filters(density_grid=DensityGrid(most=2, fewest=0))
    np.testing.assert_array_equal(apply(filters, dataset).arrays["rewards"], apply(filters, wide).arrays["rewards"])
