"""From random numbers to batches, on the device: single transitions, or windows of a trajectory's steps.

The whole dataset lies on the device once, for all replicas, and a batch is one gather a column; or, where the device is
too small for it, in the host's memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from harness.algorithm import Segments, Selection
from harness.data.dataset import Dataset

Device = torch.device | str


class Columns:
    """The dataset's columns.

    Args:
        data: (N,) or (N, dim) each, in the host's memory.
        device: where batches are wanted.
        on_host: leave the data where it is; else it is copied to the device.
    """

    def __init__(self, data: Mapping[str, Tensor], device: Device, on_host: bool = False) -> None:
        self.device, self.on_host = torch.device(device), on_host
        self._data = data if on_host else {name: column.to(device) for name, column in data.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._data

    def dtype(self, name: str) -> torch.dtype:
        """Of a column."""
        return self._data[name].dtype

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        """Every column at rows (...) on the device: (...) or (..., dim)."""
        taken = {}
        if not self.on_host:
            flat = rows.flatten()  # whole rows are copied: on a CPU twice as fast as by column[rows]
            for name, column in self._data.items():
                taken[name] = column.index_select(0, flat).view(*rows.shape, *column.shape[1:])
            return taken
        here = rows.cpu()
        for name, column in self._data.items():
            gathered = torch.empty(
                (*rows.shape, *column.shape[1:]), dtype=column.dtype, pin_memory=self.device.type == "cuda"
            )
            torch.index_select(column, 0, here.flatten(), out=gathered.view(-1, *column.shape[1:]))
            taken[name] = gathered.to(self.device, non_blocking=True)
        return taken


class Sampler(ABC):
    """What the replicas of a job draw, and what a batch of it looks like."""

    def __init__(self, data: Columns) -> None:
        self._data, self._device = data, data.device

    @property
    def on_host(self) -> bool:
        """Whether a batch comes from the host's memory, so that it is worth its while to gather it ahead."""
        return self._data.on_host

    @abstractmethod
    def draw(self, replica: int, generator: torch.Generator, shape: tuple[int, int]) -> Tensor:
        """What one replica draws, int64, with ``shape`` in front; a function of the generator alone."""

    @abstractmethod
    def batch(self, drawn: Tensor) -> dict[str, Tensor]:
        """The columns for draws (R, B, ...), replica axis first."""


def make_sampler(
    dataset: Dataset,
    columns: Sequence[str],
    selections: Sequence[Selection],
    sequence_length: int | None = None,
    device: Device = "cpu",
    dtype: torch.dtype = torch.float32,
    on_host: bool = False,
) -> Sampler:
    """The sampler that an algorithm asks for.

    Args:
        dataset: the job's.
        columns: what a batch is to hold.
        selections: what of the dataset each replica trains on.
        sequence_length: of the windows, or ``None`` for transitions.
        device: where draws and batches are made.
        dtype: of a batch.
        on_host: leave the data in the host's memory.
    """
    tensors = {name: torch.as_tensor(dataset.column(name), dtype=dtype) for name in columns}
    data = Columns(tensors, device, on_host)
    if sequence_length is None:
        rows = [None if chosen.rows is None else torch.as_tensor(chosen.rows) for chosen in selections]
        return TransitionSampler(data, len(dataset), rows)
    starts, lengths = dataset.trajectories.starts, dataset.trajectories.lengths
    segments = [chosen.segments or all_segments(dataset) for chosen in selections]
    return WindowSampler(data, torch.as_tensor(starts), torch.as_tensor(lengths), segments, sequence_length)


def all_segments(dataset: Dataset) -> Segments:
    """Every trajectory once, all alike and as they are."""
    count = len(dataset.trajectories)
    return Segments(np.arange(count), np.ones(count), np.zeros(count), np.zeros(count))


class TransitionSampler(Sampler):
    """Draws are rows of the dataset, uniform over those that a replica may draw.

    Args:
        data: columns of N rows.
        size: N.
        rows: for each replica the rows it may draw (n_r,), or ``None`` for all.
    """

    def __init__(self, data: Columns, size: int, rows: Sequence[Tensor | None]) -> None:
        super().__init__(data)
        self._size = size
        self._rows = [None if chosen is None else chosen.to(self._device) for chosen in rows]

    def draw(self, replica: int, generator: torch.Generator, shape: tuple[int, int]) -> Tensor:
        """Rows, of the given shape."""
        rows = self._rows[replica]
        size = self._size if rows is None else len(rows)
        drawn = torch.randint(size, shape, generator=generator, device=self._device)
        return drawn if rows is None else rows[drawn]

    def batch(self, drawn: Tensor) -> dict[str, Tensor]:
        """Columns (..., R, B) or (..., R, B, dim) for rows (..., R, B)."""
        return self._data.take(drawn)


class WindowSampler(Sampler):
    """Draws are (entry, first step): an entry by its weight, then a step of its trajectory, all alike.

    A window begins at that step, and is zero behind the trajectory's end, as in OSRL's ``SequenceDataset``.

    Args:
        data: columns of N rows.
        starts: (T,) first row of each trajectory.
        lengths: (T,) of each trajectory.
        segments: each replica's entries.
        sequence_length: K.
    """

    SHIFTED = {"rewards_to_go": "reward_shift", "costs_to_go": "cost_shift"}  # noqa: RUF012 - a constant

    def __init__(
        self,
        data: Columns,
        starts: Tensor,
        lengths: Tensor,
        segments: Sequence[Segments],
        sequence_length: int,
    ) -> None:
        super().__init__(data)
        device = self._device
        self._steps = torch.arange(sequence_length, device=device)
        self._cumulative, self._starts, self._lengths = [], [], []
        shifts: dict[str, list[Tensor]] = {column: [] for column in self.SHIFTED if column in data}
        for entries in segments:
            trajectories = torch.as_tensor(entries.trajectories)
            cumulative = torch.as_tensor(entries.weights, dtype=torch.float64).cumsum(0)
            self._cumulative.append((cumulative / cumulative[-1]).to(device))
            self._starts.append(starts[trajectories].to(device))
            self._lengths.append(lengths[trajectories].to(device))
            for column, values in shifts.items():
                values.append(torch.as_tensor(getattr(entries, self.SHIFTED[column])).to(device, data.dtype(column)))
        # The replicas' entries one behind the other, so that a batch is one gather for all.
        counts = torch.tensor([len(entries.weights) for entries in segments])
        self._offsets = (counts.cumsum(0) - counts).unsqueeze(1).to(device)
        self._all_starts, self._all_lengths = torch.cat(self._starts), torch.cat(self._lengths)
        self._shifts = {column: torch.cat(values) for column, values in shifts.items()}

    def draw(self, replica: int, generator: torch.Generator, shape: tuple[int, int]) -> Tensor:
        """Entry and first step, with ``shape`` in front: (*shape, 2)."""
        numbers = torch.rand((2, *shape), generator=generator, device=self._device, dtype=torch.float64)
        entries = torch.searchsorted(self._cumulative[replica], numbers[0], right=True)
        lengths = self._lengths[replica][entries]
        return torch.stack([entries, (numbers[1] * lengths).long()], -1)

    def batch(self, drawn: Tensor) -> dict[str, Tensor]:
        """Columns (..., R, B, K) or (..., R, B, K, dim), ``mask`` and ``time_steps``, for draws (..., R, B, 2)."""
        entries = drawn[..., 0] + self._offsets
        time_steps = drawn[..., 1:] + self._steps
        inside = time_steps < self._all_lengths[entries].unsqueeze(-1)
        # Behind the end the first row of the window stands in; it is masked out.
        rows = self._all_starts[entries].unsqueeze(-1) + torch.where(inside, time_steps, drawn[..., 1:])
        batch = {}
        for name, values in self._data.take(rows).items():
            if name in self._shifts:
                values = values + self._shifts[name][entries].unsqueeze(-1)
            batch[name] = values * (inside if values.ndim == inside.ndim else inside.unsqueeze(-1))
            mask = inside.to(values.dtype)
        return {**batch, "mask": mask, "time_steps": time_steps}
