"""Cost limits, of each replica its own, as thresholds for what is estimated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from algorithms.parts.methods import ActorCriticHyperparameters
from harness.algorithm import Replica
from harness.tasks import Task


def cost_limits(config: ActorCriticHyperparameters, replicas: Sequence[Replica]) -> Tensor:
    """The scaled cost limit of an episode for each replica, (R,), float64."""
    limits = [replica.cost_limit for replica in replicas]
    if None in limits:
        raise ValueError("this algorithm trains for a cost limit, and a replica has none")
    return config.cost_scale * torch.tensor(limits, dtype=torch.float64)


def discounted_limit(config: ActorCriticHyperparameters, task: Task, replicas: Sequence[Replica]) -> Tensor:
    """The discounted total of a cost that spreads the limit evenly over an episode: (R,), float64.

    ``limit (1 - gamma^T) / ((1 - gamma) T)`` for episodes of T steps, as OSRL has it.
    """
    steps = task.max_episode_steps
    return cost_limits(config, replicas) * (1 - config.gamma**steps) / (1 - config.gamma) / steps
