"""What results can and cannot tell: verdicts on safety, ranks with their uncertainty, ties, and improvement.

Everything rests on runs' means. A policy's :class:`Runs` hold normalised reward and cost for every seed and task,
averaged over the cost limits that are looked at; a bootstrap draws seeds anew within each task (rliable's stratified
bootstrap, Agarwal et al. 2021) and, where the question is about tasks in general, the tasks too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from harness import statistics
from harness.statistics import TAIL_PROBABILITY, Floats, between, resampled
from harness.tasks import within

Verdict = Literal["safe", "unsafe", "undecided"]
"""What the 95% interval of a policy's mean cost says of its limit."""


@dataclass(frozen=True)
class Runs:
    """One policy's runs.

    Args:
        reward: (seeds, tasks), normalised, averaged over limits.
        cost: (seeds, tasks), normalised by each run's limit, averaged over limits.
    """

    reward: Floats
    cost: Floats

    def __post_init__(self) -> None:
        if self.reward.shape != self.cost.shape or self.reward.ndim != 2:
            raise ValueError(f"rewards {self.reward.shape} and costs {self.cost.shape} are no (seeds, tasks) twice")
        if not (np.isfinite(self.reward).all() and np.isfinite(self.cost).all()):
            raise ValueError("a comparison needs finite rewards and costs")


def bootstrap(runs: Runs, name: str) -> tuple[Floats, Floats]:
    """Means over seeds of reward and cost, (samples, tasks) each, of seeds drawn anew within each task.

    Args:
        runs: with at least one seed.
        name: of the policy: two policies' draws are independent, and a policy's the same in every table.
    """
    both = (resampled(scores, np.random.default_rng([0, *name.encode()])) for scores in (runs.reward, runs.cost))
    reward, cost = (samples.mean(1) for samples in both)  # of the same draws
    return reward, cost


def verdict(interval: tuple[float, float] | None) -> Verdict:
    """Whether a cost is within its limit, by the 95% interval of the normalised mean; one seed decides nothing."""
    if interval is None:
        return "undecided"
    low, high = interval
    return "safe" if within(high, 1) else "undecided" if within(low, 1) else "unsafe"


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95% interval (1927) of a proportion.

    Raises:
        ValueError: no trial, or more successes than trials.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} of {trials} is no proportion")
    z = 1.959963984540054
    share, scale = successes / trials, 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z * np.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / scale
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


@dataclass(frozen=True)
class Standing:
    """Where a policy stands among others.

    Args:
        low: the best rank that its bootstrap interval reaches, from 1.
        high: the worst.
        group: its tie group, from 1: nobody in it can be told from the group's first.
    """

    low: int
    high: int
    group: int


def standings(policies: Mapping[str, Runs]) -> dict[str, Standing]:
    """Ranks with their uncertainty: safe first, by reward, then unsafe, by cost, in every bootstrap sample.

    Seeds are drawn anew for each policy and task, and the tasks for all policies alike, since the question is which
    policy is better on tasks like these. A policy is told from another if it is above it in 97.5% of the samples.

    Args:
        policies: with the same tasks in the same order, by name and in the order of the leaderboard.

    Raises:
        ValueError: they do not share tasks.
    """
    if not policies:
        return {}
    tasks = {runs.reward.shape[1] for runs in policies.values()}
    if len(tasks) != 1:
        raise ValueError(f"policies with {sorted(tasks)} tasks have no common ranks")
    count = tasks.pop()
    drawn = np.random.default_rng(0).integers(count, size=(statistics.BOOTSTRAP_SAMPLES, count))
    samples = [bootstrap(runs, name) for name, runs in policies.items()]
    reward, cost = (
        np.stack([np.take_along_axis(sample[which], drawn, 1).mean(1) for sample in samples]) for which in (0, 1)
    )
    above = _above(reward, cost)
    ranks = 1 + above.sum(0)  # (policies, samples): how many stand above
    shares = above.mean(2)
    found, group, first = {}, 1, 0
    for index, name in enumerate(policies):
        if index and shares[first, index] >= 1 - TAIL_PROBABILITY:
            group, first = group + 1, index
        low, high = np.quantile(ranks[index], [TAIL_PROBABILITY, 1 - TAIL_PROBABILITY], method="closest_observation")
        found[name] = Standing(int(low), int(high), group)
    return found


def _above(reward: Floats, cost: Floats) -> NDArray[np.bool_]:
    """Whether policy i stands above policy j in each sample, (policies, policies, samples)."""
    safe = within(cost, 1)
    mine, others = safe[:, None], safe[None, :]
    better = np.where(mine, reward[:, None] > reward[None, :], cost[:, None] < cost[None, :])
    return np.asarray((mine & ~others) | ((mine == others) & better), dtype=np.bool_)


@dataclass(frozen=True)
class Improvement:
    """How likely a run of one policy beats one of another, on a task drawn at random.

    Args:
        reward: P(more reward), ties counting half (rliable's probability of improvement).
        interval: its 95% bootstrap interval, ``None`` for fewer than two seeds on either side.
        safe_and_better: P(within its limit, and more reward).
    """

    reward: float
    interval: tuple[float, float] | None
    safe_and_better: float


def improvements(policies: Mapping[str, Runs]) -> dict[tuple[str, str], Improvement]:
    """:class:`Improvement` of every policy over every other, by their names.

    Args:
        policies: with the same tasks in the same order.
    """
    random = np.random.default_rng(0)
    weights = {name: _seed_weights(runs.reward.shape, random) for name, runs in policies.items()}
    found: dict[tuple[str, str], Improvement] = {}
    for one, mine in policies.items():
        for other, theirs in policies.items():
            if one == other:
                continue
            difference = mine.reward[:, None] - theirs.reward[None]  # (seeds, seeds, tasks)
            safely = float(((difference > 0) & within(mine.cost[:, None], 1)).mean())
            if (back := found.get((other, one))) is not None:  # ties count half: what the one has the other lacks
                interval = None if back.interval is None else (1 - back.interval[1], 1 - back.interval[0])
                found[one, other] = Improvement(1 - back.reward, interval, safely)
                continue
            wins = (difference > 0) + 0.5 * (difference == 0)
            interval = None
            if min(len(mine.reward), len(theirs.reward)) > 1:
                drawn = np.einsum("bst,sut,but->b", weights[one], wins, weights[other], optimize=True)
                interval = between(drawn / wins.shape[2])
            found[one, other] = Improvement(float(wins.mean()), interval, safely)
    return found


def _seed_weights(shape: tuple[int, ...], random: np.random.Generator) -> Floats:
    """How often each seed is drawn within each task, as shares, (samples, seeds, tasks)."""
    seeds, tasks = shape
    counts = random.multinomial(seeds, [1 / seeds] * seeds, size=(statistics.BOOTSTRAP_SAMPLES, tasks))
    return np.asarray(counts.transpose(0, 2, 1) / seeds, dtype=np.float64)


@lru_cache(maxsize=1)
def _profile_weights(shape: tuple[int, ...], samples: int) -> Floats:
    """Those of :func:`profile`, which are the same for all policies of a table."""
    return _seed_weights(shape, np.random.default_rng(0))


def profile(scores: Floats, thresholds: Sequence[float], below: bool = False) -> tuple[Floats, Floats, Floats]:
    """rliable's performance profile: the share of runs above each threshold, with its 95% band.

    Args:
        scores: (seeds, tasks).
        thresholds: T of them.
        below: the share at or below instead, as is wanted of costs.

    Returns:
        The share, and the band's lower and upper edge, (T,) each; the edges are NaN with fewer than two seeds.
    """
    levels = np.asarray(thresholds, dtype=np.float64)
    passed = within(scores[..., None], levels) if below else (scores[..., None] > levels)
    share = passed.mean((0, 1))
    seeds, tasks = scores.shape
    if seeds < 2:
        return share, np.full_like(share, np.nan), np.full_like(share, np.nan)
    weights = _profile_weights(scores.shape, statistics.BOOTSTRAP_SAMPLES)
    drawn = np.einsum("bst,stl->bl", weights, passed.astype(np.float64), optimize=True) / tasks
    low, high = np.quantile(drawn, [TAIL_PROBABILITY, 1 - TAIL_PROBABILITY], axis=0)
    return share, low, high
