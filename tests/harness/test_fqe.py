"""Fitted Q-evaluation against tabular decision processes whose values are known."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.algorithm import Policy, Replica
from harness.data.dataset import Dataset
from harness.fqe import Candidate, Estimate, FittedQ
from harness.suite import FQE
from harness.tasks import find_task

STATES = 3
GAMMA = 0.8
LEFT, RIGHT = -1.0, 1.0
SETTINGS = FQE(steps=600, batch_size=32, hidden_sizes=(16,), learning_rate=0.01, gamma=GAMMA, polyak=0.2)


class Table(Policy):
    """In each state left or right, or right with a probability."""

    def __init__(self, *rightward: float) -> None:
        super().__init__()
        self.rightward = torch.tensor(rightward, dtype=torch.float32)

    def act(self, observations: Tensor) -> Tensor:
        chances = torch.distributions.Normal(0, 1).cdf(self.noise(1))
        return torch.where(chances < (observations @ self.rightward).unsqueeze(1), RIGHT, LEFT)


class Told(Table):
    """Always right where the limit is 0, else always left."""

    def reset(self, seeds: Sequence[int], cost_limit: float | None) -> None:
        super().reset(seeds, cost_limit)
        self.rightward = torch.full((STATES,), float(cost_limit == 0))


class Far(Table):
    """Where no data is."""

    def act(self, observations: Tensor) -> Tensor:
        return torch.full((len(observations), 1), 50.0)


class Historian(Table):
    markov = False


def step(state: int, action: float) -> tuple[int, float, float, bool]:
    """A ring: right moves on, and out of the last state ends the episode; left stays."""
    if action == LEFT:
        return state, 0.5 + state, 0.0, False
    return (state + 1) % STATES, 2.0 - state, 1.0 + state, state == STATES - 1


def exact(*rightward: float) -> Estimate:
    """The value of the first state, by solving Bellman's equation."""
    moves, reward, cost = np.zeros((STATES, STATES)), np.zeros(STATES), np.zeros(STATES)
    for state, chance in enumerate(rightward):
        for action, weight in ((RIGHT, chance), (LEFT, 1 - chance)):
            following, one_reward, one_cost, terminal = step(state, action)
            moves[state, following] += weight * (not terminal)
            reward[state] += weight * one_reward
            cost[state] += weight * one_cost
    values = np.linalg.solve(np.eye(STATES) - GAMMA * moves, np.stack([reward, cost], 1))
    return Estimate(*values[0].tolist())


def logged(rows: Sequence[tuple[int, float]], **changes: NDArray[Any]) -> Dataset:
    """A dataset of these states and actions; episodes of two steps that begin in the first state, cut by timeouts."""
    task = dataclasses.replace(find_task("BallRun"), observation_size=STATES, action_size=1)
    outcomes = [step(*row) for row in rows]
    eye = np.eye(STATES, dtype=np.float32)
    arrays = {
        "observations": eye[[state for state, _ in rows]],
        "actions": np.array([[action] for _, action in rows], np.float32),
        "next_observations": eye[[following for following, *_ in outcomes]],
        "rewards": np.array([reward for _, reward, *_ in outcomes], np.float32),
        "costs": np.array([cost for *_, cost, _ in outcomes], np.float32),
        "terminals": np.array([terminal for *_, terminal in outcomes]),
        "timeouts": np.array([index % 2 == 1 for index in range(len(rows))]),
    }
    arrays["timeouts"] &= ~arrays["terminals"]
    return Dataset(task, Path("made-up.hdf5"), "own", arrays | changes)


@pytest.fixture
def dataset() -> Dataset:
    """Every state and action; whatever row, an odd one follows on a first state, so that episodes begin there."""
    return logged(
        [pair for state in range(STATES) for action in (LEFT, RIGHT) for pair in ((0, LEFT), (state, action))]
    )


def fitted(dataset: Dataset, *candidates: Candidate, settings: FQE = SETTINGS) -> list[Estimate]:
    return FittedQ(dataset, settings, dtype=torch.float64).estimates(candidates)


def close(estimate: Estimate, expected: Estimate, tolerance: float) -> bool:
    return np.allclose(dataclasses.astuple(estimate), dataclasses.astuple(expected), atol=tolerance)


POLICIES = [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 0.0, 0.0), (1.0, 1.0, 0.0)]


def test_values_are_those_of_bellmans_equation(dataset: Dataset) -> None:
    estimates = fitted(dataset, *(Candidate(Table(*policy), Replica(seed)) for seed, policy in enumerate(POLICIES)))
    for estimate, policy in zip(estimates, POLICIES, strict=True):
        assert close(estimate, exact(*policy), 0.02), policy
    assert exact(*POLICIES[0]) == Estimate(pytest.approx(2.5), 0)


def test_a_linear_q_finds_a_linear_value() -> None:
    """Left alone is logged: staying in a state for ever, whose value no action changes."""
    dataset = logged([(state, LEFT) for state in (0, 0, 0, 1, 0, 2)])
    (estimate,) = fitted(dataset, Candidate(Table(0, 0, 0), Replica(0)), settings=linear(steps=1000))
    assert close(estimate, exact(0, 0, 0), 0.01)


def linear(**changes: int) -> FQE:
    return SETTINGS.model_copy(update={"hidden_sizes": (), **changes})


def test_no_value_is_beyond_what_the_data_allows() -> None:
    """Right earns and costs more than left; a line through the two promises 25 times as much where the policy goes."""
    stays = np.eye(STATES, dtype=np.float32)[[0, 0]]
    dataset = logged([(0, LEFT), (0, RIGHT)], next_observations=stays)
    (estimate,) = fitted(dataset, Candidate(Far(0, 0, 0), Replica(0)), settings=linear(steps=200))
    assert close(estimate, Estimate(2 / (1 - GAMMA), 1 / (1 - GAMMA)), 1e-9)


def test_a_timeout_is_gone_through_and_a_terminal_is_not(dataset: Dataset) -> None:
    """With every end a timeout, the ring goes on for ever."""
    endless = Dataset(dataset.task, dataset.path, "own", {**dataset.arrays, "terminals": np.zeros(len(dataset), bool)})
    always = (1.0, 1.0, 1.0)
    (estimate,) = fitted(endless, Candidate(Table(*always), Replica(0)))
    around = 1 / (1 - GAMMA**STATES)  # the first round's value is that of the whole episode with its terminal
    assert close(estimate, Estimate(*(around * value for value in dataclasses.astuple(exact(*always)))), 0.05)


def test_a_stochastic_policy_is_judged_by_its_mean() -> None:
    """Each row has noise of its own; the more rows, the nearer to the exact value."""
    pairs = [pair for state in range(STATES) for action in (LEFT, RIGHT) for pair in ((0, LEFT), (state, action))]
    (estimate,) = fitted(logged(pairs * 100), Candidate(Table(0.5, 0.5, 0.5), Replica(0)))
    assert close(estimate, exact(0.5, 0.5, 0.5), 0.3)
    assert not close(exact(0.5, 0.5, 0.5), exact(1, 1, 1), 0.6)


FEW = SETTINGS.model_copy(update={"steps": 70})


def test_alone_equals_together_and_the_same_seed_twice(dataset: Dataset) -> None:
    def candidates() -> list[Candidate]:
        return [Candidate(Table(0.5, 0.2, 0.9), Replica(seed, 10.0, "toy")) for seed in range(3)]

    together = fitted(dataset, *candidates(), settings=FEW)
    assert together == fitted(dataset, *candidates(), settings=FEW)
    assert together[0] != together[1]
    (alone,) = fitted(dataset, candidates()[1], settings=FEW)
    assert close(alone, together[1], 1e-10)


def test_a_policy_is_told_its_limit(dataset: Dataset) -> None:
    limits = (0.0, 10.0)
    told = fitted(dataset, *(Candidate(Told(0, 0, 0), Replica(0), limit) for limit in limits), settings=FEW)
    fixed = fitted(dataset, *(Candidate(Table(*policy), Replica(0)) for policy in ((1, 1, 1), (0, 0, 0))), settings=FEW)
    assert told == fixed
    assert told[0] != told[1]


def test_a_policy_with_a_memory_is_refused(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="Historian acts on more than the last observation"):
        fitted(dataset, Candidate(Historian(1, 1, 1), Replica(0)))


def test_nothing_else_is_changed(dataset: Dataset) -> None:
    before = {name: values.copy() for name, values in dataset.arrays.items()}
    random = torch.get_rng_state()
    (estimate,) = FittedQ(dataset, FEW).estimates([Candidate(Table(0.5, 0.5, 0.5), Replica(0))])
    assert np.isfinite(dataclasses.astuple(estimate)).all()
    assert torch.equal(random, torch.get_rng_state())
    assert all(np.array_equal(values, before[name]) for name, values in dataset.arrays.items())
    assert FittedQ(dataset, FEW).estimates([]) == []
