"""What algorithms say of agents that do not train as they are meant to: aloud, in the status, in reports."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cells import make_cell, make_training
from click.testing import CliRunner

from harness import registry
from harness.cli import main
from harness.data.dataset import Dataset, load_dataset
from harness.plan import Cell, Plan, PlannedCell
from harness.report.leaderboard import make_leaderboard
from harness.report.warnings import describe_warnings
from harness.store import Store
from harness.suite import Evaluation
from harness.tasks import find_task
from harness.trained import lasting_warnings
from harness.training import Training

DEAD = "its cost value is 0 in every state: the safety constraint does not tell states apart"


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset(find_task("BallRun"), "demo")


def cell(seed: int) -> Cell:
    settings = {"steps": 40, "batch_size": 32, "hidden_sizes": (8, 8), "latent_dim": 2}
    evaluation = Evaluation(final=1)
    return make_cell("lspc", settings, seed=seed, evaluation_limits=(10.0,), evaluation=evaluation)


def training(store: Store, dataset: Dataset, said: list[str]) -> Training:
    return make_training(store.root, dataset, cell(0), cell(1), note=said.append)


def fix_cost_value(loop: Training, replica: int, value: float) -> None:
    """Make one replica's Vc the same in every state; below 0 it stays there, for it has no gradient."""
    with torch.no_grad():
        last = loop.algorithm.networks["vc"].layers[-1]  # type: ignore[attr-defined]
        last.weight[replica] = 0.0
        last.bias[replica] = value


def begun(store: Store, dataset: Dataset, said: list[str]) -> Training:
    """At its tenth step, with a Vc below 0 of the first replica."""
    loop = training(store, dataset, said)
    fix_cost_value(loop, 0, -1.0)
    fix_cost_value(loop, 1, 5.0)
    loop.advance(lambda: loop.step >= 10)
    return loop


def test_a_dead_cost_value_is_said_once_and_kept_in_the_status(tmp_path: Path, dataset: Dataset) -> None:
    store, said = Store(tmp_path), list[str]()
    loop = begun(store, dataset, said)
    loop.checkpoint()
    assert said == [f"seed 0: {DEAD} (step 1)"]

    loop = training(store, dataset, said)  # as after an interrupt
    loop.advance(lambda: False)
    loop.collect()
    loop.rest({}).finish({})
    assert [store.status(cell(seed)).state for seed in (0, 1)] == ["done", "done"]
    assert [store.status(cell(seed)).warnings for seed in (0, 1)] == [{DEAD: 1}, {}]

    rows = {"lspc-s": "lspc-s", "lspc-o": "lspc-o"}
    cells = [PlannedCell(cell=cell(seed), label="lspc", rows=rows) for seed in (0, 1)]
    plan = Plan(suite="some", description="", cells=cells)
    line = f"BallRun lspc, 1 of 2 agents: {DEAD} (since step 1)"
    assert describe_warnings([store.status(one.cell) for one in plan.cells], plan) == [line]
    assert f"Warning: {line}." in make_leaderboard(store, plan).notes
    (tmp_path / "suites").mkdir()
    store.write_plan(plan)
    assert f"Warning: {line}" in CliRunner().invoke(main, ["status", str(tmp_path)]).output


def test_what_ended_before_the_end_is_said_but_not_kept(tmp_path: Path, dataset: Dataset) -> None:
    store, said = Store(tmp_path), list[str]()
    loop = begun(store, dataset, said)
    fix_cost_value(loop, 0, 5.0)
    loop.advance(lambda: False)
    loop.collect()
    loop.rest({}).finish({})
    assert said == [f"seed 0: {DEAD} (step 1)"]
    assert store.status(cell(0)).warnings == {}


def test_only_what_lasts_is_said() -> None:
    kind = registry.load("cpq")
    config = kind.Hyperparameters(steps=100)
    free, bound = {"alpha": 1.0}, {"alpha": 148.41}
    text = "its multiplier alpha stands at its upper bound, 148.4"

    def curve(*rows: dict[str, float]) -> list[dict[str, float]]:
        return [{"step": index + 1, **row} for index, row in enumerate(rows)][::-1]

    assert lasting_warnings(kind, config, curve(bound)) == {text: 1}
    assert lasting_warnings(kind, config, curve(free, bound, bound)) == {}
    assert lasting_warnings(kind, config, curve(free, *[bound] * 5)) == {}
    assert lasting_warnings(kind, config, curve(free, *[bound] * 6)) == {text: 2}
    assert lasting_warnings(kind, config, curve(free, *[bound] * 6, free)) == {}


@pytest.mark.parametrize(
    ("algorithm", "metrics", "words"),
    [
        ("bcq-lag", {"multiplier": 0.0}, ["cost multiplier is 0"]),
        ("bcq-lag", {"multiplier": 0.3}, []),
        ("bear-lag", {"multiplier": 1.0, "alpha": 148.41}, ["upper bound"]),
        ("cpq", {"alpha": 0.0067379}, ["lower bound"]),
        ("cpq", {"alpha": 1.0}, []),
        ("coptidice", {"multiplier": 0.0}, ["cost multiplier is 0"]),
        ("bc", {"actor_loss": 0.1}, []),
        ("cdt", {}, []),
        (
            "ccac",
            {"negative_targets": 0.9, "budget_multiplier": 148.41},
            ["reward targets are negative", "upper bound"],
        ),
        ("ccac", {"negative_targets": 0.4, "budget_multiplier": 100.0}, []),
        ("trac", {"desirable": 1.0, "out_of_reach": 0.6}, ["none to tell them from", "learns nothing"]),
        ("trac", {"desirable": 0.9, "out_of_reach": 0.4}, []),
        ("fisor", {"feasible": 0.0, "weighted": 0.001}, ["count as feasible", "have a weight"]),
        ("fisor", {"feasible": 0.5, "weighted": 0.5}, []),
    ],
)
def test_multipliers_at_a_bound_are_named(algorithm: str, metrics: dict[str, float], words: list[str]) -> None:
    kind = registry.load(algorithm)
    said = kind.warnings(kind.Hyperparameters(), metrics)
    assert len(said) == len(words)
    assert all(word in text for word, text in zip(words, said, strict=True))
