"""Fitted Q-evaluation at the learning curve's points: what is kept, and that training is the same without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cells import make_cell, make_training
from torch import Tensor

from harness.data.dataset import Dataset, load_dataset
from harness.pending import Evaluations
from harness.plan import Cell
from harness.store import DIAGNOSTICS
from harness.suite import FQE, Evaluation
from harness.tasks import find_task
from harness.training import Training

TASK = find_task("BallRun")
SMALL: dict[str, dict[str, Any]] = {
    "lspc": {"batch_size": 8, "hidden_sizes": (8,), "latent_dim": 2},
    "bc": {"batch_size": 8, "hidden_sizes": (8,), "mode": "all"},
    "cdt": {
        "batch_size": 4,
        "sequence_length": 3,
        "embedding_dim": 8,
        "num_layers": 1,
        "num_heads": 2,
        "augment_share": 0,
    },
}
QUICK = FQE(steps=10, batch_size=8, hidden_sizes=(8,))


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    whole = load_dataset(TASK, "demo")
    return whole.subset(np.arange(len(whole.trajectories)) < 3)


def cell(name: str, seed: int = 0, fqe: FQE | None = QUICK, **settings: Any) -> Cell:
    evaluation = Evaluation(every=3, episodes=1, final=1, fqe=fqe)
    return make_cell(name, {"steps": 6, **SMALL[name], **settings}, seed=seed, evaluation=evaluation)


def run(loop: Training) -> Training:
    loop.advance(lambda: False)
    loop.collect()
    return loop


def tensors(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    items = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return [tensor for item in items for tensor in tensors(item)]


@pytest.fixture
def no_roll_outs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Evaluations, "submit", lambda *_: None)


@pytest.mark.parametrize("name", SMALL)
def test_training_is_the_same_with_and_without(name: str, tmp_path: Path, dataset: Dataset) -> None:
    with_it, without = (run(make_training(tmp_path / str(fqe), dataset, cell(name, fqe=fqe))) for fqe in (QUICK, None))
    ours, theirs = (tensors(loop.algorithm.state_dict()) for loop in (with_it, without))
    assert len(ours) == len(theirs) > 5
    assert all(map(torch.equal, ours, theirs))
    assert (with_it.curve, with_it.evaluations.episodes) == (without.curve, without.evaluations.episodes)
    assert (bool(with_it.diagnosed), without.diagnosed) == (True, [])


@pytest.mark.usefixtures("no_roll_outs")
def test_resumed_equals_uninterrupted(tmp_path: Path, dataset: Dataset) -> None:
    cells = [cell("lspc", seed) for seed in (0, 1)]
    whole = run(make_training(tmp_path / "whole", dataset, *cells))
    first = make_training(tmp_path / "parts", dataset, *cells)
    first.advance(lambda: first.step >= 4)
    first.checkpoint()
    assert 0 < len(first.diagnosed) < len(whole.diagnosed)
    second = run(make_training(tmp_path / "parts", dataset, *cells))
    assert second.diagnosed == whole.diagnosed


@pytest.mark.usefixtures("no_roll_outs")
def test_alone_equals_grouped(tmp_path: Path, dataset: Dataset) -> None:
    cells = [cell("lspc", seed) for seed in range(3)]
    grouped = run(make_training(tmp_path / "grouped", dataset, *cells, dtype=torch.float64))
    alone = run(make_training(tmp_path / "alone", dataset, cells[1], dtype=torch.float64))
    theirs = [{**row, "replica": 0} for row in grouped.diagnosed if row["replica"] == 1]
    assert len(theirs) == len(alone.diagnosed) == 2 * 2 * 2  # points, policies, metrics
    for one, other in zip(alone.diagnosed, theirs, strict=True):
        assert abs(one.pop("value") - other.pop("value")) < 1e-8
        assert one == other


@pytest.mark.usefixtures("no_roll_outs")
def test_what_is_kept(tmp_path: Path, dataset: Dataset) -> None:
    """Who is told the limit is judged at each; of whom nothing can be said, that is said."""
    told = cell("bc", mode="multi-task")
    frame = results(tmp_path / "told", dataset, told)
    assert tuple(frame.columns) == DIAGNOSTICS
    points = [(step, "bc-multi-task", limit) for step in (3, 6) for limit in (10.0, 20.0) for _ in range(2)]
    assert [tuple(row) for row in frame[["step", "policy", "cost_limit"]].to_numpy().tolist()] == points
    assert frame["metric"].tolist() == ["fqe_return", "fqe_cost"] * 4
    assert np.isfinite(frame["value"]).all()
    assert frame["value"].nunique() == 8
    notes: list[str] = []
    frame = results(tmp_path / "beyond", dataset, cell("cdt"), note=notes.append)
    assert len(frame) == 8
    assert frame["value"].isna().all()
    assert notes == ["no fitted Q-evaluation of cdt, which acts on more than the last observation"]


def results(root: Path, dataset: Dataset, one: Cell, **how: Any) -> Any:
    loop = run(make_training(root, dataset, one, **how))
    loop.rest({}).finish({})
    return loop.store.diagnostics(one)


@pytest.mark.usefixtures("no_roll_outs")
def test_a_diverged_replica_is_judged_no_more(tmp_path: Path, dataset: Dataset) -> None:
    loop = make_training(tmp_path, dataset, cell("bc", 0), cell("bc", 1))
    with torch.no_grad():
        next(iter(loop.algorithm.actor.parameters()))[0] = float("nan")  # type: ignore[attr-defined]
    run(loop)
    assert list(loop.stopped) == [0]
    assert {row["replica"] for row in loop.diagnosed} == {1}
