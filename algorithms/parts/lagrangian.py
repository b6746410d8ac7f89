"""Lagrange multipliers of constraints, and what BCQ-Lag and BEAR-Lag share beside one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from algorithms.parts.critics import backups, critic_loss, critics_on_held_out, extreme, least
from algorithms.parts.methods import QLearningHyperparameters, TransitionHyperparameters, TransitionMethod
from algorithms.parts.optimisers import minimise
from harness.algorithm import Batch

Config = TypeVar("Config", bound=TransitionHyperparameters)
"""A method's settings."""

LOG_ALPHA_BOUND = 5.0
"""OSRL clamps the logarithms of its multipliers alpha to this, both ways."""


class PIDMultiplier:
    """A Lagrange multiplier for each replica, set by a PID controller (OSRL's ``LagrangianPIDController``).

    Args:
        gains: of the proportional, the integral and the derivative part.
        threshold: (R,) what the cost value is held to.
    """

    def __init__(self, gains: tuple[float, float, float], threshold: Tensor) -> None:
        self.gains, self.threshold = gains, threshold
        self.error = torch.zeros_like(threshold)
        self.integral = torch.zeros_like(threshold)

    @torch.no_grad()
    def control(self, cost_values: Tensor) -> Tensor:
        """The multiplier (R,) after seeing the cost values (R, B) of a batch."""
        proportional, integral, derivative = self.gains
        error = (cost_values - self.threshold.unsqueeze(1)).mean(1)
        change = torch.relu(error - self.error)
        self.integral.copy_(torch.relu(self.integral + error))
        self.error.copy_(error)
        return torch.relu(proportional * torch.relu(error) + integral * self.integral + derivative * change)

    def penalise(self, cost_values: Tensor) -> tuple[Tensor, Tensor]:
        """The new multiplier, and the actor's mean penalty ``multiplier (cost - threshold)``: (R,) each."""
        multiplier = self.control(cost_values.detach())
        return multiplier, ((cost_values - self.threshold.unsqueeze(1)) * multiplier.unsqueeze(1)).mean(1)

    def state_dict(self) -> dict[str, Any]:
        """The last error and the integral."""
        return {"error": self.error, "integral": self.integral}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The last error and the integral."""
        self.error.copy_(state["error"])
        self.integral.copy_(state["integral"])


@torch.no_grad()
def ascend(log_alpha: Tensor, rate: float, excess: Tensor) -> None:
    """Step the logarithm of each replica's multiplier (R,), in place, up by how far its constraint is broken (R,)."""
    log_alpha.add_(rate * log_alpha.exp() * excess).clamp_(-LOG_ALPHA_BOUND, LOG_ALPHA_BOUND)


def multiplier_warnings(metrics: Mapping[str, float]) -> tuple[str, ...]:
    """What there is to say of multipliers that stand at a bound, by :meth:`harness.algorithm.Algorithm.warnings`.

    Args:
        metrics: with ``multiplier``, of the cost, or ``alpha``, of another constraint.
    """
    said = []
    if "multiplier" in metrics and metrics["multiplier"] < 1e-6:
        said.append("its cost multiplier is 0: the critics hold the limit to be kept, and no cost is penalised")
    if "alpha" in metrics:
        log_alpha = math.log(max(metrics["alpha"], 1e-300))
        for bound, name in ((LOG_ALPHA_BOUND, "upper"), (-LOG_ALPHA_BOUND, "lower")):
            if abs(log_alpha - bound) < 1e-3:
                said.append(f"its multiplier alpha stands at its {name} bound, {math.exp(bound):.4g}")
    return tuple(said)


class LimitedMethod(TransitionMethod[Config]):
    """A method that trains for a cost limit, by a multiplier or several."""

    per_task: ClassVar[Mapping[str, Mapping[str, Any]]] = {"metadrive": {"steps": 200_000}}

    @classmethod
    def depends_on_cost_limit(cls, config: Config) -> bool:
        """Training holds the cost to the limit."""
        return True

    @classmethod
    def warnings(cls, config: Config, metrics: Mapping[str, float]) -> tuple[str, ...]:
        """Whether a multiplier stands at a bound."""
        return multiplier_warnings(metrics)


# BCQ-Lag and BEAR-Lag


class LagrangianHyperparameters(QLearningHyperparameters):
    """What BCQ-Lag and BEAR-Lag share."""

    target_mix: float = Field(0.75, ge=0, le=1, description="weight of the smaller critic in the targets (lambda)")
    pid: tuple[float, float, float] = Field((0.1, 0.003, 0.001), description="the multiplier's gains: P, I, D")
    cost_critic_reduction: Literal["min", "max"] = Field(
        "min",
        description="the cost that the actor is penalised with: the least of the critics, as in OSRL, or the most",
    )


def mixed_target(values: Tensor, weight: float, samples: int) -> Tensor:
    """The value of a next state from those of its sampled actions, as in BCQ and BEAR.

    ``max over actions of (weight min_j Q_j + (1 - weight) max_j Q_j)``, where Q_j is the least of ensemble j's critics.

    Args:
        values: (R, 2 n, B * samples), the critics of the first ensemble before those of the second.
        weight: of the smaller one.
        samples: actions a state.

    Returns:
        (R, B).
    """
    least = values.unflatten(1, (2, -1)).amin(2)
    mixed = weight * least.amin(1) + (1 - weight) * least.amax(1)
    best: Tensor = mixed.unflatten(1, (-1, samples)).amax(2)
    return best


def train_twins(
    networks: nn.ModuleDict,
    targets: nn.ModuleDict,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    config: LagrangianHyperparameters,
    next_pairs: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """One step of ``critics`` and ``cost_critics``, two ensembles each: their losses, (R,) each.

    They step disjoint parameters towards targets from before their step, so one backward pass serves both.

    Args:
        networks: both.
        targets: theirs.
        optimizer: of both.
        batch: transitions.
        config: of the algorithm.
        next_pairs: next states with sampled actions, for either target, (R, B * samples, dim) each.
    """
    names, c = ("critics", "cost_critics"), config
    with torch.no_grad():
        value, cost_value = (
            mixed_target(targets[name](pairs).squeeze(-1), c.target_mix, c.sampled_actions)
            for name, pairs in zip(names, next_pairs, strict=True)
        )
        held_to = backups(batch, c, value, cost_value)
    pairs = torch.cat([batch["observations"], batch["actions"]], -1)
    q_loss, qc_loss = (
        critic_loss(networks[name](pairs).squeeze(-1), target) for name, target in zip(names, held_to, strict=True)
    )
    minimise(optimizer, q_loss + qc_loss)
    return q_loss, qc_loss


def actors_values(networks: nn.ModuleDict, pairs: Tensor, config: LagrangianHyperparameters) -> tuple[Tensor, Tensor]:
    """The reward value and the cost value of pairs as the actor's step reads them: (R, B, dim) -> (R, B) each."""
    cost_value = extreme(networks["cost_critics"], pairs, config.cost_critic_reduction)
    return least(networks["critics"], pairs), cost_value


def twins_on_held_out(batch: Batch, config: LagrangianHyperparameters, networks: nn.ModuleDict) -> dict[str, Tensor]:
    """The diagnostics of both, as the actor's step reads them."""
    pairs = torch.cat([batch["observations"], batch["actions"]], -1)
    return critics_on_held_out(batch, config, *actors_values(networks, pairs, config))
