"""Batches of transitions and of windows: each replica its own, windows as OSRL's SequenceDataset cuts them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algorithms.cdt import CDT, CDTHyperparameters
from algorithms.osrl.models import sequence_dataset
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


@settings(max_examples=50)
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


GOOD = entries([0, 1], [1.0, 2.0])


@pytest.mark.parametrize(
    ("selection", "length", "message"),
    [
        (Selection(rows=np.array([0, 9])), None, "rows must be indices from 0 to 8, and are from 0 to 9"),
        (Selection(rows=np.array([-1])), None, "rows must be indices from 0 to 8, and are from -1 to -1"),
        (Selection(rows=np.ones(9, bool)), None, "rows must be indices .*, not an array of bool"),
        (Selection(rows=np.array([1.0])), None, "rows must be indices .*, not an array of float64"),
        (Selection(rows=np.zeros((2, 1), int)), None, r"of shape \(2, 1\)"),
        (Selection(rows=np.zeros(0, int)), None, r"of shape \(0,\)"),
        (Selection(rows=np.array([1])), 3, "gives rows, and with a sequence length segments are drawn"),
        (Selection(segments=GOOD), None, "gives segments, which go with a sequence length"),
        (Selection(segments=entries([0, 2], [1, 1])), 3, "segments.trajectories must be indices from 0 to 1"),
        (Selection(segments=entries([], [])), 3, "segments.trajectories must be indices"),
        (Selection(segments=replace(GOOD, weights=np.ones(3))), 3, r"weights is of shape \(3,\), .* of \(2,\)"),
        (Selection(segments=replace(GOOD, cost_shift=np.ones(1))), 3, r"cost_shift is of shape \(1,\), .* of \(2,\)"),
        (
            Selection(segments=replace(GOOD, reward_shift=np.full(2, np.nan))),
            3,
            "reward_shift must hold finite numbers",
        ),
        (Selection(segments=entries([0, 1], [1, np.inf])), 3, "weights must hold finite numbers"),
        (Selection(segments=entries([0, 1], [2, -1])), 3, "weights must not be negative, nor all 0"),
        (Selection(segments=entries([0, 1], [0, 0])), 3, "weights must not be negative, nor all 0"),
    ],
)
def test_a_selection_that_does_not_fit_is_refused(selection: Selection, length: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_sampler(made_up([4, 5]), COLUMNS, [Selection(), selection], length)


def stretches(trajectories: list[int], starts: list[int], length: int, label: list[float]) -> Segments:
    count = len(trajectories)
    return Segments(
        np.array(trajectories),
        np.ones(count),
        starts=np.array(starts),
        length=length,
        values={"label": np.array(label)},
    )


def test_segments_begin_where_they_say_and_bring_their_values() -> None:
    """Of trajectories of 6, 3 and 5 steps, whose rows are numbered from 1; each replica has its own."""
    dataset = made_up([6, 3, 5])
    selections = [
        Selection(segments=stretches([0, 2, 2], [1, 0, 2], 3, [0.0, 1.0, 2.0])),
        Selection(segments=stretches([1], [0], 3, [7.0])),
    ]
    # The length is the selection's, whatever the algorithm's sequence length.
    sampler = make_sampler(dataset, COLUMNS, selections, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([sampler.draw(replica, generator, (1, 300))[0] for replica in range(2)])
    assert torch.bincount(drawn[0, :, 0]).min() > 60
    batch = sampler.batch(drawn)
    assert batch["label"].shape == (2, 300)
    rows = torch.tensor([[2, 3, 4], [10, 11, 12], [12, 13, 14]], dtype=torch.float64)
    assert torch.equal(batch["label"][0], drawn[0, :, 0].double())
    assert torch.equal(batch["observations"][0, :, :, 0], rows[drawn[0, :, 0]])
    assert torch.equal(batch["time_steps"][0, :, 0], torch.tensor([1, 0, 2])[drawn[0, :, 0]])
    assert (batch["label"][1] == 7).all()
    assert (batch["observations"][1, :, :, 0] == torch.tensor([7, 8, 9])).all()
    assert (batch["mask"] == 1).all()


@pytest.mark.parametrize("on_host", [False, True])
def test_segments_are_the_same_from_the_host(on_host: bool) -> None:
    dataset, chosen = made_up([6, 3, 5]), Selection(segments=stretches([0, 2], [2, 1], 4, [0.0, 1.0]))
    sampler = make_sampler(dataset, ("observations", "rewards"), [chosen], on_host=on_host)
    batch = sampler.batch(torch.tensor([[[0, 2], [1, 1]]]))
    assert batch["rewards"][0].tolist() == [[3, 4, 5, 6], [11, 12, 13, 14]]
    assert batch["label"][0].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        (stretches([0, 1], [0, 3], 2, [0.0, 0.0]), "segments.starts must be steps of their trajectories"),
        (stretches([0, 1], [0, -1], 2, [0.0, 0.0]), "segments.starts must be indices from 0 to 5"),
        (stretches([0, 1], [0], 2, [0.0, 0.0]), r"segments.starts is of shape \(1,\)"),
        (stretches([0, 1], [0, 0], 2, [0.0]), r"segments.label is of shape \(1,\)"),
        (stretches([0, 1], [0, 0], 2, [0.0, np.nan]), "segments.label must hold finite numbers"),
    ],
)
def test_stretches_that_do_not_fit_are_refused(segments: Segments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_sampler(made_up([6, 3]), COLUMNS, [Selection(segments=segments)])


def test_segments_of_two_lengths_are_refused() -> None:
    selections = [Selection(segments=stretches([0], [0], length, [0.0])) for length in (2, 3)]
    with pytest.raises(ValueError, match="of one length, not"):
        make_sampler(made_up([6]), COLUMNS, selections)
