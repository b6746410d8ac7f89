"""The one contract that every registered algorithm keeps, and that it finds those who do not."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms import BUILTINS
from algorithms.bc import BC
from harness import registry
from harness.contract import BrokenPromiseError, Contract, NoSynchronisation, check
from harness.evaluation import Evaluator, roll_out

# Smaller networks, where the published ones take their time.
SETTINGS = {"cdt": {"embedding_dim": 32, "num_layers": 2}, "osrl-cdt": {"embedding_dim": 32, "num_layers": 2}}


def contract(name: str) -> Contract:
    return Contract(name, SETTINGS.get(name))


def titles() -> list[tuple[str, str]]:
    return [(name, title) for name in BUILTINS for title in contract(name).checks()]


@pytest.mark.parametrize(("name", "title"), titles())
def test_every_builtin_keeps_the_contract(name: str, title: str) -> None:
    contract(name).checks()[title]()


def test_natives_are_stacked_and_never_synchronise_and_adapters_say_that_they_do() -> None:
    for name in BUILTINS:
        native = not name.startswith("osrl-")
        titles = list(contract(name).checks())
        assert ("update: nothing is handed to the host" in titles) is native
        assert ("replicas: each is what it is alone" in titles) is native


@pytest.mark.parametrize("name", ["toy", "toy-single"])
def test_plugins_keep_it_too(name: str, plugins: Path) -> None:
    assert set(check(name).values()) == {""}


@pytest.fixture(scope="module")
def evaluator() -> Iterator[Evaluator]:
    assert multiprocessing.get_start_method(allow_none=True) in (None, "fork", "spawn", "forkserver")
    with Evaluator(1) as pool:
        yield pool


@pytest.mark.parametrize("name", BUILTINS)
def test_a_worker_rolls_out_what_this_process_does(name: str, evaluator: Evaluator) -> None:
    terms = contract(name)
    told = 20.0 if terms.kind.acts_on_cost_limit(terms.config) else None
    for policy in terms._trained().values():
        (future,) = evaluator.submit(terms.task, policy, [1, 2], told)
        assert future.result(timeout=120) == roll_out(terms.task, policy, [1, 2], told)


# What breaks it is found


class Reading(BC):
    def update(self, batch, noise):  # type: ignore[no-untyped-def]
        metrics = super().update(batch, noise)
        if metrics["actor_loss"].sum() < 0:
            raise ArithmeticError
        return metrics


class Selecting(BC):
    def update(self, batch, noise):  # type: ignore[no-untyped-def]
        metrics = super().update(batch, noise)
        batch["actions"][batch["actions"] > 0]
        return metrics


class Rarely(BC):
    """Reads in every second update, which is a variant of its own."""

    def variant(self, step):  # type: ignore[no-untyped-def]
        return step % 2

    def update(self, batch, noise):  # type: ignore[no-untyped-def]
        metrics = super().update(batch, noise)
        if self.variant(self.step) == 1:
            metrics["actor_loss"].max().item()
        return metrics


class Listing(BC):
    def update(self, batch, noise):  # type: ignore[no-untyped-def]
        weights = torch.tensor([0.5, 0.5])
        return {name: value * weights[: len(value)] for name, value in super().update(batch, noise).items()}


class Mixing(BC):
    def update(self, batch, noise):  # type: ignore[no-untyped-def]
        return {name: value.mean().expand_as(value).clone() for name, value in super().update(batch, noise).items()}


class Global(BC):
    def update(self, batch, noise):  # type: ignore[no-untyped-def]
        batch = {**batch, "actions": batch["actions"] + 0.1 * torch.randn_like(batch["actions"])}
        return super().update(batch, noise)


class Forgetful(BC):
    def parts(self):  # type: ignore[no-untyped-def]
        return {"actor": self.actor}


class Shapeless(BC):
    def update(self, batch, noise):  # type: ignore[no-untyped-def]
        return {name: value.sum() for name, value in super().update(batch, noise).items()}


class Misnamed(BC):
    @classmethod
    def policy_names(cls, config):  # type: ignore[no-untyped-def]
        return ("other",)


class Meddling(BC):
    def diagnose(self, batch):  # type: ignore[no-untyped-def]
        with torch.no_grad():
            next(iter(self.actor.parameters())).mul_(2)
        return {}


class Scribbling(BC):
    def diagnose(self, batch):  # type: ignore[no-untyped-def]
        batch["actions"][0, 0] += 1
        return {}


class Drawing(BC):
    def diagnose(self, batch):  # type: ignore[no-untyped-def]
        noise = torch.randn(len(batch["actions"]), generator=self.generator)
        return {"noise": noise}

    def __init__(self, *arguments):  # type: ignore[no-untyped-def]
        super().__init__(*arguments)
        self.generator = torch.Generator()


class Boundless(BC):
    def diagnose(self, batch):  # type: ignore[no-untyped-def]
        return {"share": 1 / batch["actions"].new_zeros(len(batch["actions"]))}


class Whole(BC):
    def diagnose(self, batch):  # type: ignore[no-untyped-def]
        return {"mean": batch["actions"].mean()}


class Elsewhere(BC):
    def diagnose(self, batch):  # type: ignore[no-untyped-def]
        return {"bc-none/error": batch["actions"].mean((1, 2))}


class Counting(BC):
    def diagnose(self, batch):  # type: ignore[no-untyped-def]
        return {"sum": batch["actions"].sum((1, 2)) * len(batch["actions"])}


DIAGNOSED = "diagnostics: one finite number a replica, and nothing changes"


@pytest.mark.parametrize(
    ("kind", "title", "problem"),
    [
        (Reading, "update: nothing is handed to the host", "_local_scalar_dense"),
        (Selecting, "update: nothing is handed to the host", "index"),
        (Rarely, "update: nothing is handed to the host", "item()"),
        (Listing, "update: nothing is handed to the host", "make it once, in __init__"),
        (Mixing, "replicas: each is what it is alone", "differs by"),
        (Mixing, "replicas: one that diverges leaves the others alone", "changes"),
        (Global, "seeds: the same twice is equal, another is not", "same seed differ"),
        (Forgetful, "state: what is resumed goes on bit for bit", "after resuming"),
        (Shapeless, "metrics: one finite number a replica, the same names every step", "has shape"),
        (Misnamed, "policies: named as announced, actions of the right shape", "announced"),
        (Meddling, DIAGNOSED, "changes the state"),
        (Scribbling, DIAGNOSED, "changes its batch"),
        (Drawing, DIAGNOSED, "is another the second time"),
        (Boundless, DIAGNOSED, "share is [inf, inf]"),
        (Whole, DIAGNOSED, "mean has shape ()"),
        (Elsewhere, DIAGNOSED, "bc-none"),
        (Counting, "replicas: each has the diagnostics that it has alone", "sum of replica 0 differs"),
    ],
)
def test_broken_promises_are_found(kind: type[BC], title: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "load", lambda name: kind)
    assert problem in check("broken")[title]


def test_where_it_is_broken_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "load", lambda name: Listing)
    lines = [line.strip() for line in Path(__file__).read_text().splitlines()]
    line = 1 + lines.index("weights = torch.tensor([0.5, 0.5])")
    assert f"in line {line} of {__file__}" in check("broken")["update: nothing is handed to the host"]


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "NAdam", "RMSprop", "Adagrad"])
def test_optimisers_with_torchs_defaults_keep_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They make their state in the first step, and count their steps on the host while the engine lets them."""

    class Natural(BC):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.optimizer = getattr(torch.optim, name)(self.actor.parameters(), lr=1e-3)

    monkeypatch.setattr(registry, "load", lambda name: Natural)
    assert set(check("natural").values()) == {""}


def test_the_mode_sees_the_backward_pass_too() -> None:
    class Peeking(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
            return x.clone()

        @staticmethod
        def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
            return gradient * float(gradient.sum())

    x = torch.ones(2, requires_grad=True)
    with NoSynchronisation(), pytest.raises(BrokenPromiseError, match="_local_scalar_dense"):  # type: ignore[no-untyped-call]
        Peeking.apply(x).sum().backward()
