"""Ensembles of critics: what they say, what they are held to, and how they stand beside what was observed."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from algorithms.parts import diagnostics
from algorithms.parts.losses import per_replica_mean
from algorithms.parts.methods import ActorCriticHyperparameters, QLearningHyperparameters, scaled
from harness.algorithm import Batch


def extreme(critics: nn.Module, pairs: Tensor, how: Literal["min", "max"]) -> Tensor:
    """The least or the most that any critic of an ensemble says of each pair: (R, B, dim) -> (R, B)."""
    values: Tensor = critics(pairs).squeeze(-1)
    return values.amin(1) if how == "min" else values.amax(1)


def least(critics: nn.Module, pairs: Tensor) -> Tensor:
    """The smallest value that an ensemble gives each pair: (R, B, dim) -> (R, B)."""
    return extreme(critics, pairs, "min")


def most(critics: nn.Module, pairs: Tensor) -> Tensor:
    """The largest value that an ensemble gives each pair: (R, B, dim) -> (R, B)."""
    return extreme(critics, pairs, "max")


def repeated(observations: Tensor, samples: int) -> Tensor:
    """Every observation ``samples`` times in a row: (R, B, dim) -> (R, B * samples, dim)."""
    return observations.unsqueeze(2).expand(-1, -1, samples, -1).flatten(1, 2)


def critic_loss(values: Tensor, target: Tensor) -> Tensor:
    """Squared error of critics (R, n, B) to their target (R, B): mean over the batch, sum over critics, (R,)."""
    return (values - target.unsqueeze(1)).square().mean(2).sum(1)


def mean_critic_loss(values: Tensor, target: Tensor) -> Tensor:
    """The same, a mean over critics, too."""
    return per_replica_mean((values - target.unsqueeze(1)).square())


def backups(batch: Batch, config: QLearningHyperparameters, value: Tensor, cost_value: Tensor) -> tuple[Tensor, Tensor]:
    """What reward and cost critics are held to, from the values (R, B) of the next states: (R, B) each."""
    rewards, costs, alive = scaled(batch, config)
    through = 1 if config.cost_bootstrap_through_done else alive
    return rewards + config.gamma * alive * value, costs + config.gamma * through * cost_value


def critics_on_held_out(
    batch: Batch, config: ActorCriticHyperparameters, reward_values: Tensor, cost_values: Tensor
) -> dict[str, Tensor]:
    """The diagnostics of reward and cost critics, (R, N) each at the batch's steps, in the task's own units."""
    rewards, costs, safe = batch["discounted_rewards_to_go"], batch["discounted_costs_to_go"], batch["safe"] > 0
    return {
        **diagnostics.cost_levels(costs, safe),
        **diagnostics.calibration("q", reward_values / config.reward_scale, rewards),
        **diagnostics.cost_calibration("qc", cost_values / config.cost_scale, costs, safe),
    }
