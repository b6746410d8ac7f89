"""Batches of transitions and of windows: each replica its own, windows as OSRL's SequenceDataset cuts them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.cdt import CDT, CDTHyperparameters
from algorithms.osrl import sequence_dataset
from harness.algorithm import Replica, Segments, Selection
from harness.data.dataset import Dataset, load_dataset
from harness.data.sampling import WindowSampler, make_sampler
from harness.tasks import find_task

TASK = find_task("BallRun")
COLUMNS = ("observations", "actions", "costs", "rewards_to_go", "costs_to_go")


def made_up(lengths: list[int]) -> Dataset:
    """Trajectories of these lengths, every number different; the rows say where they stand."""
    rows = sum(lengths)
    ends = np.cumsum(lengths) - 1
    numbers = np.arange(1, rows + 1, dtype=np.float32)
    arrays = {
        "observations": np.tile(numbers[:, None], (1, 7)),
        "next_observations": np.tile(numbers[:, None] + 1, (1, 7)),
        "actions": np.tile(numbers[:, None] / (2 * rows), (1, 2)),
        "rewards": numbers,
        "costs": (numbers % 3 == 0).astype(np.float32),
        "terminals": np.zeros(rows, dtype=bool),
        "timeouts": np.isin(np.arange(rows), ends),
    }
    return Dataset(TASK, Path("made-up.hdf5"), "dsrl", arrays)


def entries(trajectories: list[int], weights: list[float], shift: float = 0.0) -> Segments:
    shifts = np.full(len(trajectories), shift)
    return Segments(np.array(trajectories), np.array(weights), shifts, -shifts)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 6), st.integers(0, 2**20))
def test_windows_stay_within_their_trajectory(lengths: list[int], window: int, seed: int) -> None:
    dataset = made_up(lengths)
    sampler = make_sampler(dataset, COLUMNS, [Selection(), Selection()], window, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.stack([sampler.draw(replica, generator, (1, 50))[0] for replica in range(2)])
    batch = sampler.batch(drawn)
    mask, steps = batch["mask"], batch["time_steps"]
    assert mask.shape == steps.shape == (2, 50, window)
    entry, first = drawn.unbind(-1)
    length = torch.tensor(lengths)[entry]
    assert ((first >= 0) & (first < length)).all()
    assert torch.equal(mask.sum(-1).long(), (length - first).clamp(max=window))
    assert torch.equal(steps, first.unsqueeze(-1) + torch.arange(window))
    start = torch.as_tensor(dataset.trajectories.starts)[entry].unsqueeze(-1)
    assert torch.equal(batch["observations"][..., 0], (start + steps + 1) * mask)
    for name in COLUMNS:
        values = batch[name] if batch[name].ndim == 4 else batch[name].unsqueeze(-1)
        assert (values[mask == 0] == 0).all()


def test_entries_are_drawn_by_weight_and_shifted_and_each_replica_has_its_own() -> None:
    dataset = made_up([4, 2, 3])
    selections = [
        Selection(segments=entries([0, 2], [0.0, 1.0])),
        Selection(segments=entries([1, 0, 1], [1.0, 2.0, 1.0], shift=100.0)),
    ]
    sampler = make_sampler(dataset, COLUMNS, selections, 2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([sampler.draw(replica, generator, (1, 4000))[0] for replica in range(2)])
    assert (drawn[0, :, 0] == 1).all()
    shares = torch.bincount(drawn[1, :, 0]) / 4000
    assert (shares - torch.tensor([0.25, 0.5, 0.25])).abs().max() < 0.03
    batch = sampler.batch(drawn)
    assert set(batch["observations"][0, :, 0, 0].tolist()) == {7, 8, 9}
    assert set(batch["observations"][1, :, 0, 0].tolist()) == {1, 2, 3, 4, 5, 6}
    rewards = torch.as_tensor(dataset.column("rewards_to_go"), dtype=torch.float64)
    costs = torch.as_tensor(dataset.column("costs_to_go"), dtype=torch.float64)
    rows = batch["observations"][..., 0, 0].long() - 1
    assert torch.equal(batch["rewards_to_go"][0, :, 0], rewards[rows[0]])
    assert torch.equal(batch["rewards_to_go"][1, :, 0], rewards[rows[1]] + 100)
    assert torch.equal(batch["costs_to_go"][1, :, 0], costs[rows[1]] - 100)


def test_first_steps_are_uniform() -> None:
    sampler = make_sampler(made_up([8]), COLUMNS, [Selection()], 3)
    drawn = sampler.draw(0, torch.Generator().manual_seed(1), (1, 8000))[0, :, 1]
    counts = torch.bincount(drawn, minlength=8)
    assert len(counts) == 8
    assert ((counts - 1000).abs() < 120).all()


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_windows_are_osrls(share: float) -> None:
    """The same entry and first step, relabelled or not, of the data that ships with this project."""
    dataset = load_dataset(TASK, "demo")
    config = CDTHyperparameters.model_validate({**CDT.published(TASK), "augment_share": share, "reward_scale": 1.0})
    theirs = sequence_dataset(dataset, config, seed=3)
    from harness import registry

    chosen = registry.load("osrl-cdt").select(dataset, config, Replica(0))
    made = sequence_dataset(dataset, config, Replica(0).entropy("augmentation"))
    sampler = make_sampler(dataset, COLUMNS, [chosen], config.sequence_length)
    assert isinstance(sampler, WindowSampler)
    assert len(theirs.dataset) == len(made.dataset) == len(chosen.segments.weights)  # type: ignore[union-attr]
    drawn = sampler.draw(0, torch.Generator().manual_seed(0), (1, 200))
    drawn[0, :20, 1] = 95  # beyond the end of these trajectories of 100 steps
    batch = sampler.batch(drawn)
    for index, (entry, first) in enumerate(drawn[0].tolist()):
        wanted = made._SequenceDataset__prepare_sample(entry, first)
        names = ("observations", "actions", "rewards_to_go", "costs_to_go", "time_steps", "mask", None, "costs")
        for name, value in zip(names, wanted, strict=True):
            if name is not None:
                assert np.allclose(batch[name][0, index].numpy(), value, atol=2e-3, rtol=1e-6), (name, entry, first)
