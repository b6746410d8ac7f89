"""The loop of one job: alone equals grouped, resumed equals uninterrupted, divergence, the same seed twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cells import make_cell, make_training
from recording import GPU, Recording
from rich.console import Console
from torch import Tensor

from harness import engine as engines
from harness import registry
from harness.algorithm import Algorithm
from harness.cli.progress import PlainProgress
from harness.data.dataset import Dataset, load_dataset
from harness.errors import UserError
from harness.evaluation import Evaluator
from harness.executors import local
from harness.options import Options
from harness.plan import Cell, CellData, Job
from harness.store import Status, Store
from harness.suite import Evaluation
from harness.tasks import find_task
from harness.training import Training

pytestmark = pytest.mark.usefixtures("short_episodes")

CRITIC = {"steps": 80, "batch_size": 16, "actor_hidden_sizes": (16, 16), "critic_hidden_sizes": (16, 16)}
SMALL: dict[str, dict[str, Any]] = {
    "lspc": {"steps": 80, "batch_size": 32, "hidden_sizes": (16, 16), "latent_dim": 4},
    "bc": {"steps": 80, "batch_size": 32, "hidden_sizes": (16, 16), "mode": "safe"},
    "bcq-lag": {**CRITIC, "vae_hidden_size": 16, "sampled_actions": 3},
    "bear-lag": {**CRITIC, "vae_hidden_size": 16, "sampled_actions": 3, "mmd_samples": 3},
    "cpq": {**CRITIC, "vae_hidden_size": 16, "sampled_actions": 3},
    "coptidice": CRITIC,
    "cdt": {
        "steps": 80,
        "batch_size": 8,
        "sequence_length": 3,
        "embedding_dim": 8,
        "num_layers": 1,
        "num_heads": 2,
        "warmup_steps": 60,
    },
    "caps": {**CRITIC, "iql_cosine_steps": 60},
    "caps, sac": {**CRITIC, "backbone": "sac", "heads": 3},
    "ccac": {
        **CRITIC,
        "vae_hidden_sizes": (16, 16),
        "latent_size": 4,
        "classifier_hidden_sizes": (16, 16),
        "multiplier_hidden_sizes": (16, 16),
    },
    "trac": {"steps": 80, "batch_size": 8, "hidden_sizes": (16, 16), "seg_ratio": 0.1, "warmup_steps": 40},
    "fisor": {
        **{name: value for name, value in CRITIC.items() if name != "actor_hidden_sizes"},
        **{"width": 16, "blocks": 2, "time_size": 8, "frequencies": 4, "samples": 3, "actor_cosine_updates": 120},
    },
}
"""By name, and what follows a comma."""
REFERENCED = ("bc", "bcq-lag", "bear-lag", "cpq", "coptidice", "cdt")
SMALL |= {f"osrl-{name}": SMALL[name] for name in REFERENCED}
NATIVE = [name for name in SMALL if not name.startswith("osrl-")]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset(find_task("BallRun"), "demo")


def loaded(name: str) -> type[Algorithm[Any]]:
    return registry.load(name.partition(",")[0])


def cell(algorithm: str, seed: int, limit: float | None = None, **settings: Any) -> Cell:
    return make_cell(
        algorithm.partition(",")[0],
        {**SMALL[algorithm], **settings},
        seed=seed,
        cost_limit=limit,
        evaluation_limits=(10.0, 20.0) if limit is None else (limit,),
        evaluation=Evaluation(every=30, episodes=1, final=2),
    )


ENGINES = ["eager", "recorded", pytest.param("cuda graph", marks=GPU)]


@pytest.fixture
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """``recorded`` is the graph engine on the CPU, with recordings in the place of CUDA graphs."""
    name: str = request.param
    if name == "recorded":
        monkeypatch.setattr(engines, "CudaGraph", Recording)
    return name


def how(engine: str) -> dict[str, Any]:
    """What a training is told of an engine."""
    return {"engine": "eager" if engine == "eager" else "graph", "device": "cuda" if "cuda" in engine else "cpu"}


def run(loop: Training, until: int | None = None) -> Training:
    asked_for = loop.engine.name
    loop.advance(lambda: until is not None and loop.step >= until)
    assert loop.engine.name == asked_for
    loop.collect()
    return loop


def tensors(state: Any, replica: int, replicas: int) -> list[Tensor]:
    """One replica's part of every stacked tensor in a state, in order."""
    if isinstance(state, Tensor):
        return [state[replica]] if state.ndim and len(state) == replicas else []
    items = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return [tensor for item in items for tensor in tensors(item, replica, replicas)]


def limits(algorithm: str, *values: float) -> list[float | None]:
    """These where training depends on the limit, ``None`` elsewhere."""
    kind = loaded(algorithm)
    return (
        list(values) if kind.depends_on_cost_limit(kind.Hyperparameters(**SMALL[algorithm])) else [None] * len(values)
    )


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
@pytest.mark.parametrize("algorithm", NATIVE)
def test_alone_equals_grouped(tmp_path: Path, dataset: Dataset, algorithm: str, engine: str) -> None:
    """Tolerance 1e-10 in float64: batched matrix products may round differently for other group sizes."""
    cells = [cell(algorithm, seed, limit) for seed, limit in enumerate(limits(algorithm, 10.0, 20.0, 40.0))]
    grouped = run(make_training(tmp_path / "grouped", dataset, *cells, dtype=torch.float64, **how(engine)))
    alone = run(make_training(tmp_path / "alone", dataset, cells[1], dtype=torch.float64, **how(engine)))
    ours = tensors(grouped.algorithm.state_dict(), 1, 3)
    theirs = tensors(alone.algorithm.state_dict(), 0, 1)
    assert len(ours) == len(theirs) > 10
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() < 1e-10
    for one, other in zip(grouped.curve, alone.curve, strict=True):
        for name in one.keys() - {"step"}:
            assert abs(one[name][1] - other[name][0]) < 1e-10, name


@pytest.mark.parametrize(
    ("algorithm", "stop_at", "engine"),
    [
        *((name, 70, "eager") for name in SMALL),
        *((name, step, "eager") for name in ("lspc", "bc", "cdt") for step in (1, 64, 79)),
        *((name, 70, "recorded") for name in NATIVE),
        *((name, 2, "recorded") for name in ("lspc", "cdt")),
        *(pytest.param(name, 70, "cuda graph", marks=GPU) for name in NATIVE),
    ],
    indirect=["engine"],
)
def test_resumed_equals_uninterrupted(
    tmp_path: Path, dataset: Dataset, algorithm: str, stop_at: int, engine: str
) -> None:
    seeds = (0, 1) if loaded(algorithm).max_replicas is None else (0,)
    cells = [cell(algorithm, seed, *limits(algorithm, 10.0)) for seed in seeds]
    whole = run(make_training(tmp_path / "whole", dataset, *cells, **how(engine)))
    first = make_training(tmp_path / "parts", dataset, *cells, **how(engine))
    first.log_every = whole.log_every
    first.advance(lambda: first.step >= stop_at)
    first.checkpoint()  # before the roll-outs are taken in: they belong to the checkpoint
    second = make_training(tmp_path / "parts", dataset, *cells, **how(engine))
    assert second.step == first.step
    run(second)
    for one, other in zip(_flat(whole.algorithm.state_dict()), _flat(second.algorithm.state_dict()), strict=True):
        assert torch.equal(one, other)
    assert whole.curve == second.curve
    key = ("replica", "step", "policy", "cost_limit", "episode")
    order = lambda row: tuple(row[name] for name in key)  # noqa: E731
    assert sorted(whole.evaluations.episodes, key=order) == sorted(second.evaluations.episodes, key=order)


def _flat(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    items = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return [tensor for item in items for tensor in _flat(item)]


def test_the_same_seed_twice_is_equal_and_another_is_not(tmp_path: Path, dataset: Dataset) -> None:
    first, second, other = (
        run(make_training(tmp_path / name, dataset, cell("bc", seed, 10.0)))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first.curve == second.curve
    assert first.curve != other.curve
    assert first.evaluations.episodes == second.evaluations.episodes


def test_replicas_of_one_job_do_not_share_noise_or_weights(tmp_path: Path, dataset: Dataset) -> None:
    loop = make_training(tmp_path, dataset, cell("lspc", 0), cell("lspc", 1))
    batch, noise = loop.draws.at(0)
    assert not torch.equal(batch["observations"][0], batch["observations"][1])
    assert not torch.equal(noise["vae"][0], noise["vae"][1])
    first, second = (tensors(loop.algorithm.state_dict(), replica, 2)[0] for replica in (0, 1))
    assert not torch.equal(first, second)


def test_a_changed_dataset_is_refused_on_resume(tmp_path: Path, dataset: Dataset) -> None:
    first = make_training(tmp_path, dataset, cell("bc", 0, 10.0))
    first.advance(lambda: first.step >= 10)
    first.checkpoint()
    changed = Dataset(dataset.task, dataset.path, dataset.source, dataset.arrays, sha256="other")
    with pytest.raises(UserError, match="has changed since"):
        make_training(tmp_path, changed, cell("bc", 0, 10.0))


def test_a_diverged_replica_stops_alone(tmp_path: Path, dataset: Dataset) -> None:
    cells = (cell("bc", 0, 10.0), cell("bc", 1, 10.0))
    healthy = run(make_training(tmp_path / "healthy", dataset, *cells))
    loop = make_training(tmp_path / "sick", dataset, *cells)
    with torch.no_grad():
        next(iter(loop.algorithm.actor.parameters()))[0] = float("nan")  # type: ignore[attr-defined]
    run(loop)
    assert list(loop.stopped) == [0]
    assert "actor_loss not finite in steps 1 to 1" in loop.stopped[0]
    ended = loop.rest({}).finish({})
    assert (ended[0].state, ended[1].state) == ("diverged", "done")
    assert {row["replica"] for row in loop.evaluations.episodes} == {1}
    assert [row for row in healthy.evaluations.episodes if row["replica"] == 1] == loop.evaluations.episodes


def test_results_hold_what_is_promised(tmp_path: Path, dataset: Dataset) -> None:
    one = cell("lspc", 0)
    loop = run(make_training(tmp_path, dataset, one))
    loop.rest({}).finish({"versions": {}})
    store = Store(tmp_path)
    episodes = store.episodes(one)
    assert sorted(episodes["policy"].unique()) == ["lspc-o", "lspc-s"]
    counts = episodes.groupby(["policy", "step"]).size().unstack()
    assert counts.columns.tolist() == [30, 60, 80]
    assert counts.to_numpy().tolist() == [[1, 1, 2]] * 2
    assert episodes["cost_limit"].isna().all()
    assert (episodes["length"] == 10).all()
    curve = store.training(one)
    assert curve["step"].tolist() == list(range(1, 81))
    assert np.isfinite(curve.to_numpy()).all()
    record = store.record(one)
    assert record["dataset"]["sha256"] == dataset.sha256
    assert record["group"] == [one.hash]
    assert not store.checkpoint_path(loop.job).exists()


def test_a_resumed_group_whose_data_changed_leaves_done_cells_alone(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, unfinished = cell("bc", 0, 10.0), cell("bc", 1, 10.0)
    interrupted = make_training(tmp_path, dataset, done, unfinished)
    interrupted.checkpoint()
    interrupted.store.set_status(done, Status("done"))
    changed = Dataset(dataset.task, dataset.path, dataset.source, dataset.arrays, sha256="other")
    monkeypatch.setattr(CellData, "load", lambda self, task: (changed, None))
    quiet = PlainProgress([], 1, Console(quiet=True))
    ended = local.LocalExecutor(interrupted.store, quiet, Options("cpu", workers=0)).run([[interrupted.job]])
    assert [status.state for status in ended.values()] == ["failed"]
    assert "has changed since" in ended[unfinished.hash].reason
    assert interrupted.store.status(done).state == "done"


@GPU
@pytest.mark.parametrize("algorithm", NATIVE)
def test_a_gpu_learns_what_the_cpu_learns(tmp_path: Path, dataset: Dataset, algorithm: str) -> None:
    """The draws differ between devices, so losses are compared, not weights."""
    one = cell(algorithm, 0, *limits(algorithm, 10.0), steps=150)
    settings = loaded(algorithm)
    selections = [settings.select(dataset, one.config, one.replica)]
    curves = []
    for device in ("cpu", "cuda"):
        (tmp_path / device / "jobs").mkdir(parents=True)
        loop = Training(Job(cells=(one,)), dataset, selections, Store(tmp_path / device), Evaluator(0), device)
        curves.append(run(loop).curve)
    for name in curves[0][0].keys() - {"step"}:
        cpu, gpu = (np.mean([row[name][0] for row in curve[-50:]]) for curve in curves)
        assert np.isclose(cpu, gpu, rtol=0.3, atol=0.05), name
