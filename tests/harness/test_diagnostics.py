"""Held-out data: nothing is trained on it, and what is measured on it changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from cells import make_cell, make_training
from recording import Recording
from rich.console import Console
from torch import Tensor

from algorithms.bc import BC, BCHyperparameters
from harness import diagnostics, plan, registry
from harness import engine as engines
from harness.algorithm import Batch, Policy, Replica
from harness.cli.progress import PlainProgress
from harness.data.dataset import KEYS, Dataset, load_dataset
from harness.diagnostics import Diagnostics, evenly, held_out_batch
from harness.executors.local import LocalExecutor
from harness.options import Options
from harness.pending import Evaluations
from harness.plan import Cell, CellData, Job
from harness.store import DIAGNOSTICS, Store
from harness.tasks import find_task
from harness.training import Training

TASK = find_task("BallRun")
CRITIC = {"batch_size": 8, "actor_hidden_sizes": (8,), "critic_hidden_sizes": (8,)}
SMALL: dict[str, dict[str, Any]] = {
    "lspc": {"batch_size": 8, "hidden_sizes": (8,), "latent_dim": 2},
    "bc": {"batch_size": 8, "hidden_sizes": (8,), "mode": "frontier"},
    "bcq-lag": {**CRITIC, "vae_hidden_size": 8, "sampled_actions": 2},
    "bear-lag": {**CRITIC, "vae_hidden_size": 8, "sampled_actions": 2, "mmd_samples": 2},
    "cpq": {**CRITIC, "vae_hidden_size": 8, "sampled_actions": 2},
    "coptidice": CRITIC,
    "ccac": {
        **CRITIC,
        "vae_hidden_sizes": (8,),
        "latent_size": 2,
        "classifier_hidden_sizes": (8,),
        "multiplier_hidden_sizes": (8,),
    },
    "cdt": {"batch_size": 4, "sequence_length": 3, "embedding_dim": 8, "num_layers": 1, "num_heads": 2},
    "caps": CRITIC,
    "trac": {"batch_size": 4, "hidden_sizes": (8,), "seg_ratio": 0.1},
    "fisor": {
        **{"batch_size": 8, "critic_hidden_sizes": (8,), "width": 8, "blocks": 1, "time_size": 4, "frequencies": 2},
        "samples": 2,
    },
}


def cell(name: str, seed: int = 0, holdout: float = 0.1) -> Cell:
    settings = {"steps": 6, **SMALL.get(name, {})}
    kind = registry.load(name)
    limit = 20.0 if kind.depends_on_cost_limit(kind.Hyperparameters.model_validate(settings)) else None
    data = CellData(source="demo", holdout=holdout)
    return make_cell(name, settings, seed=seed, cost_limit=limit, evaluation_limits=(20.0,), data=data)


def training(root: Path, data: tuple[Dataset, Dataset | None], *cells: Cell, **how: Any) -> Training:
    dataset, held_out = data
    return make_training(root, dataset, *cells, held_out=held_out, **how)


@pytest.fixture
def no_roll_outs(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take their time, and are not what is tested."""
    monkeypatch.setattr(Evaluations, "submit", lambda *_: None)


def tensors(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    items = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return [tensor for item in items for tensor in tensors(item)]


def same(one: Training, other: Training) -> bool:
    """Whether two trainings have come to the same, to the last bit."""
    ours, theirs = tensors(one.algorithm.state_dict()), tensors(other.algorithm.state_dict())
    return one.curve == other.curve and len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


# Training does not see it


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.usefixtures("no_roll_outs")
def test_held_out_rows_are_never_trained_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are poison: training is what it is on a file that does not hold them."""
    whole = load_dataset(TASK, "demo")
    without, _ = whole.split(0.1, 0)
    numbered = replace(whole, arrays={**whole.arrays, "rewards": np.arange(len(whole), dtype=np.float32)})
    poison = np.isin(np.arange(len(whole)), numbered.split(0.1, 0)[1].arrays["rewards"])
    assert poison.sum() == 2000
    poisoned = {
        key: np.where(poison.reshape(-1, *[1] * (values.ndim - 1)), np.float32(np.nan), values)
        if values.dtype == np.float32
        else values
        for key, values in whole.arrays.items()
    }
    one = cell(name)
    clean = training(tmp_path / "clean", (replace(without), None), one)
    monkeypatch.setattr(plan, "load_dataset", lambda *_: replace(whole, arrays=poisoned))
    data = one.data.load(TASK)
    assert data[1] is not None
    assert np.isnan(data[1].arrays["observations"]).all()
    loop = training(tmp_path / "poisoned", data, one)
    for run in (clean, loop):
        run.advance(lambda: False)
    assert same(clean, loop)
    assert all(np.isfinite(value).all() for row in loop.curve for value in row.values())
    # Whatever is measured on it is, and is kept as it is.
    values = [row["value"] for row in loop.diagnosed if row["metric"].endswith(("error", "bias"))]
    assert values
    assert np.isnan(values).all()
    loop.collect()
    assert [status.state for status in loop.rest({}).finish({}).values()] == ["done"]
    assert Store(tmp_path / "poisoned").diagnostics(one)["value"].isna().any()


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.usefixtures("no_roll_outs")
def test_training_is_the_same_with_and_without_diagnostics(name: str, tmp_path: Path) -> None:
    one = cell(name)
    dataset, held_out = one.data.load(TASK)
    loops = [training(tmp_path / str(data is None), (dataset, data), one) for data in (held_out, None)]
    for loop in loops:
        loop.advance(lambda: False)
    assert loops[0].diagnosed
    assert not loops[1].diagnosed
    assert same(*loops)


@pytest.mark.usefixtures("no_roll_outs")
def test_recorded_updates_are_diagnosed_as_eager_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "CudaGraph", Recording)
    one = cell("lspc")
    loops = [training(tmp_path / engine, one.data.load(TASK), one, engine=engine) for engine in ("eager", "graph")]
    for loop in loops:
        loop.advance(lambda: False)
    assert loops[1].engine.name == "graph"
    assert same(*loops)
    assert loops[0].diagnosed == loops[1].diagnosed


# What is kept


@pytest.mark.parametrize("name", ["lspc", "cdt"])
@pytest.mark.usefixtures("no_roll_outs")
def test_diagnostics_resumed_are_diagnostics_uninterrupted(name: str, tmp_path: Path) -> None:
    cells = [cell(name, seed) for seed in (0, 1)]
    data = cells[0].data.load(TASK)
    whole = training(tmp_path / "whole", data, *cells)
    whole.advance(lambda: False)
    first = training(tmp_path / "parts", data, *cells)
    first.advance(lambda: first.step >= 4)
    first.checkpoint()
    second = training(tmp_path / "parts", data, *cells)
    second.advance(lambda: False)
    assert whole.diagnosed == second.diagnosed
    for loop in (whole, second):
        loop.rest({}).finish({})
    for one in cells:
        frames = [Store(tmp_path / part).diagnostics(one) for part in ("whole", "parts")]
        pd.testing.assert_frame_equal(*frames)
        assert sorted(frames[0]["step"].unique()) == [3, 6]
        assert frames[0].columns.tolist() == list(DIAGNOSTICS)
        assert not frames[0].duplicated(["step", "policy", "metric"]).any()
        record = Store(tmp_path / "whole").record(one)["dataset"]
        assert (record["trajectories"], record["held_out_trajectories"]) == (180, 20)
        assert (record["transitions"], record["held_out_transitions"]) == (18000, 2000)


def test_a_diverged_replica_is_diagnosed_no_more(tmp_path: Path, no_roll_outs: None) -> None:
    cells = [cell("bc", seed) for seed in (0, 1)]
    loop = training(tmp_path, cells[0].data.load(TASK), *cells)
    with torch.no_grad():
        next(iter(loop.algorithm.actor.parameters()))[0] = float("nan")  # type: ignore[attr-defined]
    loop.advance(lambda: False)
    assert {row["replica"] for row in loop.diagnosed} == {1}


class Failing(BC):
    """Its own mistake, for one seed."""

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        if (batch["observations"][:, 0, 0] != 0).any() and self.failing:
            raise ArithmeticError("no diagnosis")
        return {}

    def __init__(self, config: Any, task: Any, replicas: Any, *more: Any) -> None:
        super().__init__(config, task, replicas, *more)
        self.failing = any(replica.seed == 1 for replica in replicas)


def test_an_exception_in_diagnose_fails_the_cells_that_it_is_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [cell("bc", seed) for seed in (0, 1)]
    monkeypatch.setattr(registry, "load", lambda name: Failing)
    (tmp_path / "jobs").mkdir()
    store = Store(tmp_path)
    quiet = PlainProgress([], 1, Console(quiet=True))
    ended = LocalExecutor(store, quiet, Options("cpu", workers=0)).run([[Job(cells=tuple(cells))]])
    assert [ended[one.hash].state for one in cells] == ["done", "failed"]
    assert "ArithmeticError: no diagnosis" in store.status(cells[1]).reason
    assert store.diagnostics(cells[0])["metric"].unique().tolist() == ["action_error"]


# What it is


def test_of_too_many_steps_some_at_even_distances_are_looked_at() -> None:
    assert evenly(5, 10).tolist() == [0, 1, 2, 3, 4]
    assert evenly(101, 5).tolist() == [0, 25, 50, 75, 100]
    assert len(set(evenly(7001, 5000).tolist())) == 5000


def test_a_batch_holds_steps_in_memory_that_replicas_share(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = registry.load("lspc")
    dataset = load_dataset(TASK, "demo").split(0.1, 0)[1]
    config = kind.Hyperparameters.model_validate({"gamma": 0.5})
    for most, rows in ((5000, np.arange(2000)), (3, np.array([0, 1000, 1999]))):  # of 2000 steps
        monkeypatch.setattr(diagnostics, "MOST_STEPS", most)
        batch = held_out_batch(kind, config, dataset, 3)
        assert all(values.stride(0) == 0 and len(values) == 3 for values in batch.values())
        for name in ("observations", "rewards", "done", "safe"):
            assert np.array_equal(batch[name][2].numpy(), dataset.column(name)[rows])
        for name in ("rewards", "costs"):
            # Of whole trajectories, whichever steps are looked at.
            expected = dataset.trajectories.to_go(dataset.arrays[name], 0.5)[rows].astype(np.float32)
            assert np.array_equal(batch[f"discounted_{name}_to_go"][1].numpy(), expected)


def test_a_batch_of_windows_holds_every_step_once_or_windows_at_even_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = registry.load("cdt")
    config = kind.Hyperparameters.model_validate(SMALL["cdt"])  # windows of 3 steps, trajectories of 100
    dataset = load_dataset(TASK, "demo").split(0.1, 0)[1]
    batch = held_out_batch(kind, config, dataset, 2)
    mask = batch["mask"][1].bool()
    assert batch["mask"].shape == (2, 20 * 34, 3)
    for name in ("actions", "costs_to_go"):
        assert np.array_equal(batch[name][1][mask].numpy(), dataset.column(name))
    monkeypatch.setattr(diagnostics, "MOST_STEPS", 7)
    few = held_out_batch(kind, config, dataset, 2)
    assert torch.equal(few["actions"], batch["actions"][:, [0, 340, 679]])


class Told(Policy):
    """Acts on the limit alone."""

    def reset(self, seeds: Any, cost_limit: float | None) -> None:
        self.told = -1.0 if cost_limit is None else cost_limit

    def act(self, observations: Tensor) -> Tensor:
        return torch.full((len(observations), 2), self.told)


class Contextual(Told):
    markov: ClassVar[bool] = False


class Fixed(BC):
    @classmethod
    def acts_on_cost_limit(cls, config: BCHyperparameters) -> bool:
        return config.mode == "multi-task"

    def policies(self, replica: int) -> dict[str, Policy]:
        return {"told": Told(), "contextual": Contextual()}

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        return {"contextual/window_error": torch.ones(2), "shared": torch.arange(2.0)}


def tiny() -> Dataset:
    """Two trajectories, of 2 steps and cost 1, of 1 step and cost 3."""
    arrays = {key: np.zeros((3, 7), np.float32) for key in KEYS[:2]}
    arrays["actions"] = np.array([[1, 0], [0, 0], [3, 1]], np.float32)
    arrays["rewards"], arrays["costs"] = np.ones(3, np.float32), np.array([1, 0, 3], np.float32)
    arrays["terminals"], arrays["timeouts"] = np.array([0, 1, 1], bool), np.zeros(3, bool)
    return Dataset(TASK, Path("tiny.hdf5"), "own", arrays)


@pytest.mark.parametrize(
    ("mode", "error"),
    [
        ("all", (4 + 1 + 1 + 1 + 16 + 4) / 6),  # -1 everywhere: nothing is told
        ("multi-task", (0 + 1 + 1 + 1 + 0 + 4) / 6),  # 1, 1 and 3: what each trajectory costs
    ],
)
def test_the_error_of_actions_and_who_is_told_what(mode: str, error: float) -> None:
    config = BCHyperparameters(mode=mode)  # type: ignore[arg-type]
    agents = [Replica(0), Replica(1)]
    measured = Diagnostics(Fixed(config, TASK, agents), config, tiny(), agents)
    assert measured.rows(5, [1]) == [
        {"replica": 1, "step": 5, "policy": "told", "metric": "action_error", "value": pytest.approx(error)},
        {"replica": 1, "step": 5, "policy": "contextual", "metric": "window_error", "value": 1.0},
        {"replica": 1, "step": 5, "policy": "", "metric": "shared", "value": 1.0},
    ]


def test_noise_of_policies_is_the_replicas_and_global_generators_are_left_alone() -> None:
    kind = registry.load("lspc")
    config = kind.Hyperparameters.model_validate(SMALL["lspc"])
    agents = [Replica(0), Replica(1)]
    held_out = load_dataset(TASK, "demo").split(0.1, 0)[1]
    grouped = Diagnostics(kind(config, TASK, agents), config, held_out, agents)
    alone = Diagnostics(kind(config, TASK, agents[1:]), config, held_out, agents[1:])
    before = torch.get_rng_state()
    errors = grouped.action_errors(1)
    assert torch.equal(before, torch.get_rng_state())
    assert errors == pytest.approx(alone.action_errors(0))
    assert errors == grouped.action_errors(1)
    assert set(errors) == {"lspc-s", "lspc-o"}


def test_a_diagnostic_of_a_wrong_shape_is_refused() -> None:
    class Summed(Fixed):
        def diagnose(self, batch: Batch) -> dict[str, Tensor]:
            return {"sum": torch.zeros(())}

    config, agents = BCHyperparameters(), [Replica(0), Replica(1)]
    with pytest.raises(diagnostics.DiagnosticError, match=r"the diagnostic sum has shape \(\), not one number"):
        Diagnostics(Summed(config, TASK, agents), config, tiny(), agents).of_agents()
