"""What OSRL's baselines with critics share: settings, cost thresholds, targets, the PID multiplier, a policy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from algorithms import diagnostics
from algorithms.networks import Gaussian
from harness.algorithm import Algorithm, Batch, Hyperparameters, Policy, Replica
from harness.bounds import BatchSize, Count, HiddenSizes, Steps, Width, require_weights, weights
from harness.tasks import Task

LATENT_CLAMP = 0.5
"""OSRL clamps the latents of actions that a VAE proposes to this, elementwise."""


class BaselineHyperparameters(Hyperparameters):
    """Defaults are OSRL's (``examples/configs/``), where an algorithm does not say otherwise."""

    steps: Steps = Field(100_000, description="gradient steps of one training run")
    batch_size: BatchSize = Field(512, description="transitions a step draws from the dataset")
    actor_hidden_sizes: HiddenSizes = Field((256, 256), description="hidden layers of the actor")
    critic_hidden_sizes: HiddenSizes = Field((256, 256), description="hidden layers of every critic")
    gamma: float = Field(0.99, ge=0, lt=1, description="discount of rewards and costs")
    reward_scale: float = Field(0.1, gt=0, description="rewards are multiplied by this")
    cost_scale: float = Field(1.0, gt=0, description="costs, and the limit, are multiplied by this")
    timeouts_terminal: bool = Field(True, description="treat a time limit as terminal in the targets, as OSRL does")


class QLearningHyperparameters(BaselineHyperparameters):
    """What BCQ-Lag, BEAR-Lag and CPQ share."""

    vae_hidden_size: Width = Field(400, description="width of the VAE's two hidden layers, each way")
    actor_lr: float = Field(1e-3, gt=0, description="Adam's learning rate for the actor")
    critic_lr: float = Field(1e-3, gt=0, description="Adam's learning rate for the critics")
    vae_lr: float = Field(1e-3, gt=0, description="Adam's learning rate for the VAE")
    polyak: float = Field(0.005, gt=0, le=1, description="rate at which the targets follow")
    vae_beta: float = Field(0.5, ge=0, description="weight of the VAE's KL term")
    sampled_actions: Count = Field(10, description="actions sampled for each state")
    num_q: Count = Field(2, description="reward critics in each ensemble")
    num_qc: Count = Field(2, description="cost critics in each ensemble")
    cost_bootstrap_through_done: bool = Field(
        True, description="the cost backup ignores the end of an episode, as in OSRL; false: it ends there"
    )

    @model_validator(mode="after")
    def _affordable(self) -> Self:
        require_weights(self.vae_hidden_size**2)
        require_weights(max(self.num_q, self.num_qc) * weights(self.critic_hidden_sizes))
        return self


class LagrangianHyperparameters(QLearningHyperparameters):
    """What BCQ-Lag and BEAR-Lag share."""

    target_mix: float = Field(0.75, ge=0, le=1, description="weight of the smaller critic in the targets (lambda)")
    pid: tuple[float, float, float] = Field((0.1, 0.003, 0.001), description="the multiplier's gains: P, I, D")
    cost_critic_reduction: Literal["min", "max"] = Field(
        "min",
        description="the cost that the actor is penalised with: the least of the critics, as in OSRL, or the most",
    )


Config = TypeVar("Config", bound=BaselineHyperparameters)


class Baseline(Algorithm[Config]):
    """An algorithm on transitions that trains for a cost limit."""

    per_task: ClassVar[Mapping[str, Mapping[str, Any]]] = {"metadrive": {"steps": 200_000}}

    @classmethod
    def depends_on_cost_limit(cls, config: Config) -> bool:
        """Training holds the cost to the limit."""
        return True

    @classmethod
    def columns(cls, config: Config) -> tuple[str, ...]:
        """Transitions with rewards, costs and what ends an episode."""
        return ("observations", "actions", "next_observations", "rewards", "costs", end_column(config))

    @classmethod
    def warnings(cls, config: Config, metrics: Mapping[str, float]) -> tuple[str, ...]:
        """Whether a multiplier stands at a bound."""
        return multiplier_warnings(metrics)

    @classmethod
    def diagnostic_columns(cls, config: Config) -> tuple[str, ...]:
        """What calibrations want."""
        return diagnostics.COLUMNS

    @classmethod
    def diagnostic_discount(cls, config: Config) -> float:
        """The critics'."""
        return config.gamma


def latent_size(task: Task) -> int:
    """OSRL's VAEs have two latent dimensions for each of the action."""
    return 2 * task.action_size


def end_column(config: BaselineHyperparameters) -> str:
    """The column that ends an episode in the targets."""
    return "done" if config.timeouts_terminal else "terminals"


def scaled(batch: Batch, config: BaselineHyperparameters) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled rewards, scaled costs, and 1 where the episode goes on, (R, B) each."""
    alive: Tensor = 1 - batch[end_column(config)]
    return batch["rewards"] * config.reward_scale, batch["costs"] * config.cost_scale, alive


def cost_limits(config: BaselineHyperparameters, replicas: Sequence[Replica]) -> Tensor:
    """The scaled cost limit of an episode for each replica, (R,), float64."""
    limits = [replica.cost_limit for replica in replicas]
    if None in limits:
        raise ValueError("this algorithm trains for a cost limit, and a replica has none")
    return config.cost_scale * torch.tensor(limits, dtype=torch.float64)


def discounted_limit(config: BaselineHyperparameters, task: Task, replicas: Sequence[Replica]) -> Tensor:
    """The discounted total of a cost that spreads the limit evenly over an episode: (R,), float64.

    ``limit (1 - gamma^T) / ((1 - gamma) T)`` for episodes of T steps, as OSRL has it.
    """
    steps = task.max_episode_steps
    return cost_limits(config, replicas) * (1 - config.gamma**steps) / (1 - config.gamma) / steps


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


LOG_ALPHA_BOUND = 5.0
"""OSRL clamps the logarithms of its multipliers alpha to this, both ways."""


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


def reduced(values: Tensor, how: Literal["min", "max"]) -> Tensor:
    """The least or the most that any of n critics says: (R, n, B) -> (R, B)."""
    extreme: Tensor = values.amin(1) if how == "min" else values.amax(1)
    return extreme


def repeated(observations: Tensor, samples: int) -> Tensor:
    """Every observation ``samples`` times in a row: (R, B, dim) -> (R, B * samples, dim)."""
    return observations.unsqueeze(2).expand(-1, -1, samples, -1).flatten(1, 2)


def critic_loss(values: Tensor, target: Tensor) -> Tensor:
    """Squared error of critics (R, n, B) to their target (R, B): mean over the batch, sum over critics, (R,)."""
    return (values - target.unsqueeze(1)).square().mean(2).sum(1)


def critics_on_held_out(
    batch: Batch, config: BaselineHyperparameters, reward_values: Tensor, cost_values: Tensor
) -> dict[str, Tensor]:
    """The diagnostics of reward and cost critics, (R, N) each at the batch's steps, in the task's own units."""
    rewards, costs, safe = batch["discounted_rewards_to_go"], batch["discounted_costs_to_go"], batch["safe"] > 0
    return {
        **diagnostics.cost_levels(costs, safe),
        **diagnostics.calibration("q", reward_values / config.reward_scale, rewards),
        **diagnostics.cost_calibration("qc", cost_values / config.cost_scale, costs, safe),
    }


class MeanActionPolicy(Policy):
    """tanh of the mean of a squashed Gaussian actor, as OSRL evaluates its actors."""

    def __init__(self, actor: Gaussian) -> None:
        super().__init__()
        self.actor = actor

    def act(self, observations: Tensor) -> Tensor:
        """Deterministic actions (n, action_size)."""
        return torch.tanh(self.actor(observations)[0])
