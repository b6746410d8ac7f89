"""What ensembles of critics say and are held to, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from algorithms.parts.critics import backups, critic_loss, least, mean_critic_loss, most, repeated
from algorithms.parts.methods import QLearningHyperparameters

VALUES = torch.tensor([[[1.0, 5.0], [3.0, 2.0]], [[0.0, -1.0], [4.0, -4.0]]])  # (R, n, B)


class Saying(nn.Module):
    """Critics that say this of all pairs."""

    def forward(self, pairs: Tensor) -> Tensor:
        return VALUES.unsqueeze(-1)


def test_the_least_and_the_most_of_an_ensemble() -> None:
    assert least(Saying(), torch.zeros(2, 2, 3)).tolist() == [[1, 2], [0, -4]]
    assert most(Saying(), torch.zeros(2, 2, 3)).tolist() == [[3, 5], [4, -1]]


def test_losses_sum_over_critics_or_take_their_mean() -> None:
    target = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert critic_loss(VALUES, target).tolist() == [(0 + 16) / 2 + (4 + 1) / 2, (0 + 1) / 2 + (16 + 16) / 2]
    assert mean_critic_loss(VALUES, target).tolist() == [21 / 4, 33 / 4]


def test_an_observation_is_repeated_beside_itself() -> None:
    rows = torch.arange(4.0).view(1, 2, 2)
    assert repeated(rows, 3).tolist() == [[[0, 1]] * 3 + [[2, 3]] * 3]


@pytest.mark.parametrize(("through", "cost_at_end"), [(True, 2 * 1 + 0.5 * 4), (False, 2 * 1)])
def test_an_end_cuts_the_reward_backup_and_that_of_costs_if_told(through: bool, cost_at_end: float) -> None:
    settings: dict[str, Any] = {"gamma": 0.5, "reward_scale": 3.0, "cost_scale": 2.0}
    config = QLearningHyperparameters(**settings, cost_bootstrap_through_done=through)
    batch = {"rewards": torch.ones(1, 2), "costs": torch.ones(1, 2), "done": torch.tensor([[0.0, 1.0]])}
    reward, cost = backups(batch, config, torch.full((1, 2), 8.0), torch.full((1, 2), 4.0))
    assert reward.tolist() == [[3 + 0.5 * 8, 3]]
    assert cost.tolist() == [[2 + 0.5 * 4, cost_at_end]]
