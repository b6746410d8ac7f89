"""The random numbers of training, drawn ahead in blocks from each replica's generator: minibatches and noise.

A replica's draws depend on its generator alone: not on the other replicas, nor on the moment of a checkpoint, nor on
the size of a block, nor on where the data lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.algorithm import Algorithm, Config, Replica, Selection
from harness.data.dataset import Dataset
from harness.data.sampling import Sampler, make_sampler

UNIT = 8
"""Steps for which a generator is asked at once. Results depend on it: a change raises the schema of results."""
BLOCK = 64
"""Steps drawn ahead, a multiple of UNIT, where memory allows."""

Tensors = dict[str, Tensor]


class Draws:
    """A batch (R, B, ...) of the dataset and noise (R, *shape) for every step.

    Every block lies in the same memory, so that a CUDA graph can read it. Where the data stays on the host, the next
    block's batches are gathered in a thread while this one is trained on.

    Args:
        replicas: whose generators are used.
        sampler: what they draw, and what a batch of it is.
        batch_size: B.
        noise: shapes by name, as the algorithm declares them.
        device: where the numbers are drawn and used.
        dtype: of the noise.
        steps: of a block, a multiple of UNIT.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        sampler: Sampler,
        batch_size: int,
        noise: Mapping[str, tuple[int, ...]],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        steps: int = BLOCK,
    ) -> None:
        if steps % UNIT:
            raise ValueError(f"a block must be of a multiple of {UNIT} steps, not {steps}")
        self._generators = [replica.generator("training", device) for replica in replicas]
        self._sampler, self._batch_size = sampler, batch_size
        self._noise_shapes, self.device, self._dtype = noise, torch.device(device), dtype
        self._steps = steps
        self._first = -steps
        self._begin: list[Tensor] = []
        self._block: Tensors = {}
        self._cursor = torch.zeros(1, dtype=torch.int64, device=device)
        self._prefetch = _Prefetch(sampler, self.device) if sampler.on_host else None

    @property
    def replicas(self) -> int:
        """R."""
        return len(self._generators)

    def at(self, step: int) -> tuple[Tensors, Tensors]:
        """Batch and noise of a step, counted from 0, in order; the noise is overwritten when the next block begins."""
        offset = self._seek(step)
        return self._split({name: values[offset] for name, values in self._block.items()})

    def aim(self, step: int) -> None:
        """Let :meth:`aimed` mean this step."""
        self._cursor.fill_(self._seek(step))

    def aimed(self) -> tuple[Tensors, Tensors]:
        """Batch and noise of the step last aimed at, found on the device: what a CUDA graph captures."""
        return self._split({name: values.index_select(0, self._cursor)[0] for name, values in self._block.items()})

    def settle(self) -> None:
        """Wait until nothing is being prepared in the background."""
        if self._prefetch is not None:
            self._prefetch.settle()

    def state_dict(self) -> dict[str, Any]:
        """The generators as they were when the present block began."""
        return {"first": self._first, "generators": self._begin}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave, and draw that block again."""
        if self._prefetch is not None:
            self._prefetch.drop()
        if state["first"] < 0:
            return
        for generator, begin in zip(self._generators, state["generators"], strict=True):
            generator.set_state(begin)
        self._first = state["first"] - self._steps
        self._advance()

    def _seek(self, step: int) -> int:
        """Draw up to the block that holds a step; where in it the step is."""
        while step >= self._first + self._steps:
            self._advance()
        if step < self._first:
            raise ValueError(f"draws are taken in order: step {step} after {self._first}")
        return step - self._first

    def _advance(self) -> None:
        """Make the next block the present one."""
        self._first += self._steps
        if self._prefetch is None:
            self._begin = self._draw(self._block)
            return
        if not self._prefetch.under_way:
            self._prefetch.start(self._draw(self._prefetch.drawn))
        self._begin = self._prefetch.finish(self._block)
        self._prefetch.start(self._draw(self._prefetch.drawn))

    def _draw(self, block: Tensors) -> list[Tensor]:
        """Fill a block (K, R, ...); the generators' states before."""
        before = [generator.get_state() for generator in self._generators]
        for unit in range(0, self._steps, UNIT):
            for replica, generator in enumerate(self._generators):
                drawn = self._sampler.draw(replica, generator, (UNIT, self._batch_size))
                self._put(block, "drawn", unit, replica, drawn)
                for name, shape in self._noise_shapes.items():
                    numbers = torch.randn((UNIT, *shape), generator=generator, device=self.device, dtype=self._dtype)
                    self._put(block, f"noise {name}", unit, replica, numbers)
        return before

    def _put(self, block: Tensors, name: str, unit: int, replica: int, values: Tensor) -> None:
        if name not in block:
            block[name] = values.new_empty((self._steps, len(self._generators), *values.shape[1:]))
        block[name][unit : unit + UNIT, replica].copy_(values)

    def _split(self, step: Tensors) -> tuple[Tensors, Tensors]:
        noise = {name: step[f"noise {name}"] for name in self._noise_shapes}
        if self._prefetch is None:
            return self._sampler.batch(step["drawn"]), noise
        # Copies: an algorithm may change its batch.
        batch = {name.removeprefix("batch "): step[name].clone() for name in step if name.startswith("batch ")}
        return batch, noise


class _Prefetch:
    """The batches of a whole block, gathered on the host while another block is trained on."""

    def __init__(self, sampler: Sampler, device: torch.device) -> None:
        self._sampler, self._device = sampler, device
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._states: list[Tensor] = []
        self._batches: Future[Tensors] | None = None
        self.drawn: Tensors = {}

    @property
    def under_way(self) -> bool:
        return self._batches is not None

    def start(self, states: list[Tensor]) -> None:
        """Gather what ``drawn`` says; ``states`` are the generators' before it was drawn."""
        self._states = states
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        self._batches = self._thread.submit(self._gather)

    def finish(self, block: Tensors) -> list[Tensor]:
        """Copy the gathered batches, and the noise, to ``block``; the generators' states before."""
        assert self._batches is not None
        batches = self._batches.result()
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        for name, values in {**self.drawn, **{f"batch {name}": values for name, values in batches.items()}}.items():
            if name not in block:
                block[name] = torch.empty_like(values)
            block[name].copy_(values)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))  # before its memory is used again
        self._batches = None
        return self._states

    def settle(self) -> None:
        """Wait for the thread."""
        if self._batches is not None:
            self._batches.result()

    def drop(self) -> None:
        """Forget what is being gathered."""
        self.settle()
        self._batches = None

    def _gather(self) -> Tensors:
        beside: AbstractContextManager[Any] = nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        with beside:
            return self._sampler.batch(self.drawn["drawn"])


def prepare(
    algorithm: type[Algorithm[Config]],
    config: Config,
    dataset: Dataset,
    replicas: Sequence[Replica],
    selections: Sequence[Selection],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    steps: int = BLOCK,
    on_host: bool = False,
) -> tuple[list[Replica], Draws]:
    """What a group of agents trains on.

    Args:
        algorithm: of the group.
        config: of the algorithm.
        dataset: of the task.
        replicas: the agents.
        selections: what of the dataset each trains on.
        device: where to train.
        dtype: of the data.
        steps: drawn ahead.
        on_host: leave the data in the host's memory.

    Returns:
        The replicas, with what their selections measured in the data, and their draws.
    """
    replicas = [replace(one, statistics=kept.statistics) for one, kept in zip(replicas, selections, strict=True)]
    columns, length = algorithm.columns(config), algorithm.sequence_length(config)
    sampler = make_sampler(dataset, columns, selections, length, device, dtype, on_host)
    noise = algorithm.noise(config, dataset.task)
    return replicas, Draws(replicas, sampler, config.batch_size, noise, device, dtype, steps)
