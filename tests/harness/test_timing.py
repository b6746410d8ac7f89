"""How long a policy takes to act, on a clock that the policy moves itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness import timing
from harness.algorithm import Policy
from harness.timing import CALLS, SECONDS, WARM_UP, milliseconds_an_action


class Slow(Policy):
    """Takes so many seconds for its calls, one after the other; the last ones' time from then on."""

    def __init__(self, *seconds: float) -> None:
        super().__init__()
        self.seconds, self.now, self.calls, self.observed = seconds, 0.0, 0, 0

    def act(self, observations: Tensor) -> Tensor:
        self.now += self.seconds[min(self.calls, len(self.seconds) - 1)]
        self.calls += 1
        observations.zero_()  # its own to change
        return torch.zeros(len(observations), 2)

    def observe(self, rewards: Tensor, costs: Tensor) -> None:
        assert rewards.shape == costs.shape
        self.observed += 1


def timed(policy: Slow, count: int, monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(timing.time, "perf_counter", lambda: policy.now)
    observations = torch.ones(count, 3)
    found = milliseconds_an_action(policy, observations, 2, 10.0)
    assert observations.eq(1).all()
    assert policy.observed == policy.calls
    return found


@pytest.mark.parametrize("count", [1, 10])
def test_it_is_the_median_of_calls_after_the_first_ones_for_each_action(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Slow(*[5.0] * WARM_UP, *[0.001, 0.003, 0.002] * CALLS)
    assert timed(policy, count, monkeypatch) == pytest.approx(2 / count)
    assert policy.calls == WARM_UP + CALLS


def test_a_slow_policy_is_called_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Slow(SECONDS / 4)
    assert timed(policy, 1, monkeypatch) == pytest.approx(1e3 * SECONDS / 4)
    assert WARM_UP < policy.calls <= WARM_UP + 6
    slower = Slow(10 * SECONDS)
    assert timed(slower, 1, monkeypatch) == pytest.approx(1e4 * SECONDS)
    assert slower.calls == WARM_UP + 1


def test_what_is_no_action_is_refused() -> None:
    with pytest.raises(ValueError, match="must be of shape"):
        milliseconds_an_action(Slow(0.001), torch.ones(1, 3), action_size=3)
