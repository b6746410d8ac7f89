"""From random numbers to batches, on the device: single transitions, or windows of a trajectory's steps.

The whole dataset lies on the device once, for all replicas, and a batch is one gather a column; or, where the device is
too small for it, in the host's memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
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

    Raises:
        ValueError: a selection is none of this dataset, or the replicas' segments are not of one length.
    """
    for chosen in selections:
        _require_fit(chosen, dataset, sequence_length)
    tensors = {name: torch.as_tensor(dataset.column(name), dtype=dtype) for name in columns}
    data = Columns(tensors, device, on_host)
    windows = {chosen.window(sequence_length) for chosen in selections}
    if len(windows) > 1:
        raise ValueError(
            f"replicas that train side by side draw segments of one length, not {sorted(map(str, windows))}"
        )
    (window,) = windows
    if window is None:
        rows = [None if chosen.rows is None else torch.as_tensor(chosen.rows) for chosen in selections]
        return TransitionSampler(data, len(dataset), rows)
    starts, lengths = dataset.trajectories.starts, dataset.trajectories.lengths
    segments = [chosen.segments or all_segments(dataset) for chosen in selections]
    return WindowSampler(data, torch.as_tensor(starts), torch.as_tensor(lengths), segments, window)


def _require_fit(chosen: Selection, dataset: Dataset, sequence_length: int | None) -> None:
    """Refuse a selection that would draw what is not there, or be passed over.

    Raises:
        ValueError: says what is wrong with it.
    """
    rows, segments, window = chosen.rows, chosen.segments, chosen.window(sequence_length)
    if window is None and segments is not None:
        raise ValueError("gives segments, which go with a sequence length; without one, rows are drawn")
    if window is not None and rows is not None:
        raise ValueError("gives rows, and with a sequence length segments are drawn")
    if rows is not None:
        _require_indices("rows", rows, len(dataset))
    if segments is None:
        return
    trajectories = dataset.trajectories
    _require_indices("segments.trajectories", segments.trajectories, len(trajectories))
    of_entries = {name: getattr(segments, name) for name in ("weights", "reward_shift", "cost_shift", "starts")}
    for name, given in (of_entries | dict(segments.values)).items():
        values = np.asarray(given)
        if given is not None and values.shape != np.shape(segments.trajectories):
            wanted = np.shape(segments.trajectories)
            raise ValueError(f"segments.{name} is of shape {values.shape}, segments.trajectories of {wanted}")
        if given is not None and (values.dtype.kind not in "iuf" or not np.isfinite(values).all()):
            raise ValueError(f"segments.{name} must hold finite numbers")
    if np.min(segments.weights) < 0 or not 0 < np.sum(segments.weights) < np.inf:
        raise ValueError("segments.weights must not be negative, nor all 0")
    if segments.starts is not None:
        _require_indices("segments.starts", segments.starts, int(trajectories.lengths.max()))
        if (segments.starts >= trajectories.lengths[segments.trajectories]).any():
            raise ValueError("segments.starts must be steps of their trajectories: one lies behind its end")


def _require_indices(name: str, given: NDArray[np.int64], count: int) -> None:
    """Refuse what are no indices of ``count`` things."""
    indices = np.asarray(given)
    if indices.ndim != 1 or not len(indices) or indices.dtype.kind not in "iu":
        raise ValueError(f"{name} must be indices (n,), not an array of {indices.dtype} of shape {indices.shape}")
    if indices.min() < 0 or indices.max() >= count:
        raise ValueError(
            f"{name} must be indices from 0 to {count - 1}, and are from {indices.min()} to {indices.max()}"
        )


def all_segments(dataset: Dataset) -> Segments:
    """Every trajectory once, all alike and as they are."""
    count = len(dataset.trajectories)
    return Segments(np.arange(count), np.ones(count))


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
    """Draws are (entry, first step): an entry by its weight, then its own first step, or any of its trajectory, alike.

    A window begins at that step, and is zero behind the trajectory's end, as in OSRL's ``SequenceDataset``.

    Args:
        data: columns of N rows.
        starts: (T,) first row of each trajectory.
        lengths: (T,) of each trajectory.
        segments: each replica's entries, with values of the same names.
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
        device, counts = self._device, [len(entries) for entries in segments]
        self._steps = torch.arange(sequence_length, device=device)
        self._cumulative, self._firsts = [], []
        for entries in segments:
            cumulative = torch.as_tensor(entries.weights, dtype=torch.float64).cumsum(0)
            self._cumulative.append((cumulative / cumulative[-1]).to(device))
            self._firsts.append(None if entries.starts is None else torch.as_tensor(entries.starts).to(device))
        # The replicas' entries one behind the other, so that a batch is one gather for all.
        behind = torch.tensor(counts).cumsum(0) - torch.tensor(counts)
        self._offsets = behind.unsqueeze(1).to(device)
        trajectories = torch.cat([torch.as_tensor(entries.trajectories) for entries in segments])
        self._all_starts, self._all_lengths = starts[trajectories].to(device), lengths[trajectories].to(device)
        self._lengths = self._all_lengths.split(counts)

        def joined(values: Sequence[NDArray[np.float64] | None], dtype: torch.dtype) -> Tensor:
            filled = [np.zeros(count) if one is None else one for one, count in zip(values, counts, strict=True)]
            return torch.as_tensor(np.concatenate(filled)).to(device, dtype)

        self._shifts = {
            column: joined([getattr(entries, shift) for entries in segments], data.dtype(column))
            for column, shift in self.SHIFTED.items()
            if column in data and any(getattr(entries, shift) is not None for entries in segments)
        }
        self._values = {
            name: joined([entries.values[name] for entries in segments], torch.float64) for name in segments[0].values
        }

    def draw(self, replica: int, generator: torch.Generator, shape: tuple[int, int]) -> Tensor:
        """Entry and first step, with ``shape`` in front: (*shape, 2)."""
        numbers = torch.rand((2, *shape), generator=generator, device=self._device, dtype=torch.float64)
        entries = torch.searchsorted(self._cumulative[replica], numbers[0], right=True)
        own = self._firsts[replica]
        firsts = (numbers[1] * self._lengths[replica][entries]).long() if own is None else own[entries]
        return torch.stack([entries, firsts], -1)

    def batch(self, drawn: Tensor) -> dict[str, Tensor]:
        """For draws (..., R, B, 2) columns (..., R, B, K) or (..., R, B, K, dim), and the entries' values (..., R, B).

        Beside them ``mask`` and ``time_steps`` (..., R, B, K).
        """
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
        of_entries = {name: values[entries].to(mask.dtype) for name, values in self._values.items()}
        return {**batch, **of_entries, "mask": mask, "time_steps": time_steps}
