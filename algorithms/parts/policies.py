"""How networks act, and what a policy is told."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from algorithms.parts.networks import Gaussian
from harness.algorithm import Policy


class ClonedPolicy(Policy):
    """tanh(actor(s))."""

    def __init__(self, actor: nn.Sequential) -> None:
        super().__init__()
        self.actor = actor

    def act(self, observations: Tensor) -> Tensor:
        """Deterministic actions (n, action_size)."""
        return torch.tanh(self.actor(observations))


class MeanActionPolicy(Policy):
    """tanh of the mean of a squashed Gaussian actor, as OSRL evaluates its actors."""

    def __init__(self, actor: Gaussian) -> None:
        super().__init__()
        self.actor = actor

    def act(self, observations: Tensor) -> Tensor:
        """Deterministic actions (n, action_size)."""
        return torch.tanh(self.actor(observations)[0])


def told(cost_limit: float | None, name: str) -> float:
    """The limit on which a policy of the algorithm ``name`` acts.

    Raises:
        ValueError: there is none.
    """
    if cost_limit is None:
        raise ValueError(f"{name} acts on a cost limit, and none was given")
    return cost_limit
