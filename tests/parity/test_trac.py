"""TraC, two replicas stacked, against a plain transcription, and against the authors' own code where that is there.

10 steps of cloning and 50 in all in float64, through the restart of Adam, from the same weights, with the same batches
and dropout masks: policy, reference and every moment of the optimiser are compared. And the segments' labels.
"""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import trac_reference as reference
from authors import Clone
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pairing import compare, copy_weights, optimizers, pair_layers
from torch import Tensor, nn

from algorithms.trac import TraC, TraCHyperparameters, cut_segments, labelled, segments_to_cut
from harness.algorithm import Replica
from harness.tasks import find_task

TASK = find_task("BallRun")
REPLICAS, CLONING, STEPS, BATCH, LENGTH, TOLERANCE = 2, 10, 50, 12, 7, 1e-7
WIDTHS = (16, 12)
AUTHORS = Clone("LSPC_BENCH_TRAC", "https://github.com/zgong11/TraC", "2fc12f7cc1bc")

Masks = Sequence[Tensor]
"""Of the hidden layers, (B, L, width) each, 0 or 1 / (1 - dropout); none without dropout."""


def settings(dropout: float, **more: Any) -> TraCHyperparameters:
    """Rates above the published ones, so that 40 steps behind the cloning go somewhere, through the whole warm-up."""
    return TraCHyperparameters.model_validate(
        {
            "steps": STEPS,
            "cloning": CLONING / STEPS,
            "batch_size": BATCH,
            "hidden_sizes": WIDTHS,
            "dropout": dropout,
            "cloning_lr": 1e-2,
            "learning_rate": 1e-2,
            "warmup_steps": 20,
            **more,
        }
    )


def random_batch(generator: torch.Generator) -> dict[str, Tensor]:
    """Segments of both labels for each replica; the second has few desirable ones."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(REPLICAS, BATCH, *shape, generator=generator, dtype=torch.float64)

    label = (normal() > torch.tensor([[0.0], [1.0]])).double()
    label[:, 0], label[:, 1] = 1, 0
    return {
        "observations": normal(LENGTH, TASK.observation_size),
        "actions": (2 * normal(LENGTH, TASK.action_size)).clamp(-1, 1),
        "label": label,
        "weight": 0.7 + 0.3 * torch.rand(REPLICAS, BATCH, generator=generator, dtype=torch.float64),
    }


def train_both(
    monkeypatch: pytest.MonkeyPatch, ours: TraC, step_theirs: Callable[[int, Mapping[str, Tensor], Masks, int], None]
) -> list[dict[str, Tensor]]:
    """Step ours, and each of theirs on its own part of the batch and with its own part of the masks."""
    rate = ours.config.dropout
    masks: dict[str, Tensor] = {}
    draw = ours.dropout.draw
    monkeypatch.setattr(ours.dropout, "draw", lambda wanted: masks.update(draw(wanted)) or masks)
    generator, metrics = torch.Generator().manual_seed(0), []
    for step in range(STEPS):
        batch = random_batch(generator)
        ours.step = step
        metrics.append(ours.update(batch, {}))
        assert len(masks) == (len(WIDTHS) if rate else 0)
        for replica in range(REPLICAS):
            mine = {name: value[replica].clone() for name, value in batch.items()}
            kept = [mask[replica].unflatten(0, (BATCH, LENGTH)).double() / (1 - rate) for mask in masks.values()]
            step_theirs(replica, mine, kept, step)
    return metrics


def went_somewhere(ours: TraC) -> bool:
    """Whether the policy left its clone, by far more than what is tolerated."""
    moved = zip(ours.actor.parameters(), ours.reference.parameters(), strict=True)
    return all((one - other).abs().amax() > 1e-2 for one, other in moved)


def build(config: TraCHyperparameters) -> TraC:
    return TraC(config, TASK, [Replica(seed, 10.0) for seed in range(REPLICAS)], dtype=torch.float64)


# The plain transcription


def plain_agent(config: TraCHyperparameters) -> Any:
    return reference.ReferenceTraC(
        reference.Settings(
            observation_size=TASK.observation_size,
            action_size=TASK.action_size,
            bc_steps=CLONING,
            hidden_sizes=WIDTHS,
            dropout=config.dropout,
            alpha=config.alpha,
            gamma=config.gamma,
            eta=config.eta,
            bc_lr=config.cloning_lr,
            trac_lr=config.learning_rate,
            ramp_steps=config.warmup_steps,
        )
    )


@pytest.mark.parametrize("family", ["BallRun", "PointButton1", "easydense"])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_every_step_agrees_with_the_transcription(monkeypatch: pytest.MonkeyPatch, dropout: float, family: str) -> None:
    published = TraC.published(find_task(family))
    config = settings(dropout, **{name: published[name] for name in ("alpha", "gamma", "eta") if name in published})
    ours = build(config)
    plain = [plain_agent(config) for _ in range(REPLICAS)]
    for replica, agent in enumerate(plain):
        copy_weights(pair_layers("policy", ours.actor, agent.policy), replica)
    losses: list[list[float]] = []

    def step(replica: int, batch: Mapping[str, Tensor], masks: Masks, number: int) -> None:
        names = {"observations": "observations", "actions": "actions", "labels": "label", "weights": "weight"}
        (loss,) = plain[replica].step({theirs: batch[mine] for theirs, mine in names.items()}, masks).values()
        losses.append([loss])

    metrics = train_both(monkeypatch, ours, step)
    mine = torch.stack([one["cloning_loss" if i < CLONING else "loss"] for i, one in enumerate(metrics)])
    assert (mine - torch.tensor(losses, dtype=torch.float64).view(STEPS, REPLICAS)).abs().max() < TOLERANCE
    for replica, agent in enumerate(plain):
        pairs = pair_layers("policy", ours.actor, agent.policy)
        pairs += pair_layers("reference", ours.reference, agent.reference)
        compare(pairs, replica, optimizers(ours), optimizers(agent), TOLERANCE)
    assert went_somewhere(ours)


def test_the_policy_acts_as_the_transcription_does() -> None:
    config = settings(0.25)
    ours, plain = build(config), plain_agent(config)
    copy_weights(pair_layers("policy", ours.actor, plain.policy), 1)
    observations = torch.randn(5, TASK.observation_size, dtype=torch.float64)
    with torch.no_grad():
        actions = ours.policies(1)["trac"].act(observations)
    for observation, action in zip(observations, actions, strict=True):
        assert (plain.act(observation) - action).abs().max() < 1e-12


@examples(max_examples=200, deadline=None)
@given(
    # Whole rewards, so that some are equal; the transcription calls the later of equals the better, and so do we.
    st.lists(st.tuples(st.integers(-9, 9), st.integers(0, 5)), min_size=1, max_size=30),
    st.integers(0, 5),
    st.floats(0.01, 1),
    st.floats(0, 1),
)
def test_labels_are_the_transcriptions(segments: list[tuple[int, int]], budget: int, top: float, bottom: float) -> None:
    rewards, costs = np.array(segments, dtype=np.float64).T
    safe = costs <= budget
    if len(set(rewards[safe].tolist())) < 2:  # refused before
        return
    labels, weights, kept = labelled(rewards, safe, top, bottom)
    their_labels, their_weights = reference.label_segments(rewards.tolist(), costs.tolist(), budget, top, bottom)
    assert kept.tolist() == [label is not None for label in their_labels]
    for index in np.flatnonzero(kept):
        assert labels[index] == their_labels[index]
        assert weights[index] == pytest.approx(their_weights[index], abs=1e-12)


@examples(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.sampled_from([0.25, 0.5, 0.75, 0.9, 1.0]))
def test_segments_are_counted_and_cut_as_the_transcription_does(lengths: list[int], ratio: float) -> None:
    ends = np.cumsum(lengths)
    trajectories = [(int(end - length), int(end)) for end, length in zip(ends, lengths, strict=True)]
    length, count = reference.segment_length(trajectories, ratio), segments_to_cut(np.array(lengths), ratio)
    assert count == reference.count_segments(trajectories, length, ratio)
    cut = cut_segments(np.array(lengths), length, 300, np.random.default_rng(0))
    starts = {trajectories[one][0] + first for one, first in zip(*cut, strict=True)}
    grid = [(i + 0.5) / 40 for i in range(40)]  # no trajectory has more starts
    possible = {reference.draw_start(trajectories, length, one, other) for one in grid for other in grid}
    assert starts <= possible
    assert len(starts) > 0.4 * min(len(possible), 300)


# The authors' code


class Scheduling:
    """What TraC takes of their base class in a step: the schedules of its optimisers."""

    def setup_schedulers(self: Any) -> None:
        self.schedulers = {
            name: torch.optim.lr_scheduler.LambdaLR(self.optim[name], lr_lambda=schedule)
            for name, schedule in self.schedulers_class.items()
        }


def grouped(parameters: Any, options: Mapping[str, Any]) -> Any:
    """Their ``create_optim_groups``, without weight decay."""
    return ({"params": list(parameters), **options},)


@pytest.fixture
def authors(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Their algorithm, network and schedule; what these import and do not use for a step is left out."""
    names = ("algs/trac", "networks/common", "utils/schedules")
    sources = {name: AUTHORS.source(f"research/{name}.py") for name in names}
    given = {
        "research.networks.base": {"ActorPolicy": nn.Module},
        "research.utils": {"utils": types.SimpleNamespace(create_optim_groups=grouped)},
        "research.algs.off_policy_algorithm": {"OffPolicyAlgorithm": Scheduling},
    }
    for name in ("research", "research.networks", "research.algs", *given):
        module = types.ModuleType(name)
        module.__dict__.update(given.get(name, {}))
        monkeypatch.setitem(sys.modules, name, module)
    found: dict[str, Any] = {}
    for name, source in sources.items():
        module = types.ModuleType(f"research.{name.replace('/', '.')}")
        module.__package__ = module.__name__.rpartition(".")[0]
        exec(compile(source, f"{name}.py", "exec"), module.__dict__)
        found |= module.__dict__
    return found


def authors_agent(authors: Mapping[str, Any], config: TraCHyperparameters, ours: TraC, replica: int) -> Any:
    def network() -> nn.Module:
        sizes = (TASK.observation_size, TASK.action_size, list(WIDTHS))
        made = nn.Module()
        made.encoder = nn.Identity()
        made.actor = authors["MLP"](*sizes, dropout=config.dropout, output_act=nn.Tanh)
        return made.double()

    agent = authors["TraC"].__new__(authors["TraC"])
    agent.network, agent.reference_network = network(), network()
    copy_weights(pair_layers("policy", ours.actor, agent.network.actor), replica)
    agent.alpha, agent.gamma, agent.eta = config.alpha, config.gamma, config.eta
    agent.bc_data, agent.bc_coeff, agent.bc_steps = "all", 0.0, CLONING
    agent.gammalst = torch.logspace(0, LENGTH - 1, LENGTH, base=config.gamma, dtype=torch.float64).repeat(BATCH, 1)
    # Theirs is one rate, of which the second phase reaches a multiple.
    ramp = authors["linear_warmup"](config.warmup_steps, config.learning_rate / config.cloning_lr)
    agent.optim_class, agent.optim_kwargs = torch.optim.Adam, {"lr": config.cloning_lr}
    agent.schedulers_class, agent.schedulers, agent.optim = {"actor": ramp}, {}, {}
    agent.setup_optimizers()
    agent.setup_schedulers()
    return agent


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_every_step_agrees_with_the_authors_code(
    monkeypatch: pytest.MonkeyPatch, authors: Mapping[str, Any], dropout: float
) -> None:
    config = settings(dropout)
    ours = build(config)
    theirs = [authors_agent(authors, config, ours, replica) for replica in range(REPLICAS)]

    def step(replica: int, batch: Mapping[str, Tensor], masks: Masks, number: int) -> None:
        agent, left = theirs[replica], list(masks)

        def masked(layer: nn.Dropout, values: Tensor) -> Tensor:
            return values * left.pop(0) if layer.training else values

        given = {"obs": batch["observations"], "action": batch["actions"].clamp(1e-5 - 1, 1 - 1e-5)}
        given |= {"weight": batch["weight"], "label": batch["label"]}
        with monkeypatch.context() as patch:
            patch.setattr(nn.Dropout, "forward", masked)
            patch.setattr(Tensor, "float", Tensor.double)
            agent.train_step(given, number)
        assert not left
        agent.schedulers["actor"].step()

    train_both(monkeypatch, ours, step)
    for replica, agent in enumerate(theirs):
        pairs = pair_layers("policy", ours.actor, agent.network)
        pairs += pair_layers("reference", ours.reference, agent.reference_network)
        compare(pairs, replica, optimizers(ours), [agent.optim["actor"]], TOLERANCE)
    assert went_somewhere(ours)
    assert math.isclose(config.learning_rate, theirs[0].schedulers["actor"].get_last_lr()[0])
