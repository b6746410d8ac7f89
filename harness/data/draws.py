"""The random numbers of training, drawn ahead in blocks from each replica's generator: minibatches and noise.

A replica's draws depend on its generator alone, not on the other replicas, and a block is always drawn whole, so that
neither the group nor the moment of a checkpoint changes what an agent sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.algorithm import Algorithm, Config, Replica, Selection
from harness.data.dataset import Dataset
from harness.data.sampling import Sampler, make_sampler

BLOCK = 64
"""Steps to a block. Results depend on it: a change is a change of every algorithm's version."""


class Draws:
    """A batch (R, B, ...) of the dataset and noise (R, *shape) for every step.

    Args:
        replicas: whose generators are used.
        sampler: what they draw, and what a batch of it is.
        batch_size: B.
        noise: shapes by name, as the algorithm declares them.
        device: where the numbers are drawn and used.
        dtype: of the noise.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        sampler: Sampler,
        batch_size: int,
        noise: Mapping[str, tuple[int, ...]],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._generators = [replica.generator("training", device) for replica in replicas]
        self._sampler, self._batch_size = sampler, batch_size
        self._noise_shapes, self._device, self._dtype = noise, device, dtype
        self._block = -1
        self._begin: list[Tensor] = []
        self._drawn = torch.empty(0)
        self._noise: dict[str, Tensor] = {}

    def at(self, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Batch and noise of a step, counted from 0; steps are asked for in order."""
        block, offset = divmod(step, BLOCK)
        if block != self._block:
            if block != self._block + 1:
                raise ValueError(f"draws are taken in order: block {block} after {self._block}")
            self._draw(block)
        return self._sampler.batch(self._drawn[offset]), {name: noise[offset] for name, noise in self._noise.items()}

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
        drawn: list[Tensor] = []
        noise: dict[str, list[Tensor]] = {name: [] for name in self._noise_shapes}
        for index, generator in enumerate(self._generators):
            drawn.append(self._sampler.draw(index, generator, (BLOCK, self._batch_size)))
            for name, shape in self._noise_shapes.items():
                numbers = torch.randn((BLOCK, *shape), generator=generator, device=self._device, dtype=self._dtype)
                noise[name].append(numbers)
        self._drawn = torch.stack(drawn, 1)
        self._noise = {name: torch.stack(numbers, 1) for name, numbers in noise.items()}


def prepare(
    algorithm: type[Algorithm[Config]],
    config: Config,
    dataset: Dataset,
    replicas: Sequence[Replica],
    selections: Sequence[Selection],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[list[Replica], Draws]:
    """What a group of agents trains on.

    Returns:
        The replicas, with what their selections measured in the data, and their draws.
    """
    replicas = [replace(one, statistics=kept.statistics) for one, kept in zip(replicas, selections, strict=True)]
    columns, length = algorithm.columns(config), algorithm.sequence_length(config)
    sampler = make_sampler(dataset, columns, selections, length, device, dtype)
    return replicas, Draws(replicas, sampler, config.batch_size, algorithm.noise(config, dataset.task), device, dtype)
