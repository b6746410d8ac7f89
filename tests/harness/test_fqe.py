"""Fitted Q-evaluation against tabular decision processes whose values are known."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

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
SETTINGS = FQE(steps=1500, batch_size=64, hidden_sizes=(16,), learning_rate=0.01, gamma=GAMMA, polyak=0.2)


class Table(Policy):
    """In each state left or right, or right with a probability."""

    def __init__(self, *rightward: float) -> None:
        super().__init__()
        self.rightward = torch.tensor(rightward)

    def act(self, observations: Tensor) -> Tensor:
        chances = torch.distributions.Normal(0, 1).cdf(self.noise(1))
        return torch.where(chances < (observations @ self.rightward).unsqueeze(1), RIGHT, LEFT)


class Told(Table):
    """Always right where the limit is 0, else always left."""

    def reset(self, seeds: Sequence[int], cost_limit: float | None) -> None:
        super().reset(seeds, cost_limit)
        self.rightward = torch.full((STATES,), float(cost_limit == 0))


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


def logged(rows: Sequence[tuple[int, float]], **changes: NDArray[np.bool_]) -> Dataset:
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
        print(estimate, exact(*policy))
        assert close(estimate, exact(*policy), 0.02), policy
    assert exact(*POLICIES[0]) == Estimate(pytest.approx(2.5), 0)
