"""The trajectories of a flat dataset: where each begins and ends, and its returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
"""Numbers."""
Bools = NDArray[np.bool_]
"""Flags."""


@dataclass(frozen=True)
class Trajectories:
    """The trajectories of N transitions in a row.

    A trajectory ends where terminal or timeout is set. Rows after the last end form one more, unfinished, trajectory.

    Args:
        starts: (T,) first row of each trajectory.
        lengths: (T,) number of transitions.
        rewards: (N,) reward of each transition.
        costs: (N,) cost of each transition.
        unfinished: whether the last trajectory has no end in the data.
    """

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    rewards: NDArray[np.float32]
    costs: NDArray[np.float32]
    unfinished: bool

    @classmethod
    def split(cls, done: Bools, rewards: NDArray[np.float32], costs: NDArray[np.float32]) -> Trajectories:
        """Cut N transitions at the rows where ``done`` (N,) is set."""
        ends = np.flatnonzero(done) + 1
        unfinished = len(done) > 0 and not done[-1]
        if unfinished:
            ends = np.append(ends, len(done))
        starts = np.concatenate([[0], ends])[:-1].astype(np.int64)
        return cls(starts, ends - starts, rewards, costs, bool(unfinished))

    def __len__(self) -> int:
        return len(self.starts)

    def reward_returns(self, gamma: float = 1.0) -> Floats:
        """(T,) discounted sum of rewards from each trajectory's first step."""
        return self._returns(self.rewards, gamma)

    def cost_returns(self, gamma: float = 1.0) -> Floats:
        """(T,) discounted sum of costs from each trajectory's first step."""
        return self._returns(self.costs, gamma)

    def initial(self) -> Bools:
        """(N,) whether each transition is its trajectory's first."""
        first = np.zeros(len(self.rewards), dtype=bool)
        first[self.starts] = True
        return first

    def to_go(self, values: NDArray[np.float32], gamma: float = 1.0) -> Floats:
        """The discounted sum of values (N,) from each transition to its trajectory's end: (N,)."""
        if gamma != 1:
            sums = values.astype(np.float64)
            for step in reversed(range(self.lengths.max(initial=1) - 1)):
                rows = self.starts[self.lengths > step + 1] + step
                sums[rows] += gamma * sums[rows + 1]
            return sums
        summed = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
        ends = self.spread(self.starts + self.lengths)
        return np.asarray(summed[ends] - summed[:-1])

    def next_to_go(self, values: NDArray[np.float32]) -> Floats:
        """The sum of values (N,) from the step behind each transition to its trajectory's end, 0 at the end: (N,)."""
        sums = np.append(self.to_go(values)[1:], 0.0)
        sums[self.starts + self.lengths - 1] = 0
        return sums

    def spread(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """Give every transition its trajectory's value: (T,) -> (N,)."""
        return np.repeat(values, self.lengths)

    def _returns(self, values: NDArray[np.float32], gamma: float) -> Floats:
        weighted = values.astype(np.float64)
        if gamma != 1:
            steps = np.arange(len(values)) - np.repeat(self.starts, self.lengths)
            weighted = weighted * gamma**steps
        return np.add.reduceat(weighted, self.starts) if len(self) else np.zeros(0)


def frontier_mask(costs: Floats, rewards: Floats) -> Bools:
    """The trajectories near the Pareto frontier of low cost and high reward, as OSRL's mode "frontier" has them.

    A polynomial of the lowest degree up to 2 that explains 90% of the frontier's variance (else degree 2) is fitted to
    the frontier's points; a trajectory is near when its reward return is within a fifth of the reward range of it.

    Args:
        costs: (T,) cost returns.
        rewards: (T,) reward returns.

    Returns:
        (T,) whether each trajectory is near the frontier.
    """
    on_frontier = pareto_frontier(costs, rewards)
    # In one order, whatever the trajectories' own is, so that the fit rounds the same.
    on_frontier = on_frontier[np.lexsort((rewards[on_frontier], costs[on_frontier]))]
    x, y = costs[on_frontier], rewards[on_frontier]
    domain = [x.min(), max(x.max(), x.min() + 1)]  # one cost alone has no width to scale by
    for degree in (0, 1, 2):
        # Fewer points than coefficients, or points that all lie on one cost, cannot bear a higher degree.
        if degree >= len(np.unique(x)) and degree > 0:
            break
        polynomial = np.polynomial.Polynomial.fit(x, y, degree, domain=domain)
        variance = np.square(y - y.mean()).sum()
        if variance == 0 or 1 - np.square(y - polynomial(x)).sum() / variance >= 0.9:
            break
    width = (rewards.max() - rewards.min()) / 5
    rounding = 1e-9 * np.abs(rewards).max()  # of the fit, where all rewards are the same
    return np.asarray(np.abs(polynomial(costs) - rewards) <= width + rounding)


def pareto_frontier(costs: Floats, rewards: Floats) -> NDArray[np.int64]:
    """Indices of the points that no other point beats: cheaper with at least the reward, or better at no more cost."""
    order = np.lexsort((-rewards, costs))
    best = np.maximum.accumulate(rewards[order])
    previous = np.concatenate([[-np.inf], best[:-1]])
    frontier = order[rewards[order] > previous]
    # Exact copies of a frontier point are on the frontier too.
    points = {(float(costs[i]), float(rewards[i])) for i in frontier}
    duplicated = [i for i in range(len(costs)) if (float(costs[i]), float(rewards[i])) in points]
    return np.array(duplicated, dtype=np.int64)
