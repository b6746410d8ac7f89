"""Every engine computes what the eager one does; variants, fallbacks, and what a block may not do."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import pytest
import torch
from recording import GPU, Recording
from torch import Tensor, nn

from harness import engine as engines
from harness import registry
from harness.algorithm import Algorithm, Hyperparameters, Replica, kinds_of_update
from harness.contract import BrokenPromiseError, NoSynchronisation, flat
from harness.data.dataset import Dataset, load_dataset
from harness.data.draws import BLOCK, prepare
from harness.engine import Engine, make_engine, require_engine
from harness.errors import UserError
from harness.tasks import find_task

TASK = find_task("BallRun")
NARROW = {"batch_size": 16, "actor_hidden_sizes": (16, 16), "critic_hidden_sizes": (16, 16)}
VAE = {**NARROW, "vae_hidden_size": 16, "sampled_actions": 3}
SMALL: dict[str, dict[str, Any]] = {
    "lspc": {"batch_size": 16, "hidden_sizes": (16, 16), "latent_dim": 4},
    "bc": {"batch_size": 16, "hidden_sizes": (16, 16)},
    "bcq-lag": VAE,
    "bear-lag": {**VAE, "mmd_samples": 3, "policy_start": 20},
    "cpq": VAE,
    "coptidice": NARROW,
    "cdt": {"batch_size": 8, "sequence_length": 3, "embedding_dim": 8, "num_heads": 2, "warmup_steps": 40},
    "caps": {**NARROW, "heads": 3, "iql_cosine_steps": 80},
    "caps, sac": {**NARROW, "heads": 3, "backbone": "sac"},
    "ccac": {
        **NARROW,
        "steps": 100,
        "vae_hidden_sizes": (16, 16),
        "latent_size": 4,
        "classifier_hidden_sizes": (16, 16),
        "multiplier_hidden_sizes": (16, 16),
    },
    "trac": {"batch_size": 8, "hidden_sizes": (16, 16), "steps": 100, "seg_ratio": 0.1, "warmup_steps": 40},
    "fisor": {
        **{"batch_size": 16, "critic_hidden_sizes": (16, 16), "actor_cosine_updates": 160},
        **{"width": 16, "blocks": 2, "time_size": 8, "frequencies": 4},
    },
}
"""By name, and what follows a comma."""


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset(TASK, "demo")


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recordings in the place of CUDA graphs."""
    monkeypatch.setattr(engines, "CudaGraph", Recording)
    monkeypatch.setattr(Recording, "captures", 0)


def build(
    name: str | type[Algorithm[Any]],
    dataset: Dataset,
    engine: str = "eager",
    device: str = "cpu",
    notes: list[str] | None = None,
    **more: Any,
) -> Engine:
    kind = registry.load(name.partition(",")[0]) if isinstance(name, str) else name
    config = kind.Hyperparameters.model_validate(SMALL.get(name, {}) if isinstance(name, str) else {})
    replicas = [Replica(seed, 10.0, "engines") for seed in (0, 1)]
    selections = [kind.select(dataset, config, one) for one in replicas]
    replicas, draws = prepare(kind, config, dataset, replicas, selections, device, **more)
    return make_engine(engine, kind(config, TASK, replicas, device), draws, (notes if notes is not None else []).append)


def state(engine: Engine) -> list[Tensor]:
    return [value.cpu() for value in flat(engine.algorithm.state_dict())]


# What they compute


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("name", SMALL)
def test_a_graph_computes_what_eager_does(dataset: Dataset, name: str) -> None:
    """To the last bit here, where the same kernels run: after 100 updates, over a block's end."""
    eager, graph = build(name, dataset), build(name, dataset, "graph")
    for engine in (eager, graph):
        engine.run(100)
    kinds = kinds_of_update(graph.algorithm, 100)
    assert (graph.name, Recording.captures) == ("graph", len(kinds))
    assert all(map(torch.equal, state(eager), state(graph)))
    ours, theirs = graph.take(), eager.take()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("name", ["lspc", "cdt"])
def test_a_graph_reads_batches_that_came_from_the_host(dataset: Dataset, name: str) -> None:
    eager, graph = build(name, dataset), build(name, dataset, "graph", steps=16, on_host=True)
    for engine in (eager, graph):
        engine.run(BLOCK + 10)
    assert all(map(torch.equal, state(eager), state(graph)))


@GPU
@pytest.mark.parametrize("name", SMALL)
def test_a_cuda_graph_computes_what_eager_does(dataset: Dataset, name: str) -> None:
    """Within 1e-4 of the largest number of a tensor: in a graph the libraries may choose other kernels."""
    eager, graph = build(name, dataset, device="cuda"), build(name, dataset, "graph", "cuda")
    for engine in (eager, graph):
        engine.run(100)
    assert graph.name == "graph"
    for one, other in zip(state(eager), state(graph), strict=True):
        if one.is_floating_point():
            assert (one - other).abs().max() <= 1e-4 * max(1.0, float(one.abs().max()))


@pytest.mark.long
@pytest.mark.parametrize("name", ["bc", "lspc"])
def test_a_compiled_update_computes_what_eager_does(dataset: Dataset, name: str) -> None:
    """Within 1e-5 after 20 updates: fused operations round otherwise."""
    notes: list[str] = []
    eager, compiled = build(name, dataset), build(name, dataset, "compile", notes=notes)
    for engine in (eager, compiled):
        engine.run(20)
    assert (compiled.name, notes) == ("compile", [])
    for one, other in zip(state(eager), state(compiled), strict=True):
        assert (one - other).abs().max() < 1e-5


# What a block may not do


@pytest.mark.parametrize("name", SMALL)
def test_nothing_reaches_the_host_in_two_blocks(dataset: Dataset, name: str) -> None:
    engine = build(name, dataset)
    engine.run(1)
    with NoSynchronisation():  # type: ignore[no-untyped-call]
        engine.run(2 * BLOCK)
    with NoSynchronisation(), pytest.raises(BrokenPromiseError):  # type: ignore[no-untyped-call]
        next(iter(engine.take().values())).tolist()


@GPU
@pytest.mark.parametrize("kind", ["eager", "graph"])
@pytest.mark.parametrize("name", SMALL)
def test_nothing_synchronises_with_the_gpu(dataset: Dataset, name: str, kind: str) -> None:
    engine = build(name, dataset, kind, "cuda")
    engine.run(5)  # a graph is captured
    torch.cuda.set_sync_debug_mode("error")
    try:
        engine.run(2 * BLOCK)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# Plugins


class Probe(Algorithm[Hyperparameters]):
    """Learns a number a replica; subclasses do something that a graph minds, or does not."""

    class Hyperparameters(Hyperparameters):
        steps: int = 10
        batch_size: int = 4

    def __init__(
        self, config: Any, task: Any, replicas: Sequence[Replica], device: Any = "cpu", dtype: Any = torch.float32
    ) -> None:
        self.numbers = nn.ParameterDict({"x": torch.zeros(len(replicas), device=device, dtype=dtype)})
        self.slow = nn.ParameterDict({"y": torch.zeros(len(replicas), device=device, dtype=dtype)})
        self.optimizer = torch.optim.Adam(self.numbers.parameters(), lr=0.1, fused=True)

    @classmethod
    def policy_names(cls, config: Any) -> tuple[str, ...]:
        return ("probe",)

    @classmethod
    def columns(cls, config: Any) -> tuple[str, ...]:
        return ("rewards",)

    def policies(self, replica: int) -> dict[str, Any]:
        raise NotImplementedError

    def parts(self) -> dict[str, Any]:
        return {"numbers": self.numbers, "slow": self.slow, "optimizer": self.optimizer}

    def update(self, batch: Mapping[str, Tensor], noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
        loss = (self.numbers["x"] - batch["rewards"].mean(1)).square()
        self.optimizer.zero_grad()
        loss.sum().backward()
        self.optimizer.step()
        return {"loss": loss.detach()}


class Delayed(Probe):
    """``y`` follows ``x`` every third step, from the tenth on."""

    def variant(self, step: int) -> Hashable:
        return step >= 10 and step % 3 == 0

    def update(self, batch: Mapping[str, Tensor], noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
        metrics = super().update(batch, noise)
        if self.variant(self.step):
            with torch.no_grad():
                self.slow["y"].lerp_(self.numbers["x"], 0.5)
        return metrics


class Forgetful(Delayed):
    """As above, but does not say so."""

    def variant(self, step: int) -> Hashable:
        return None

    def update(self, batch: Mapping[str, Tensor], noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
        metrics = Probe.update(self, batch, noise)
        if self.step >= 10 and self.step % 3 == 0:
            with torch.no_grad():
                self.slow["y"].lerp_(self.numbers["x"], 0.5)
        return metrics


class Chatty(Probe):
    """Reads its loss on the host."""

    def update(self, batch: Mapping[str, Tensor], noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
        metrics = super().update(batch, noise)
        assert float(metrics["loss"].sum()) >= 0
        return metrics


class Honest(Chatty):
    """Reads its loss on the host, and says so."""

    synchronises = True


class Changing(Probe):
    """Gives a metric more at its sixth step."""

    def update(self, batch: Mapping[str, Tensor], noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
        metrics = super().update(batch, noise)
        return {**metrics, "more": metrics["loss"]} if self.step == 5 else metrics


class Shapeless(Probe):
    """Gives one number for all replicas."""

    def update(self, batch: Mapping[str, Tensor], noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": super().update(batch, noise)["loss"].mean()}


@pytest.mark.usefixtures("recorded")
def test_variants_of_an_update_are_captured_each_by_itself(dataset: Dataset) -> None:
    eager, graph = build(Delayed, dataset), build(Delayed, dataset, "graph")
    for engine in (eager, graph):
        engine.run(60)
    assert Recording.captures == 2
    assert all(map(torch.equal, state(eager), state(graph)))
    assert bool((eager.algorithm.slow["y"] != 0).all())  # type: ignore[attr-defined]


@pytest.mark.usefixtures("recorded")
def test_a_variant_that_is_not_declared_is_lost_in_a_graph(dataset: Dataset) -> None:
    """Why it must be declared; and that a recording does not run Python again."""
    eager, graph = build(Forgetful, dataset), build(Forgetful, dataset, "graph")
    for engine in (eager, graph):
        engine.run(60)
    assert bool((eager.algorithm.slow["y"] != 0).all())  # type: ignore[attr-defined]
    assert bool((graph.algorithm.slow["y"] == 0).all())  # type: ignore[attr-defined]


@pytest.mark.usefixtures("recorded")
def test_what_cannot_be_captured_runs_eagerly_and_says_why(dataset: Dataset) -> None:
    notes: list[str] = []
    eager, graph = build(Chatty, dataset), build(Chatty, dataset, "graph", notes=notes)
    for engine in (eager, graph):
        engine.run(60)
    assert graph.name == "eager"
    assert len(notes) == 1
    assert "cannot be captured in a CUDA graph" in notes[0]
    assert "synchronises with the host" in notes[0]
    assert all(map(torch.equal, state(eager), state(graph)))


@pytest.mark.parametrize("kind", ["graph", "compile"])
def test_what_says_that_it_synchronises_is_not_even_tried(dataset: Dataset, kind: str) -> None:
    notes: list[str] = []
    assert build(Honest, dataset, kind, notes=notes).name == "eager"
    assert "hands values to the host" in notes[0]


def test_what_cannot_be_compiled_runs_as_it_is_and_says_why(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_(update: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        def half_done(batch: Any, noise: Any) -> Any:
            update(batch, noise)
            raise RuntimeError("no compiler\nand more")

        return half_done

    monkeypatch.setattr(torch, "compile", compile_)
    notes: list[str] = []
    eager, compiled = build("bc", dataset), build("bc", dataset, "compile", notes=notes)
    for engine in (eager, compiled):
        engine.run(10)
    assert notes == ["its update cannot be compiled, so it runs as it is: RuntimeError: no compiler"]
    assert compiled.name == "eager"
    assert all(map(torch.equal, state(eager), state(compiled)))


@pytest.mark.usefixtures("recorded")
def test_a_lack_of_memory_is_no_reason_to_run_eagerly(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def capture(*_: Any) -> None:
        raise torch.OutOfMemoryError("too big")

    monkeypatch.setattr(Recording, "capture", capture)
    with pytest.raises(torch.OutOfMemoryError):
        build("bc", dataset, "graph").run(10)


@pytest.mark.parametrize(("kind", "reason"), [(Changing, "at step 5 differ more"), (Shapeless, r"shape \(\)")])
def test_metrics_that_are_not_one_value_a_replica_every_time_are_refused(
    dataset: Dataset, kind: type[Algorithm[Any]], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        build(kind, dataset).run(10)


@pytest.mark.usefixtures("recorded")
def test_optimisers_count_their_steps_on_the_device(dataset: Dataset) -> None:
    engine = build("cdt", dataset, "graph")
    engine.run(1)
    groups = [g for part in engine.algorithm.parts().values() for g in getattr(part, "param_groups", [])]
    assert [group["capturable"] for group in groups] == [True, True]


def test_metrics_are_summed_since_they_were_last_taken(dataset: Dataset) -> None:
    whole, parts = build("bc", dataset), build("bc", dataset)
    whole.run(7)
    total = torch.zeros(2)
    for count in (3, 4):
        parts.run(count)
        total += parts.take()["actor_loss"]
    assert torch.allclose(total, whole.take()["actor_loss"])
    assert parts.take()["actor_loss"].tolist() == [0.0, 0.0]


# Choosing


def test_auto_is_eager_on_a_cpu_where_a_graph_is_refused(dataset: Dataset) -> None:
    assert build("bc", dataset, "auto").name == "eager"
    require_engine("auto", "cpu")
    require_engine("graph", "cuda")
    with pytest.raises(UserError, match="--engine graph needs a GPU"):
        require_engine("graph", "cpu")
    with pytest.raises(UserError, match="--precision tf32 needs a GPU"):
        require_engine("auto", "cpu", "tf32")
