"""Multipliers and thresholds of each replica, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from algorithms.parts.lagrangian import LOG_ALPHA_BOUND, PIDMultiplier, ascend, mixed_target, multiplier_warnings
from algorithms.parts.limits import cost_limits, discounted_limit
from algorithms.parts.methods import ActorCriticHyperparameters
from harness.algorithm import Replica
from harness.tasks import find_task


def test_a_pid_multiplier_follows_each_replicas_own_error() -> None:
    multiplier = PIDMultiplier((0.5, 0.25, 2.0), torch.tensor([1.0, 10.0]))
    assert multiplier.control(torch.tensor([[2.0, 4.0], [2.0, 4.0]])).tolist() == [0.5 * 2 + 0.25 * 2 + 2 * 2, 0]
    # The integral is 2 + 1; a falling error adds nothing by its change.
    value, penalty = multiplier.penalise(torch.tensor([[2.0, 2.0], [13.0, 11.0]]))
    assert value.tolist() == [0.5 * 1 + 0.25 * 3, 0.5 * 2 + 0.25 * 2 + 2 * (2 + 7)]
    assert penalty.tolist() == [1.25 * 1, value[1] * 2]
    other = PIDMultiplier((0.5, 0.25, 2.0), torch.tensor([1.0, 10.0]))
    other.load_state_dict(multiplier.state_dict())
    assert torch.equal(other.control(torch.ones(2, 3)), multiplier.control(torch.ones(2, 3)))


def test_a_learnt_multiplier_rises_where_its_constraint_is_broken_and_stays_within_bounds() -> None:
    logarithm = torch.tensor([0.0, math.log(2.0), LOG_ALPHA_BOUND])
    ascend(logarithm, 0.1, torch.tensor([3.0, -1.0, 1.0], requires_grad=True))
    assert logarithm.tolist() == pytest.approx([0.3, math.log(2.0) - 0.2, LOG_ALPHA_BOUND])
    ascend(logarithm, 1e6, torch.full((3,), -1.0))
    assert logarithm.tolist() == [-LOG_ALPHA_BOUND] * 3


def test_a_mixed_target_is_the_best_action_by_two_ensembles() -> None:
    # Two critics in each ensemble; two states with two actions each.
    values = torch.tensor([[[4.0, 1, 0, 0], [2, 9, 0, 5], [3, 3, 8, 7], [5, 0, 6, 2]]])
    # The ensembles' least: 2 1 0 0 and 3 0 6 2; three quarters of the smaller, a quarter of the larger.
    assert mixed_target(values, 0.75, 2).tolist() == [[0.75 * 2 + 0.25 * 3, 0.25 * 6]]


def test_thresholds_are_each_replicas_limit_and_its_discounted_total() -> None:
    task = find_task("BallRun")
    config = ActorCriticHyperparameters(gamma=0.9, cost_scale=2.0)
    replicas = [Replica(0, 10.0), Replica(1, 40.0)]
    assert cost_limits(config, replicas).tolist() == [20, 80]
    steps = task.max_episode_steps
    spread = [sum(0.9**step * limit / steps for step in range(steps)) for limit in (20, 80)]
    assert discounted_limit(config, task, replicas).tolist() == pytest.approx(spread)
    with pytest.raises(ValueError, match="a replica has none"):
        cost_limits(config, [Replica(0, 10.0), Replica(1)])


def test_multipliers_at_a_bound_are_told() -> None:
    assert multiplier_warnings({"multiplier": 0.5, "alpha": 1.0}) == ()
    (said,) = multiplier_warnings({"multiplier": 0.0})
    assert "no cost is penalised" in said
    (said,) = multiplier_warnings({"alpha": math.exp(-LOG_ALPHA_BOUND)})
    assert "lower bound" in said
