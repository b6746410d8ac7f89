"""The plain transcription of TraC against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
import trac_reference as trac
from pairing import copy_parameters, largest_change
from torch import Tensor

S, A, B, L = 4, 2, 6, 5


def make_batch(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "observations": torch.randn(B, L, S, generator=generator).double(),
        "actions": torch.rand(B, L, A, generator=generator).double() * 2.0 - 1.0,
        "labels": torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0], dtype=torch.float64),
        "weights": torch.tensor([1.0, 0.7, 1.0, 0.9, 0.8, 1.0], dtype=torch.float64),
    }


def make_masks(seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.rand(B, L, width, generator=generator) > 0.25).double() / 0.75 for width in (8, 7)]


def make_agent(bc_steps: int = 1, **changes: float) -> trac.ReferenceTraC:
    torch.manual_seed(0)
    return trac.ReferenceTraC(trac.Settings(S, A, bc_steps, hidden_sizes=(8, 7), **changes))


def test_trajectories_and_segments() -> None:
    ends = [row in (9, 13, 23) for row in range(27)]
    trajectories = trac.find_trajectories(ends)
    assert trajectories == [(0, 10), (10, 14), (14, 24)]  # the unfinished tail is dropped
    assert trac.longest(trajectories) == 10
    assert trac.segment_length(trajectories, 0.25) == 2
    assert trac.segment_budget(trajectories, 2, 20.0) == 4.0
    assert trac.count_segments(trajectories, 2, 0.25) == 3  # floor(8 / 6) of each of 3
    assert trac.count_segments(trajectories, 10, 1.0) == 2
    assert trac.count_segments([(0, 1000)] * 10_000, 250, 0.25) == 1_000_000


def test_draws_cover_all_starts() -> None:
    trajectories = [(0, 10), (10, 14), (14, 24)]
    grid = [i / 140 for i in range(140)]
    assert {trac.draw_start(trajectories, 4, 0.4, u) for u in grid} == {10}
    assert {trac.draw_start(trajectories, 5, u, 0.0) for u in grid} == {0, 14}
    assert {trac.draw_start(trajectories, 5, 0.9, u) for u in grid} == set(range(14, 20))


def test_labels_of_six_segments() -> None:
    returns = [10.0, 0.0, 5.0, 99.0, 2.5, 7.5]
    costs = [1.0, 0.0, 2.0, 3.0, 2.0, 0.0]
    # Budget 2: number 3 is unsafe. Of the other five ceil(.25 * 5) = 2 are best.
    labels, weights = trac.label_segments(returns, costs, 2.0, top=0.25, bottom=0.0)
    assert labels == [1, None, None, 0, None, 1]
    assert [weights[i] for i in (0, 3, 5)] == pytest.approx([1.0, 1.0, 0.925])
    assert weights[1] is None
    # Half of five, rounded up, both ways: the one in the middle is overridden.
    labels, weights = trac.label_segments(returns, costs, 2.0, top=0.5, bottom=0.5)
    assert labels == [1, 0, 0, 0, 0, 1]
    assert weights == pytest.approx([1.0, 1.0, 0.85, 1.0, 0.925, 0.925])


def test_labels_that_cannot_be_given() -> None:
    with pytest.raises(ValueError, match="no segment is safe"):
        trac.label_segments([1.0, 2.0], [5.0, 5.0], 2.0, 0.5, 0.5)
    with pytest.raises(ValueError, match="same return"):
        trac.label_segments([1.0, 1.0, 3.0], [0.0, 0.0, 5.0], 2.0, 0.5, 0.5)


def test_trac_loss_by_hand() -> None:
    advantage = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    labels, weights = torch.tensor([1, 0, 0]), torch.tensor([0.8, 0.9, 1.0], dtype=torch.float64)

    def sigmoid(value: float) -> float:
        return 1 / (1 + math.exp(-value))

    balance = 0.25 * 1 / 2
    expected = 0.8 * math.log(sigmoid(0.5)) + balance * (0.9 * math.log(sigmoid(1.0)) + math.log(sigmoid(-2.0)))
    assert float(trac.trac_loss(advantage, labels, weights, 0.25, 1e-6)) == pytest.approx(-expected / 3, rel=1e-12)


def test_trac_loss_of_one_class_and_of_certainty() -> None:
    ones = torch.ones(2, dtype=torch.float64)
    all_good = trac.trac_loss(0.0 * ones, torch.ones(2), ones, 0.25, 1e-6)
    assert float(all_good) == pytest.approx(math.log(2))
    all_bad = trac.trac_loss(0.0 * ones, torch.zeros(2), ones, 0.25, 1e-6)
    assert float(all_bad) == 0.0
    advantage = torch.tensor([-40.0, 0.0], dtype=torch.float64, requires_grad=True)
    loss = trac.trac_loss(advantage, torch.ones(2), ones, 0.25, 1e-6)
    assert float(loss.detach()) == pytest.approx((-math.log(1e-6) + math.log(2)) / 2)
    loss.backward()
    assert advantage.grad is not None
    assert advantage.grad.tolist() == pytest.approx([0.0, -0.25])


def test_orthogonal_start_in_double_precision() -> None:
    agent = make_agent()
    gram = agent.policy.first.weight.T @ agent.policy.first.weight
    assert torch.allclose(gram, torch.eye(S, dtype=torch.float64), atol=1e-6)
    assert all(parameter.dtype == torch.float64 for parameter in agent.policy.parameters())
    assert float(agent.policy.first.bias.detach().abs().max()) == 0.0


def test_dropout_comes_before_relu() -> None:
    agent = make_agent()
    observations, masks = make_batch()["observations"], make_masks()
    policy = agent.policy
    hidden = torch.relu((observations @ policy.first.weight.T + policy.first.bias) * masks[0])
    hidden = torch.relu((hidden @ policy.second.weight.T + policy.second.bias) * masks[1])
    expected = torch.tanh(hidden @ policy.output.weight.T + policy.output.bias)
    assert torch.allclose(policy(observations, masks), expected, rtol=1e-12)
    assert agent.act(observations[0, 0]).tolist() == pytest.approx(policy(observations)[0, 0].tolist())


def test_cloning_by_hand_sees_all_labels_alike() -> None:
    batch = make_batch()
    agent = make_agent()
    before = copy_parameters(agent.policy)
    with torch.no_grad():
        actions = agent.policy(batch["observations"])
    goals = batch["actions"].clamp(-1 + 1e-5, 1 - 1e-5)
    losses = agent.step(batch)
    assert losses == {"bc_loss": pytest.approx(float(((actions - goals) ** 2).sum(dim=-1).mean()), rel=1e-12)}
    assert largest_change(agent.policy, before) == pytest.approx(1e-4, rel=1e-3)
    relabelled = batch | {"labels": 1.0 - batch["labels"], "weights": 2.0 * batch["weights"]}
    assert make_agent().step(relabelled) == losses


def test_phases() -> None:
    batch, agent = make_batch(), make_agent(bc_steps=2)
    first = agent.optimizer
    agent.step(batch)
    assert agent.reference is None
    agent.step(batch)
    assert agent.reference is not None
    assert agent.optimizer is not first
    assert not agent.optimizer.state
    cloned = copy_parameters(agent.reference)
    assert largest_change(agent.policy, cloned) == 0.0

    # The policy is its own reference: every advantage is 0, and each probability a half.
    losses = agent.step(batch)
    balance = 0.25 * 2 / 4
    weights = batch["weights"].tolist()
    expected = math.log(2) * (weights[0] + weights[3] + balance * (sum(weights) - weights[0] - weights[3])) / B
    assert losses == {"trac_loss": pytest.approx(expected, rel=1e-12)}
    # A restarted Adam's first step is the rate, which starts at a ten thousandth of 1e-5.
    assert largest_change(agent.policy, cloned) == pytest.approx(1e-9, rel=1e-2)
    assert largest_change(agent.reference, cloned) == 0.0


def test_rate_of_the_second_phase() -> None:
    batch, agent = make_batch(), make_agent(ramp_steps=4)
    agent.step(batch)
    rates = []
    for _ in range(6):
        agent.step(batch)
        rates.append(agent.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([2.5e-6, 5e-6, 7.5e-6, 1e-5, 1e-5, 1e-5])


def test_advantage_is_discounted_and_only_the_policy_is_masked() -> None:
    batch, masks, agent = make_batch(), make_masks(), make_agent(gamma=0.5, alpha=0.1)
    agent.step(batch)
    reference = agent.reference
    assert reference is not None
    observations, actions = batch["observations"], batch["actions"]
    with torch.no_grad():
        agent.policy.output.bias += 0.1
        advantage = agent.segment_advantages(observations, actions, masks)
        for segment in range(B):
            expected = 0.0
            for t in range(L):
                row = observations[segment, t]
                mean = agent.policy(row, [mask[segment, t] for mask in masks])
                near = float(((mean - actions[segment, t]) ** 2).sum())
                before = float(((reference(row) - actions[segment, t]) ** 2).sum())
                expected += 0.1 * 0.5**t * (before - near)
            assert float(advantage[segment]) == pytest.approx(expected, rel=1e-9)


def test_desirable_segments_become_likelier() -> None:
    batch, agent = make_batch(), make_agent(trac_lr=1e-2, ramp_steps=1)
    agent.step(batch)
    for _ in range(100):
        agent.step(batch)
    advantage = agent.segment_advantages(batch["observations"], batch["actions"], []).detach()
    assert advantage[batch["labels"] == 1].min() > 0.0
    assert advantage[batch["labels"] == 0].mean() < 0.0
