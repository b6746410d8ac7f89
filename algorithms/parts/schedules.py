"""Learning rates that change from update to update."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Schedule(nn.Module):
    """A learning rate that changes from update to update.

    The updates are counted on the device, where a captured CUDA graph counts on; the count is part of the state.

    Args:
        rate: the learning rate, a scalar, as a function of the updates made so far.
        device: of the parameters.
    """

    count: Tensor

    def __init__(self, rate: Callable[[Tensor], Tensor], device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("count", torch.zeros((), dtype=torch.int64, device=device))

    @classmethod
    def warm_up(cls, rate: float, steps: int, device: torch.device | str = "cpu") -> Schedule:
        """Rises linearly over so many steps, from ``rate / steps``, and stays."""
        return cls(lambda count: rate * ((count + 1) / steps).clamp(max=1), device)

    @classmethod
    def cosine(cls, rate: float, steps: int, device: torch.device | str = "cpu") -> Schedule:
        """Falls to 0 by half a cosine over so many steps, and stays there."""
        return cls(lambda count: rate * 0.5 * (1 + torch.cos(math.pi * (count / steps).clamp(max=1))), device)

    def advance(self) -> Tensor:
        """The learning rate of the update that comes, a float32 scalar; it is counted."""
        rate = self.rate(self.count)
        self.count.add_(1)
        return rate
