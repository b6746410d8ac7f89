"""What can be told apart: against hand-computed cases and rliable."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rliable import metrics

from harness.comparison import Runs, bootstrap, improvements, profile, standings, verdict, wilson
from harness.statistics import interval, mean


def runs(reward: list[list[float]], cost: list[list[float]]) -> Runs:
    return Runs(np.array(reward, dtype=float), np.array(cost, dtype=float))


def constant(reward: float, cost: float, seeds: int = 3, tasks: int = 2) -> Runs:
    return Runs(np.full((seeds, tasks), reward), np.full((seeds, tasks), cost))


def test_a_verdict_needs_the_interval_on_one_side() -> None:
    assert verdict((0.2, 1.0)) == "safe"
    assert verdict((1.0, 3.0)) == "undecided"
    assert verdict((1.01, 3.0)) == "unsafe"
    assert verdict(None) == "undecided"


def test_wilsons_interval() -> None:
    """Brown, Cai, DasGupta 2001 and by hand: 0 of 10 is 0 to 0.278, 5 of 10 is 0.237 to 0.763."""
    assert wilson(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert wilson(5, 10) == pytest.approx((0.23659, 0.76341), abs=1e-5)
    assert wilson(10, 10) == pytest.approx((0.72247, 1.0), abs=1e-5)
    for impossible in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="is no proportion"):
            wilson(*impossible)


def test_the_bootstrap_is_rliables() -> None:
    """The same distribution, drawn by other numbers: intervals of the mean agree to sampling error."""
    random = np.random.default_rng(3)
    mine = Runs(random.normal(size=(5, 8)), random.random((5, 8)))
    reward, cost = bootstrap(mine, "a")
    assert reward.shape == cost.shape == (2000, 8)
    ours = np.quantile(reward.mean(1), [0.025, 0.975])
    assert ours == pytest.approx(interval(mine.reward, mean), abs=0.03)
    assert (bootstrap(mine, "a")[0] == reward).all()
    assert not (bootstrap(mine, "b")[0] == reward).all()


def test_ranks_that_are_certain() -> None:
    """Safe ones by reward, then unsafe ones by cost, whatever is drawn."""
    policies = {
        "best": constant(0.9, 0.5),
        "next": constant(0.4, 1.0),
        "unsafe": constant(2.0, 1.5),
        "worst": constant(3.0, 9.0),
    }
    found = standings(policies)
    assert [(one.low, one.high, one.group) for one in found.values()] == [
        (1, 1, 1),
        (2, 2, 2),
        (3, 3, 3),
        (4, 4, 4),
    ]


def test_equals_share_rank_and_group() -> None:
    found = standings({"a": constant(0.5, 0.5), "b": constant(0.5, 0.5), "c": constant(0.1, 0.5)})
    assert [(one.low, one.high, one.group) for one in found.values()] == [(1, 1, 1), (1, 1, 1), (3, 3, 2)]


def test_all_unsafe_one_seed_one_task_and_unequal_seeds() -> None:
    """Unsafe ones go by cost; one seed has no noise of its own; seeds need not be as many."""
    found = standings({"a": constant(0.1, 2.0, seeds=1, tasks=1), "b": constant(0.9, 3.0, seeds=4, tasks=1)})
    assert [(one.low, one.high, one.group) for one in found.values()] == [(1, 1, 1), (2, 2, 2)]
    better = improvements({"a": constant(0.1, 2.0, seeds=1, tasks=1), "b": constant(0.9, 3.0, seeds=4, tasks=1)})
    assert (better["b", "a"].reward, better["b", "a"].interval, better["b", "a"].safe_and_better) == (1.0, None, 0.0)
    (alone,) = standings({"only": constant(0.5, 0.5, seeds=1, tasks=1)}).values()
    assert (alone.low, alone.high, alone.group) == (1, 1, 1)


def test_noise_leaves_ranks_open() -> None:
    random = np.random.default_rng(0)
    cost = np.full((3, 4), 0.5)
    close = {name: Runs(random.normal(0, 1, (3, 4)), cost) for name in "abc"}
    found = standings(close)
    assert {one.group for one in found.values()} == {1}
    assert all(one.low < one.high for one in found.values())


def test_ranks_need_common_tasks() -> None:
    assert standings({}) == {}
    with pytest.raises(ValueError, match=r"policies with \[1, 2\] tasks"):
        standings({"a": constant(0, 0, tasks=1), "b": constant(0, 0, tasks=2)})


def test_improvement_is_rliables_and_counts_safety() -> None:
    one = runs([[1.0, 5.0], [2.0, 5.0]], [[0.5, 2.0], [0.5, 0.5]])
    two = runs([[1.0, 6.0], [0.0, 4.0], [3.0, 5.0]], [[0.0, 0.0]] * 3)
    found = improvements({"one": one, "two": two})
    assert found["one", "two"].reward == pytest.approx(metrics.probability_of_improvement(one.reward, two.reward))
    # Task 1: wins 1 > 0; 2 > 1, 2 > 0: 3 of 6 and a tie. Task 2: 5 > 4 twice, two ties.
    assert found["one", "two"].reward == pytest.approx(((3 + 0.5) / 6 + (2 + 1) / 6) / 2)
    # Of those, task 2's first run is unsafe.
    assert found["one", "two"].safe_and_better == pytest.approx((3 / 6 + 1 / 6) / 2)
    assert found["one", "two"].reward + found["two", "one"].reward == pytest.approx(1)
    low, high = found["one", "two"].interval or (np.nan, np.nan)
    assert 0 <= low < found["one", "two"].reward < high <= 1
    alone = improvements({"one": constant(1, 0, seeds=1), "two": two})
    assert alone["one", "two"].interval is None


def test_profiles() -> None:
    scores = np.array([[0.0, 1.0], [0.5, 1.0]])
    share, low, high = profile(scores, [0.25, 0.75, 1.0])
    assert share.tolist() == [0.75, 0.5, 0.0]
    assert (low <= share).all()
    assert (share <= high).all()
    below, _, _ = profile(scores, [0.25, 0.75, 1.0], below=True)
    assert (below == 1 - share).all()
    _, low, high = profile(scores[:1], [0.25])
    assert np.isnan([low, high]).all()


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        runs([[np.nan]], [[0.0]])
    with pytest.raises(ValueError, match="are no"):
        Runs(np.zeros((2, 3)), np.zeros((3, 2)))


@given(st.integers(2, 5), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_ranks_hold_what_they_say(seeds: int, tasks: int, count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    policies = {
        str(number): Runs(random.normal(size=(seeds, tasks)), random.exponential(size=(seeds, tasks)))
        for number in range(count)
    }
    found = standings(policies)
    groups = [one.group for one in found.values()]
    assert groups[0] == 1
    assert all(after - before in (0, 1) for before, after in pairwise(groups))
    assert all(1 <= one.low <= one.high <= count for one in found.values())
