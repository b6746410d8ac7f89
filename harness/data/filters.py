"""DSRL's filters, which make a dataset harder or easier: ``OfflineEnv.pre_process_data`` of dsrl's main branch.

Equal to it number for number, with dsrl's generator and ``random`` seeded alike; but not where it has bugs: several
inpainted ranges of different sizes make it fail, and after inpainting it looks for epsilon's trajectories in the wrong
places. ``share`` and ``safe_share`` are not DSRL's; they draw from generators of their own.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from harness.bounds import Settings
from harness.data.dataset import Dataset
from harness.data.grid import thin
from harness.errors import UserError
from harness.tasks import Task

Floats = NDArray[np.float32]
Share = Annotated[float, Field(ge=0, le=1)]


class Filters(Settings):
    """What is changed in a dataset before training. Cost and reward are those of whole trajectories."""

    density: float | None = Field(
        None, gt=0, lt=1, description="keep about this share of the trajectories: DSRL's grid for the task"
    )
    density_grid: DensityGrid | None = Field(None, description="thin by this grid instead")
    outliers: float | None = Field(
        None, gt=0, le=1, description="give this share of costly, rewarding trajectories a cost below target_cost"
    )
    inpaint: tuple[tuple[Share, Share, Share, Share], ...] = Field(
        (),
        max_length=100,
        description="leave out [cost from, cost to, reward from, reward to], as shares of the task's ranges",
    )
    epsilon: float | None = Field(
        None,
        description="leave out the best safe trajectories, down to this much reward below the best; "
        "negative: the best unsafe ones",
    )
    noise: float | None = Field(
        None, gt=0, le=1e6, description="add noise to observations, of this many times their standard deviation"
    )
    share: float = Field(
        1.0, gt=0, le=1, description="keep this share of the trajectories, drawn uniformly; a smaller one is part of it"
    )
    safe_share: float = Field(
        1.0, ge=0, le=1, description="keep this share of the trajectories within target_cost, and all the others"
    )
    target_cost: float | None = Field(None, ge=0, description="what outliers, epsilon and safe_share call safe")
    filter_seed: int = Field(1234, ge=0, lt=2**32, description="of the filters' random numbers; DSRL's own is 1234")

    @model_validator(mode="after")
    def _together(self) -> Filters:
        if self.density is not None and self.density_grid is not None:
            raise ValueError("density and density_grid say the same in two ways: give one")
        if (self.outliers is not None or self.epsilon is not None) and self.target_cost is None:
            raise ValueError("outliers and epsilon want target_cost, the cost up to which a trajectory is safe")
        if self.safe_share < 1 and self.target_cost is None:
            raise ValueError("safe_share needs target_cost, the cost up to which a trajectory is safe")
        if self.outliers is not None and self.target_cost is not None and self.target_cost < 1:
            raise ValueError("outliers want a target_cost of at least 1: they get a cost below it")
        for cost_from, cost_to, reward_from, reward_to in self.inpaint:
            if cost_from > cost_to or reward_from > reward_to:
                raise ValueError("inpaint needs ranges [cost from, cost to, reward from, reward to] that go upwards")
        return self

    @property
    def active(self) -> bool:
        """Whether anything is changed."""
        asked = (self.density, self.density_grid, self.outliers, self.inpaint, self.epsilon, self.noise)
        return any(asked) or self.share < 1 or self.safe_share < 1

    def describe(self) -> str:
        """For people: ``density 0.5, noise 0.1, seed 1234``; empty where nothing is changed."""
        if not self.active:
            return ""
        given = self.model_dump(exclude_defaults=True, exclude={"filter_seed"})
        return ", ".join([f"{name} {value}" for name, value in given.items()] + [f"seed {self.filter_seed}"])

    def thinning(self, task: Task) -> DensityGrid | None:
        """How trajectories are thinned: as given, or as DSRL does for this task and density.

        Raises:
            UserError: DSRL has no such grid.
        """
        if self.density is None:
            return self.density_grid
        grids = _density_grids().get(task.id, {})
        if self.density not in grids:
            known = f"only for {', '.join(f'{share:g}' for share in sorted(grids))}" if grids else "none at all"
            raise UserError(
                f"DSRL has no grid that leaves {self.density:g} of {task.name}'s trajectories ({known}); "
                "say with density_grid how to thin"
            )
        return grids[self.density]


class DensityGrid(Settings):
    """Bins over cost and reward. Crowded ones are thinned at random, nearly empty ones are left out."""

    cost_bins: int = Field(10, ge=1, le=10_000, description="bins over cost")
    reward_bins: int = Field(50, ge=1, le=10_000, description="bins over reward")
    most: int = Field(5, ge=1, description="trajectories that a bin keeps")
    fewest: int = Field(2, ge=0, description="a bin with so many or fewer is left out")


Filters.model_rebuild()


@cache
def _density_grids() -> dict[str, dict[float, DensityGrid]]:
    """DSRL's grids (``DENSITY_CFG`` of its ``infos.py``) by task and share."""
    grids: dict[str, dict[float, DensityGrid]] = {}
    with (Path(__file__).parent / "density.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            numbers: Mapping[str, Any] = {key: int(row[key]) for key in DensityGrid.model_fields}
            grids.setdefault(row["task_id"], {})[float(row["density"])] = DensityGrid(**numbers)
    return grids


def apply(filters: Filters, dataset: Dataset) -> Dataset:
    """The dataset as the filters leave it. An unfinished last trajectory is left out, as DSRL does.

    Args:
        filters: what to change.
        dataset: stays as it is.

    Raises:
        UserError: a filter finds nothing to act on, or leaves nothing.
    """
    if not filters.active:
        return dataset
    generator = np.random.Generator(np.random.PCG64(filters.filter_seed))
    arrays = {key: values.copy() if key in ("rewards", "costs") else values for key, values in dataset.arrays.items()}
    every = dataset.trajectories
    finished = len(every) - int(every.unfinished)
    starts, lengths = every.starts[:finished].tolist(), every.lengths[:finished].tolist()
    ranges = [slice(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    if not ranges:
        raise UserError("it holds no finished trajectory to filter", where=str(dataset.path))
    # Sums in float32, each by itself, as DSRL has them: bounds and bins compare them.
    costs = np.array([arrays["costs"][rows].sum() for rows in ranges], dtype=np.float32)
    rewards = np.array([arrays["rewards"][rows].sum() for rows in ranges], dtype=np.float32)
    bounds = _bounds(dataset.task, costs, rewards)

    grid = filters.thinning(dataset.task)
    if grid is not None:
        kept = _thinned(costs, rewards, bounds, grid, filters.filter_seed)
        ranges, costs, rewards = [ranges[index] for index in kept], costs[kept], rewards[kept]
    if filters.share < 1 or filters.safe_share < 1:
        scarce = _scarce(filters, costs)
        ranges, costs, rewards = [ranges[index] for index in scarce], costs[scarce], rewards[scarce]
    left = np.arange(len(ranges))
    outliers = np.zeros(0, dtype=np.int64)
    if filters.outliers is not None:
        outliers = _choose_outliers(filters.outliers, bounds, costs, rewards, generator)
        cheap = generator.choice(np.arange(int(filters.target_cost or 0)), size=len(outliers))
        for index, cost in zip(outliers.tolist(), cheap.tolist(), strict=True):
            _disguise(arrays, ranges[index], cost, generator)
            costs[index] = cost
            rewards[index] *= 1.5
    for cost_from, cost_to, reward_from, reward_to in filters.inpaint:
        left = left[~_within(costs[left], rewards[left], bounds, cost_from, cost_to, reward_from, reward_to)]
    left = np.append(left, outliers[~np.isin(outliers, left)])  # inpainting does not touch them
    if filters.epsilon is not None:
        left = _without_the_best(left, costs, rewards, filters.epsilon, filters.target_cost or 0)
    if not len(left):
        raise UserError(f"the filters ({filters.describe()}) leave no trajectory", where=str(dataset.path))

    rows = np.concatenate([np.arange(ranges[index].start, ranges[index].stop) for index in left])
    arrays = {key: values[rows] for key, values in arrays.items()}
    if filters.noise is not None:
        for key in ("observations", "next_observations"):
            spread = np.std(arrays[key])
            arrays[key] += filters.noise * generator.normal(0, spread, arrays[key].shape)
    return replace(dataset, arrays=arrays)


Bounds = tuple[float, float, float, float]


def _bounds(task: Task, costs: Floats, rewards: Floats) -> Bounds:
    """Least and most cost, least and most reward: DSRL's for the task, of a user's own task the data's."""
    if task.family != "own":
        return task.min_episode_cost, task.max_episode_cost, task.min_episode_reward, task.max_episode_reward
    return float(costs.min()), float(costs.max()), float(rewards.min()), float(rewards.max())


def _thinned(costs: Floats, rewards: Floats, bounds: Bounds, grid: DensityGrid, seed: int) -> NDArray[np.int64]:
    """The trajectories inside the bounds that the grid keeps (dsrl's ``grid_filter``)."""
    cost_low, cost_high, reward_low, reward_high = bounds
    cost_inside, cost_bins = _binned(costs, cost_low, cost_high, grid.cost_bins)
    reward_inside, reward_bins = _binned(rewards, reward_low, reward_high, grid.reward_bins)
    sample: Callable[[list[int], int], list[int]] = random.Random(seed).sample  # noqa: S311 - nothing secret
    return thin(cost_bins, reward_bins, cost_inside & reward_inside, grid.most, grid.fewest + 1, sample)


def _binned(values: Floats, low: float, high: float, count: int) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Which values lie within the bounds, and the number of each one's bin."""
    lowest, highest = max(values.min(), low), min(values.max(), high)
    double = values.astype(np.float64)
    inside = (double >= lowest) & (double <= highest)
    # In the precision that DSRL's scalars have: float32 as long as the bound is one of the data.
    offset = (values if isinstance(lowest, np.float32) else double) - lowest
    width = (highest - lowest) / count
    return inside, offset.astype(np.float64) // width if width else np.zeros(len(values))


def _scarce(filters: Filters, costs: Floats) -> NDArray[np.int64]:
    """The trajectories that ``share`` and ``safe_share`` keep, in order."""
    kept = _drawn(np.arange(len(costs)), filters.share, (filters.filter_seed, 1))
    if filters.safe_share == 1:
        return kept
    safe = costs[kept] <= (filters.target_cost or 0)
    if not safe.any():
        raise UserError(f"safe_share finds no trajectory within target_cost {filters.target_cost:g}")
    return np.union1d(kept[~safe], _drawn(kept[safe], filters.safe_share, (filters.filter_seed, 2)))


def _drawn(indices: NDArray[np.int64], share: float, seed: tuple[int, int]) -> NDArray[np.int64]:
    """A share of the indices, at least one unless it is 0. Equal seeds draw in the same order: shares are nested."""
    count = max(round(share * len(indices)), 1) if share else 0
    return np.sort(np.random.default_rng(seed).permutation(indices)[:count])


def _choose_outliers(
    share: float, bounds: Bounds, costs: Floats, rewards: Floats, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Draw among the trajectories with at least half of the task's highest cost and reward."""
    _, highest_cost, _, highest_reward = bounds
    risky = np.flatnonzero((costs >= highest_cost / 2) & (rewards >= highest_reward / 2))
    count = max(int(len(costs) * share), 1)
    if count > len(risky):
        raise UserError(
            f"outliers {share:g} needs {count} trajectories with at least half of the task's highest cost and reward, "
            f"{highest_cost / 2:g} and {highest_reward / 2:g}; there are {len(risky)}"
        )
    return generator.choice(risky, size=count, replace=False)


def _disguise(arrays: dict[str, NDArray[Any]], rows: slice, cost: int, generator: np.random.Generator) -> None:
    """Let a trajectory look as if it cost little and earned half as much again."""
    length = rows.stop - rows.start
    if cost > length:
        raise UserError(f"outliers cannot let a trajectory of {length} steps cost {cost}: lower target_cost")
    steps = generator.choice(np.arange(length), cost, replace=False)
    arrays["costs"][rows] = 0
    arrays["costs"][rows.start + steps] = 1
    arrays["rewards"][rows] *= 1.5


def _within(
    costs: Floats,
    rewards: Floats,
    bounds: Bounds,
    cost_from: float,
    cost_to: float,
    reward_from: float,
    reward_to: float,
) -> NDArray[np.bool_]:
    """Which trajectories lie in a range of the task's cost and in one of the reward that is earned at such costs."""
    low, high, *_ = bounds
    in_cost = ((high - low) * cost_from + low <= costs) & (costs <= (high - low) * cost_to + low)
    if not in_cost.any():
        raise UserError(f"inpaint finds no trajectory between {cost_from:g} and {cost_to:g} of the task's cost range")
    low, high = rewards[in_cost].min(), rewards[in_cost].max()
    in_reward = ((high - low) * reward_from + low <= rewards) & (rewards <= (high - low) * reward_to + low)
    return np.asarray(in_cost & in_reward)


def _without_the_best(
    left: NDArray[np.int64], costs: Floats, rewards: Floats, epsilon: float, target_cost: float
) -> NDArray[np.int64]:
    """Leave out the best safe trajectories (epsilon > 0) or the best unsafe ones (epsilon < 0)."""
    if epsilon == 0:
        return left
    safe = costs[left] <= target_cost
    among = left[safe if epsilon > 0 else ~safe]
    if not len(among):
        kind = "safe" if epsilon > 0 else "unsafe"
        raise UserError(f"epsilon {epsilon:g} finds no {kind} trajectory at target_cost {target_cost:g}")
    best = rewards[among].max()
    return np.setdiff1d(left, among[rewards[among] >= best - abs(epsilon)])
