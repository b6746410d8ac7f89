"""Thinning trajectories by a grid over cost and reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray


def thin(
    cost_bins: NDArray[np.float64],
    reward_bins: NDArray[np.float64],
    considered: NDArray[np.bool_],
    most: int,
    fewest: int,
    sample: Callable[[list[int], int], Sequence[int]],
) -> NDArray[np.int64]:
    """The trajectories that stay, bin after bin in the order of the bins' first trajectories.

    Args:
        cost_bins: (T,) number of each trajectory's bin of cost.
        reward_bins: (T,) number of its bin of reward.
        considered: (T,) which trajectories are looked at.
        most: trajectories that a bin keeps; ``sample(members, most)`` says which.
        fewest: bins with fewer are left out.
        sample: draws without replacement.
    """
    bins: dict[tuple[float, float], list[int]] = {}
    for index in np.flatnonzero(considered).tolist():
        bins.setdefault((float(cost_bins[index]), float(reward_bins[index])), []).append(index)
    kept: list[int] = []
    for members in bins.values():
        if len(members) > most:
            kept += sample(members, most)
        elif len(members) >= fewest:
            kept += members
    return np.array(kept, dtype=np.int64)
