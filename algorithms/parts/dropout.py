"""Dropout of R replicas, each with random numbers of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from harness.algorithm import Replica

Dropped = tuple[tuple[int, ...], float]
"""The shape of what dropout meets, without the replica axis, and its rate."""


def thinned(x: Tensor, kept: Tensor | None, rate: float) -> Tensor:
    """``x`` with what is not kept set to 0 and the rest scaled up, as dropout does; ``None``: everything is kept."""
    return x if kept is None else torch.where(kept, x, 0.0) / (1 - rate)


class DropoutStreams:
    """What dropout keeps, drawn for each replica from a generator of its own.

    Its masks would be too large to draw ahead with the rest of the noise, so they are drawn within the update.
    """

    def __init__(self, replicas: Sequence[Replica], device: torch.device | str) -> None:
        self.generators = [replica.generator("dropout", device) for replica in replicas]

    def draw(self, wanted: Mapping[str, Dropped]) -> dict[str, Tensor]:
        """Masks (R, *shape) by name, true where something is kept; none at a rate of 0.

        Compared are 16 random bits, so a rate is met to 1/65536: torch's Bernoulli numbers take six times as long.
        """
        device = self.generators[0].device
        masks = {}
        for name, (shape, rate) in wanted.items():
            if rate > 0:
                numbers = math.prod(shape)
                bits = torch.empty(len(self.generators), -(-numbers // 4), dtype=torch.int64, device=device)
                for row, generator in zip(bits, self.generators, strict=True):
                    row.random_(-(2**63), None, generator=generator)
                kept = bits.view(torch.int16)[:, :numbers] >= round(rate * 2**16) - 2**15
                masks[name] = kept.unflatten(1, shape)
        return masks

    def state_dict(self) -> dict[str, Any]:
        """The generators' states."""
        return {"generators": [generator.get_state() for generator in self.generators]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The generators' states."""
        for generator, kept in zip(self.generators, state["generators"], strict=True):
            generator.set_state(kept)
