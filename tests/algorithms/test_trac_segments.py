"""TraC: which segments are cut and how they are labelled, what is refused, its loss by hand, its phases."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from algorithms.trac import TraC, TraCHyperparameters, classification, labelled, segments_to_cut
from harness.algorithm import Replica, Segments
from harness.contract import flat
from harness.data.dataset import Dataset, load_dataset
from harness.data.draws import prepare
from harness.errors import UserError
from harness.tasks import all_tasks, find_task

TASK = find_task("BallRun")


@pytest.fixture(scope="module")
def demo() -> Dataset:
    return load_dataset(TASK, "demo")


def made_up(lengths: list[int], rewards: list[float], costs: list[float], unfinished: bool = False) -> Dataset:
    """Trajectories of these lengths, with these rewards and costs at every step."""
    rows = sum(lengths)
    timeouts = np.isin(np.arange(rows), np.cumsum(lengths) - 1)
    timeouts[-1] &= not unfinished
    arrays: dict[str, Any] = {
        "observations": np.zeros((rows, 7), dtype=np.float32),
        "next_observations": np.zeros((rows, 7), dtype=np.float32),
        "actions": np.zeros((rows, 2), dtype=np.float32),
        "rewards": np.repeat(np.array(rewards, dtype=np.float32), lengths),
        "costs": np.repeat(np.array(costs, dtype=np.float32), lengths),
        "terminals": np.zeros(rows, dtype=bool),
        "timeouts": timeouts,
    }
    return Dataset(TASK, Path("made-up.hdf5"), "own", arrays)


def chosen(dataset: Dataset, limit: float = 10.0, seed: int = 0, **settings: Any) -> Segments:
    config = TraCHyperparameters.model_validate(settings)
    segments = TraC.select(dataset, config, Replica(seed, limit)).segments
    assert segments is not None
    return segments


# Segments


def test_published_settings_of_the_three_tasks_whose_ratio_is_public() -> None:
    ratios = {name: TraC.published(find_task(name))["seg_ratio"] for name in ("BallRun", "PointButton1", "easydense")}
    assert ratios == {"BallRun": 1.0, "PointButton1": 0.75, "easydense": 0.25}
    for task in all_tasks().values():
        config = TraCHyperparameters.model_validate(TraC.published(task))
        assert round(config.cloning * config.steps) == (60_000 if task.family == "metadrive" else 30_000)


def test_how_many_segments_are_cut() -> None:
    lengths = np.array([100, 40, 100])
    assert segments_to_cut(lengths, 1.0) == 2
    assert segments_to_cut(lengths, 0.75) == 25 // 6 * 3
    assert segments_to_cut(np.full(10_000, 1000), 0.25) == 1_000_000
    assert segments_to_cut(lengths, 0.99) == 0


def test_whole_trajectories_are_the_longest_finished_ones() -> None:
    """Of 20 steps; the unfinished one of 30 counts for nothing."""
    dataset = made_up([20, 8, 20, 20, 30], [1, 9, 2, 3, 9], [0, 0, 0.5, 2, 0], unfinished=True)
    segments = chosen(dataset, limit=10.0, top=1.0)
    assert segments.length == 20
    assert segments.starts is not None
    assert set(segments.trajectories.tolist()) <= {0, 2, 3}
    assert not segments.starts.any()
    label = dict(zip(segments.trajectories.tolist(), segments.values["label"].tolist(), strict=True))
    # Of cost 10, as much as the limit, is safe; of cost 40 is not.
    assert label == {index: float(index != 3) for index in label}


def test_a_segments_budget_is_its_share_of_the_limit() -> None:
    """At half the length half the limit: costs of 0.5 a step stay within 20 · 0.5, those of 0.51 do not."""
    dataset = made_up([40] * 6, [1, 2, 3, 4, 5, 6], [0.5, 0.51, 0.5, 0.51, 0.5, 0.51])
    segments = chosen(dataset, limit=20.0, seg_ratio=0.5, top=1.0)
    assert segments.length == 20
    assert (segments.values["label"] == (segments.trajectories % 2 == 0)).all()
    assert segments.starts is not None
    assert len(set(segments.starts.tolist())) > 5


def test_labels_and_weights_by_hand() -> None:
    rewards, safe = np.array([10.0, 0.0, 4.0, 99.0, 2.0]), np.array([True, True, True, False, True])
    labels, weights, kept = labelled(rewards, safe, top=0.5, bottom=0.25)
    assert kept.tolist() == [True, True, True, True, False]
    assert labels[kept].tolist() == [1, 0, 1, 0]
    assert weights[kept] == pytest.approx([1, 1, 0.7 + 0.3 * 0.4, 1])


def test_a_segment_that_is_both_is_undesirable() -> None:
    labels, weights, kept = labelled(np.array([0.0, 1.0, 2.0]), np.ones(3, dtype=bool), top=0.5, bottom=0.5)
    assert (labels.tolist(), kept.tolist()) == ([0, 0, 1], [True] * 3)
    assert weights == pytest.approx([1, 0.85, 1])


def test_a_seed_cuts_its_own(demo: Dataset) -> None:
    one, same, other = (chosen(demo, 20.0, seed, seg_ratio=0.5) for seed in (0, 0, 1))
    assert one.trajectories.tolist() == same.trajectories.tolist()
    assert one.trajectories.tolist() != other.trajectories.tolist()


@pytest.mark.parametrize(
    ("dataset", "settings", "message"),
    [
        (made_up([20, 20], [1, 2], [1, 1]), {}, r"no safe segment: 2 of 20 steps of made-up.hdf5 .* cost 20 to 20,"),
        (made_up([20] * 9, [0.1] * 9, [0] * 9), {"seg_ratio": 0.5}, "all have the reward 1; raise the limit"),
        (made_up([20] * 4, [1, 2, 3, 4], [0] * 4), {"seg_ratio": 0.8}, "cuts no segment from made-up.hdf5, whose"),
        (made_up([20] * 4, [1, 2, 3, 4], [0] * 4), {"seg_ratio": 0.01}, "at seg_ratio 0.01; use 1"),
        (made_up([20], [1], [0], unfinished=True), {}, "no finished trajectory"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(dataset: Dataset, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        chosen(dataset, **settings)


def test_each_replica_is_refused_by_itself() -> None:
    dataset = made_up([20] * 30, list(range(1, 31)), [1.0] * 30)
    assert len(chosen(dataset, limit=20.0))
    with pytest.raises(UserError, match="no safe segment"):
        chosen(dataset, limit=19.0)


# Training


def test_the_loss_by_hand() -> None:
    """One desirable segment and two undesirable ones, one of them beyond reach; a second replica without any."""
    config = TraCHyperparameters(alpha=0.5, gamma=0.5, eta=0.25)
    ratio = torch.tensor([[[2.0, -4.0], [3.0, 2.0], [100.0, 0.0]]], dtype=torch.float64).repeat(2, 1, 1)
    ratio.requires_grad_()
    desirable = torch.tensor([[True, False, False], [True, True, True]])
    weight = torch.tensor([[0.8, 0.9, 1.0]], dtype=torch.float64).repeat(2, 1)
    learnt = classification(ratio, desirable, weight, config)
    metrics = {name: value.detach() for name, value in learnt.items()}
    advantages = [0.5 * (2 - 0.5 * 4), 0.5 * (3 + 0.5 * 2), 50.0]
    p = [1 / (1 + math.exp(-one)) for one in advantages]
    balance = 0.25 * 1 / 2
    expected = 0.8 * math.log(p[0]) + balance * (0.9 * math.log(1 - p[1]) + math.log(1e-6))
    assert float(metrics["loss"][0]) == pytest.approx(-expected / 3, rel=1e-12)
    of_all = sum(w * math.log(one) for w, one in zip((0.8, 0.9, 1.0), p, strict=True))
    assert float(metrics["loss"][1]) == pytest.approx(-of_all / 3, rel=1e-12)
    assert metrics["out_of_reach"].tolist() == pytest.approx([1 / 3, 0])
    assert metrics["advantage_desirable"].tolist() == pytest.approx([0, sum(advantages) / 3])
    assert metrics["advantage_undesirable"].tolist() == pytest.approx([26, 0])
    (gradient,) = torch.autograd.grad(learnt["loss"].sum(), ratio)
    assert gradient.isfinite().all()
    assert not gradient[0, 2].any()  # beyond reach


def test_phases_and_the_restart_of_the_optimiser(demo: Dataset) -> None:
    config = TraCHyperparameters(
        steps=10, cloning=0.5, batch_size=8, hidden_sizes=(16,), warmup_steps=4, learning_rate=1e-3, dropout=0
    )
    replicas = [Replica(seed, 20.0) for seed in range(2)]
    selections = [TraC.select(demo, config, one) for one in replicas]
    replicas, draws = prepare(TraC, config, demo, replicas, selections)
    agent = TraC(config, TASK, replicas)
    first = [one.clone() for one in agent.reference.parameters()]
    rates = []
    for step in range(10):
        before = [one.detach().clone() for one in agent.actor.parameters()]
        agent.step = step
        metrics = agent.update(*draws.at(step))
        rates.append(float(metrics["learning_rate"][0]))
        counts = {float(state["step"]) for state in agent.optimizer.state.values()}
        kept = [*agent.reference.parameters()]
        if step < 5:
            assert counts == {step + 1}
            assert all(map(torch.equal, kept, first))
            assert float(metrics["loss"][0]) == 0
        else:
            assert counts == {step - 4}
        if step == 5:
            assert all(map(torch.equal, kept, before))
            assert not metrics["advantage_desirable"].any()  # the policy is its own reference
            first = before
        if step > 5:
            assert all(map(torch.equal, kept, first))
    assert rates == pytest.approx([1e-4] * 5 + [2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3])


@pytest.mark.parametrize("stop", [3, 4, 5, 6])
def test_what_is_resumed_around_the_restart_goes_on_bit_for_bit(demo: Dataset, stop: int) -> None:
    """The first four of eight steps clone; with dropout."""
    config = TraCHyperparameters(steps=8, cloning=0.5, batch_size=4, hidden_sizes=(16,), warmup_steps=2, seg_ratio=0.5)
    replicas = [Replica(seed, 20.0) for seed in range(2)]
    selections = [TraC.select(demo, config, one) for one in replicas]
    replicas, draws = prepare(TraC, config, demo, replicas, selections)
    whole, first, second = (TraC(config, TASK, replicas) for _ in range(3))
    for step in range(8):
        drawn = draws.at(step)
        if step == stop:
            second.load_state_dict(copy.deepcopy(first.state_dict()))
        for agent in (whole, first if step < stop else second):
            agent.step = step
            agent.update(*drawn)
    assert all(map(torch.equal, flat(whole.state_dict()), flat(second.state_dict())))


def test_desirable_segments_become_likelier(demo: Dataset) -> None:
    config = TraCHyperparameters(
        steps=150,
        batch_size=16,
        hidden_sizes=(32, 32),
        cloning_lr=1e-3,
        learning_rate=1e-3,
        warmup_steps=1,
        seg_ratio=0.5,
    )
    replicas = [Replica(0, 20.0)]
    replicas, draws = prepare(TraC, config, demo, replicas, [TraC.select(demo, config, replicas[0])])
    agent, seen = TraC(config, TASK, replicas), []
    for step in range(150):
        agent.step = step
        seen.append(agent.update(*draws.at(step)))
    gap = [float(one["advantage_desirable"] - one["advantage_undesirable"]) for one in seen]
    assert gap[:45] == [0] * 45
    assert np.mean(gap[-20:]) > 0.1


def test_dropout_is_each_replicas_own_and_off_in_roll_outs() -> None:
    config = TraCHyperparameters(batch_size=4, hidden_sizes=(64, 32))
    together = TraC(config, TASK, [Replica(0, 20.0), Replica(1, 20.0)])
    alone = TraC(config, TASK, [Replica(1, 20.0)])
    observations = torch.zeros(2, 4, 10, 7)
    masks, own = together._kept(observations), alone._kept(observations[:1])
    assert masks is not None
    assert own is not None
    assert [tuple(mask.shape) for mask in masks] == [(2, 40, 64), (2, 40, 32)]
    for mask, single in zip(masks, own, strict=True):
        assert torch.equal(mask[1], single[0])
        assert not torch.equal(mask[0], mask[1])
        assert abs(float(mask.float().mean()) - 0.75) < 0.05
    policy, seen = together.policies(1)["trac"], torch.randn(3, 7)
    assert torch.equal(policy.act(seen), policy.act(seen))
