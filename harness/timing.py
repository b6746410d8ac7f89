"""How long a policy takes to act: what a controller waits for at every step."""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor

from harness.algorithm import Policy, acted

BATCHES = (1, 10)
"""Environments for which a policy is timed: one, as a robot has it, and as many as an evaluation steps in lockstep."""
WARM_UP = 20
"""Calls that are not counted: memory is taken, and policies that act on a context fill it."""
CALLS, SECONDS = 100, 0.5
"""The most calls that are counted, and seconds in which they begin; one is counted in any case."""


def milliseconds_an_action(
    policy: Policy, observations: Tensor, action_size: int, cost_limit: float | None = None
) -> float:
    """The median time of a call divided by the number of its actions, with the threads that this process has.

    Args:
        policy: on the CPU; its episode begins anew.
        observations: (n, observation_size), the same at every step.
        action_size: numbers an action has.
        cost_limit: what a policy that conditions on the limit acts on.

    Raises:
        Exception: whatever the policy raises.
    """
    count, seconds = len(observations), []
    policy.eval()
    with torch.inference_mode():
        policy.reset(range(count), cost_limit)
        until = float("inf")
        for call in range(WARM_UP + CALLS):
            begun = time.perf_counter()
            if call == WARM_UP:
                until = begun + SECONDS
            elif begun > until:
                break
            acted(policy, observations.clone(), action_size)
            if call >= WARM_UP:
                seconds.append(time.perf_counter() - begun)
            policy.observe(torch.ones(count), torch.zeros(count))
    return 1e3 * statistics.median(seconds) / count
