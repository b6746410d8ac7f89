"""What methods with critics, on transitions, have in common: settings, columns, and what ends an episode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, TypeVar

from pydantic import Field, model_validator
from torch import Tensor

from algorithms.parts import diagnostics
from harness.algorithm import Algorithm, Batch, Hyperparameters
from harness.bounds import BatchSize, Count, HiddenSizes, Steps, Width, require_weights, weights


class TransitionHyperparameters(Hyperparameters):
    """Of a method that values transitions."""

    steps: Steps = Field(description="gradient steps of one training run")
    batch_size: BatchSize = Field(description="transitions a step draws from the dataset")
    gamma: float = Field(0.99, ge=0, lt=1, description="discount of rewards and costs")
    timeouts_terminal: bool = Field(
        True, description="treat a time limit as terminal in the targets, as the published code does"
    )


class ActorCriticHyperparameters(TransitionHyperparameters):
    """Defaults are OSRL's (``examples/configs/``), where an algorithm does not say otherwise."""

    steps: Steps = Field(100_000, description="gradient steps of one training run")
    batch_size: BatchSize = Field(512, description="transitions a step draws from the dataset")
    actor_hidden_sizes: HiddenSizes = Field((256, 256), description="hidden layers of the actor")
    critic_hidden_sizes: HiddenSizes = Field((256, 256), description="hidden layers of every critic")
    reward_scale: float = Field(0.1, gt=0, description="rewards are multiplied by this")
    cost_scale: float = Field(1.0, gt=0, description="costs, and the limit, are multiplied by this")


def affordable(*counts: str) -> Any:
    """A check of settings: no ensemble of critics, as many as one of these settings says, is beyond all means."""

    def check(config: Any) -> Any:
        require_weights(max(getattr(config, count) for count in counts) * weights(config.critic_hidden_sizes))
        return config

    return model_validator(mode="after")(check)


class QLearningHyperparameters(ActorCriticHyperparameters):
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

    _affordable = affordable("num_q", "num_qc")

    @model_validator(mode="after")
    def _affordable_vae(self) -> Self:
        require_weights(self.vae_hidden_size**2)
        return self


Config = TypeVar("Config", bound=TransitionHyperparameters)


class TransitionMethod(Algorithm[Config]):
    """A method with critics, which are held against what the data's trajectories earned and cost."""

    @classmethod
    def columns(cls, config: Config) -> tuple[str, ...]:
        """Transitions with rewards, costs and what ends an episode."""
        return ("observations", "actions", "next_observations", "rewards", "costs", end_column(config))

    @classmethod
    def diagnostic_columns(cls, config: Config) -> tuple[str, ...]:
        """What calibrations want."""
        return diagnostics.COLUMNS

    @classmethod
    def diagnostic_discount(cls, config: Config) -> float:
        """The critics'."""
        return config.gamma


def end_column(config: TransitionHyperparameters) -> str:
    """The column that ends an episode in the targets."""
    return "done" if config.timeouts_terminal else "terminals"


def going_on(batch: Batch, config: TransitionHyperparameters) -> Tensor:
    """1 where the episode goes on, 0 where it ends, (R, B)."""
    return 1 - batch[end_column(config)]


def scaled(batch: Batch, config: ActorCriticHyperparameters) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled rewards, scaled costs, and 1 where the episode goes on, (R, B) each."""
    return batch["rewards"] * config.reward_scale, batch["costs"] * config.cost_scale, going_on(batch, config)


def detached(metrics: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Metrics as an update gives them, without their history."""
    return {name: value.detach() for name, value in metrics.items()}


def named(owner: object, *names: str) -> dict[str, Any]:
    """Attributes by name, for a method's ``parts``."""
    return {name: getattr(owner, name) for name in names}
