"""The random numbers of training: minibatch indices and noise, drawn ahead in blocks from each replica's generator.

A replica's draws depend on its generator alone, not on the other replicas, and a block is always drawn whole, so that
neither the group nor the moment of a checkpoint changes what an agent sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from harness.algorithm import Replica

BLOCK = 64
"""Steps to a block. Results depend on it: a change is a change of every algorithm's version."""


class Draws:
    """Indices (R, B) into the dataset and noise (R, *shape) for every step.

    Args:
        replicas: whose generators are used.
        rows: for each replica the rows it may draw (n_r,), or ``None`` for all ``size`` rows.
        size: transitions of the dataset.
        batch_size: B.
        noise: shapes by name, as the algorithm declares them.
        device: where the numbers are drawn and used.
        dtype: of the noise.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        rows: Sequence[Tensor | None],
        size: int,
        batch_size: int,
        noise: Mapping[str, tuple[int, ...]],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._generators = [replica.generator("training", device) for replica in replicas]
        self._rows = [None if chosen is None else chosen.to(device) for chosen in rows]
        self._size, self._batch_size = size, batch_size
        self._noise_shapes, self._device, self._dtype = noise, device, dtype
        self._block = -1
        self._begin: list[Tensor] = []
        self._indices = torch.empty(0)
        self._noise: dict[str, Tensor] = {}

    def at(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The draws of a step, counted from 0; steps are asked for in order."""
        block, offset = divmod(step, BLOCK)
        if block != self._block:
            if block != self._block + 1:
                raise ValueError(f"draws are taken in order: block {block} after {self._block}")
            self._draw(block)
        return self._indices[offset], {name: noise[offset] for name, noise in self._noise.items()}

    def state_dict(self) -> dict[str, Any]:
        """The generators as they were when the present block began."""
        return {"block": self._block, "generators": self._begin}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave, and draw that block again."""
        if state["block"] < 0:
            return
        for generator, begin in zip(self._generators, state["generators"], strict=True):
            generator.set_state(begin)
        self._draw(state["block"])

    def _draw(self, block: int) -> None:
        self._block = block
        self._begin = [generator.get_state() for generator in self._generators]
        indices: list[Tensor] = []
        noise: dict[str, list[Tensor]] = {name: [] for name in self._noise_shapes}
        for generator, rows in zip(self._generators, self._rows, strict=True):
            size = self._size if rows is None else len(rows)
            drawn = torch.randint(size, (BLOCK, self._batch_size), generator=generator, device=self._device)
            indices.append(drawn if rows is None else rows[drawn])
            for name, shape in self._noise_shapes.items():
                numbers = torch.randn((BLOCK, *shape), generator=generator, device=self._device, dtype=self._dtype)
                noise[name].append(numbers)
        self._indices = torch.stack(indices, 1)
        self._noise = {name: torch.stack(numbers, 1) for name, numbers in noise.items()}
