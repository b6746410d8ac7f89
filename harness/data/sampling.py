"""From random numbers to batches, on the device: single transitions, or windows of a trajectory's steps.

The whole dataset lies on the device once, for all replicas; a batch is one gather a column.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from harness.algorithm import Segments, Selection
from harness.data.dataset import Dataset

Device = torch.device | str


class Sampler(ABC):
    """What the replicas of a job draw, and what a batch of it looks like."""

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
) -> Sampler:
    """The sampler that an algorithm asks for.

    Args:
        dataset: the job's.
        columns: what a batch is to hold.
        selections: what of the dataset each replica trains on.
        sequence_length: of the windows, or ``None`` for transitions.
        device: where the data lies and batches are made.
        dtype: of a batch.
    """
    data = {name: torch.as_tensor(dataset.column(name), dtype=dtype).to(device) for name in columns}
    if sequence_length is None:
        rows = [None if chosen.rows is None else torch.as_tensor(chosen.rows) for chosen in selections]
        return TransitionSampler(data, len(dataset), rows, device)
    starts, lengths = dataset.trajectories.starts, dataset.trajectories.lengths
    segments = [chosen.segments or all_segments(dataset) for chosen in selections]
    return WindowSampler(data, torch.as_tensor(starts), torch.as_tensor(lengths), segments, sequence_length, device)


def all_segments(dataset: Dataset) -> Segments:
    """Every trajectory once, all alike and as they are."""
    count = len(dataset.trajectories)
    return Segments(np.arange(count), np.ones(count), np.zeros(count), np.zeros(count))


class TransitionSampler(Sampler):
    """Draws are rows of the dataset, uniform over those that a replica may draw.

    Args:
        data: columns (N,) or (N, dim) on the device.
        size: N.
        rows: for each replica the rows it may draw (n_r,), or ``None`` for all.
        device: of the data and the draws.
    """

    def __init__(self, data: dict[str, Tensor], size: int, rows: Sequence[Tensor | None], device: Device) -> None:
        self._data, self._size, self._device = data, size, device
        self._rows = [None if chosen is None else chosen.to(device) for chosen in rows]

    def draw(self, replica: int, generator: torch.Generator, shape: tuple[int, int]) -> Tensor:
        """Rows, of the given shape."""
        rows = self._rows[replica]
        size = self._size if rows is None else len(rows)
        drawn = torch.randint(size, shape, generator=generator, device=self._device)
        return drawn if rows is None else rows[drawn]

    def batch(self, drawn: Tensor) -> dict[str, Tensor]:
        """Columns (R, B) or (R, B, dim) for rows (R, B)."""
        return {name: column[drawn] for name, column in self._data.items()}


class WindowSampler(Sampler):
    """Draws are (entry, first step): an entry by its weight, then a step of its trajectory, all alike.

    A window begins at that step, and is zero behind the trajectory's end, as in OSRL's ``SequenceDataset``.

    Args:
        data: columns (N,) or (N, dim) on the device.
        starts: (T,) first row of each trajectory.
        lengths: (T,) of each trajectory.
        segments: each replica's entries.
        sequence_length: K.
        device: of the data and the draws.
    """

    SHIFTED = {"rewards_to_go": "reward_shift", "costs_to_go": "cost_shift"}  # noqa: RUF012 - a constant

    def __init__(
        self,
        data: dict[str, Tensor],
        starts: Tensor,
        lengths: Tensor,
        segments: Sequence[Segments],
        sequence_length: int,
        device: Device,
    ) -> None:
        self._data, self._device = data, device
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
                values.append(torch.as_tensor(getattr(entries, self.SHIFTED[column])).to(device, data[column].dtype))
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
        """Columns (R, B, K) or (R, B, K, dim), ``mask`` and ``time_steps`` (R, B, K), for draws (R, B, 2)."""
        entries = drawn[..., 0] + self._offsets
        time_steps = drawn[..., 1:] + self._steps
        inside = time_steps < self._all_lengths[entries].unsqueeze(-1)
        # Behind the end the first row of the window stands in; it is masked out.
        rows = self._all_starts[entries].unsqueeze(-1) + torch.where(inside, time_steps, drawn[..., 1:])
        batch = {}
        for name, column in self._data.items():
            values = column[rows]
            if name in self._shifts:
                values = values + self._shifts[name][entries].unsqueeze(-1)
            batch[name] = values * (inside if values.ndim == inside.ndim else inside.unsqueeze(-1))
            mask = inside.to(values.dtype)
        return {**batch, "mask": mask, "time_steps": time_steps}
