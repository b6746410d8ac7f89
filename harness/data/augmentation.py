"""Relabelled trajectories above the Pareto frontier of low cost and high reward, as CDT trains on them.

As OSRL's ``augmentation`` (``osrl/common/dataset.py``): targets are spread over the data's range of cost and above the
frontier in reward; each is given to a near trajectory that costs no more, whose returns are moved there. Observations
and actions stay, so what is added is a trajectory's index and two shifts.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from harness.data.grid import thin as thin_by_grid
from harness.data.trajectories import Floats, pareto_frontier
from harness.errors import UserError

Indices = NDArray[np.int64]

COST_BINS, REWARD_BINS, MOST_PER_BIN, FEWEST_PER_BIN = 10, 50, 10, 3
"""The grid over (cost, reward) that thins crowds and drops outliers: bins with fewer trajectories are left out."""


def augment(
    costs: Floats,
    rewards: Floats,
    rng: np.random.Generator,
    *,
    share: float,
    degree: int,
    max_reward: float,
    min_reward: float,
    max_reward_decrease: float,
    beta: float,
) -> tuple[Indices, Floats, Floats]:
    """Trajectories with new returns.

    Args:
        costs: (T,) cost returns.
        rewards: (T,) reward returns.
        rng: draws which trajectories of a crowded bin stay, the targets' rewards, and who replaces a repeated choice.
        share: targets for each trajectory that the grid leaves.
        degree: of the polynomial that is fitted to the frontier.
        max_reward: the highest target reward.
        min_reward: the least that a target lies above the frontier.
        max_reward_decrease: how much less reward a replacement for a repeated choice may have.
        beta: a replacement at distance d is drawn with a weight of 1 / (d + beta).

    Returns:
        Indices (S,) of trajectories, and what their reward and cost returns (S,) each are moved to.

    Raises:
        UserError: the grid leaves no trajectory.
    """
    kept = thin(costs, rewards, rng)
    if not len(kept):
        raise UserError(
            f"no part of the {len(costs)} trajectories' range of cost and reward holds {FEWEST_PER_BIN} of them, so "
            "there is no frontier to augment from"
        )
    costs, rewards = costs[kept], rewards[kept]
    on_frontier = pareto_frontier(costs, rewards)
    if np.ptp(costs[on_frontier]) == 0:
        degree = 0  # points at one cost bear no other
    with warnings.catch_warnings():
        # Fewer points than coefficients: least squares. By its words: numpy 2 keeps the class in another place.
        warnings.filterwarnings("ignore", message="Polyfit may be poorly conditioned")
        frontier = np.poly1d(np.polyfit(costs[on_frontier], rewards[on_frontier], degree))
    count = int(share * len(costs))
    new_costs = np.linspace(costs.min(), costs.max(), count)
    lowest = frontier(new_costs) + min_reward
    new_rewards = lowest + (max_reward - lowest) * rng.random(count)

    distance = np.hypot(costs - new_costs[:, None], rewards - new_rewards[:, None])
    distance[costs > new_costs[:, None]] = np.inf
    nearest, first, counts = np.unique(distance.argmin(1), return_index=True, return_counts=True)
    chosen: list[np.int64] = []
    # OSRL lists a repeated choice's replacements behind it, and pairs that list with the targets in their own order.
    order = np.argsort(first)
    for index, times in zip(nearest[order], counts[order], strict=True):
        chosen.append(index)
        if times > 1:
            near = np.flatnonzero((costs <= costs[index]) & (rewards >= rewards[index] - max_reward_decrease))
            weight = 1 / (np.hypot(costs[near] - costs[index], rewards[near] - rewards[index]) + beta)
            chosen.extend(near[rng.choice(len(near), size=times - 1, p=weight / weight.sum())])
    return kept[np.array(chosen, dtype=np.int64)], new_rewards, new_costs


def thin(costs: Floats, rewards: Floats, rng: np.random.Generator) -> Indices:
    """The trajectories that the grid keeps, in the order of the bins' first trajectories."""
    return thin_by_grid(
        _bins(costs, COST_BINS),
        _bins(rewards, REWARD_BINS),
        np.ones(len(costs), dtype=bool),
        MOST_PER_BIN,
        FEWEST_PER_BIN,
        lambda members, most: rng.choice(members, most, replace=False).tolist(),
    )


def _bins(values: Floats, count: int) -> NDArray[np.float64]:
    width = (values.max() - values.min()) / count
    return (values - values.min()) // width if width > 0 else np.zeros(len(values))
