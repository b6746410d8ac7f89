"""CDT: constrained decision transformer (Liu et al., ICML 2023, arXiv 2302.07351).

As OSRL has and configures it (osrl-lib 0.1.0, ``osrl/algorithms/cdt.py``): a causal transformer over (reward-to-go,
cost-to-go, observation, action) predicts a Gaussian action, with a temperature that holds its entropy; trajectories are
drawn by their cost and augmented above the reward-cost frontier. At evaluation it is told a return and a cost to
reach. Deviations are numbered in docs/algorithms/cdt.md.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from algorithms.parts.dropout import DropoutStreams
from algorithms.parts.methods import detached
from algorithms.parts.networks import single
from algorithms.parts.optimisers import adam, clip_per_replica, joint_norm, minimise
from algorithms.parts.policies import told
from algorithms.parts.schedules import Schedule
from algorithms.parts.transformer import Transformer, TransformerHyperparameters
from harness.algorithm import Algorithm, Batch, Policy, Replica, Segments, Selection
from harness.bounds import BatchSize, Steps
from harness.data.augmentation import augment
from harness.data.dataset import Dataset
from harness.data.trajectories import pareto_frontier
from harness.errors import UserError
from harness.tasks import Task

COST_OFFSET = 50.0
"""The network sees 50 minus the cost-to-go."""

Returns = tuple[float, float, float]


def _settings(degree: int, max_reward: float, decrease: float, returns: Returns, costs: Returns) -> dict[str, Any]:
    return {
        "augment_degree": degree,
        "augment_max_reward": max_reward,
        "augment_max_decrease": decrease,
        "target_returns": tuple(zip(returns, costs, strict=True)),
    }


NARROW, WIDE = (10, 20, 40), (20, 40, 80)
# Degree of the frontier, highest reward of the augmentation, most decrease; returns to reach at the three cost limits.
PUBLISHED: dict[str, dict[str, Any]] = {
    "metadrive": {"steps": 200_000},
    "AntCircle": _settings(2, 500, 100, (300, 350, 400), NARROW),
    "AntRun": _settings(3, 1000, 150, (700, 750, 800), NARROW),
    "BallCircle": _settings(2, 1000, 200, (700, 750, 800), NARROW),
    "BallRun": _settings(2, 1400, 200, (500, 500, 700), NARROW),
    "CarRun": _settings(0, 600, 100, (575, 575, 575), NARROW),
    "DroneCircle": _settings(1, 1000, 100, (700, 750, 800), NARROW),
    "DroneRun": _settings(1, 700, 100, (400, 500, 600), NARROW),
    "CarButton1": _settings(0, 45, 10, (35, 35, 35), WIDE),
    "CarButton2": _settings(0, 50, 10, (40, 40, 40), WIDE),
    "CarCircle1": _settings(1, 30, 10, (20, 22.5, 25), WIDE),
    "CarCircle2": _settings(1, 30, 10, (20, 21, 22), WIDE),
    "CarGoal1": _settings(1, 50, 5, (40, 40, 40), WIDE),
    "CarGoal2": _settings(1, 35, 5, (30, 30, 30), WIDE),
    "CarPush1": _settings(0, 20, 5, (15, 15, 15), WIDE),
    "CarPush2": _settings(0, 15, 3, (12, 12, 12), WIDE),
    "PointButton1": _settings(0, 45, 5, (40, 40, 40), WIDE),
    "PointButton2": _settings(0, 50, 10, (40, 40, 40), WIDE),
    "PointCircle1": _settings(1, 65, 5, (50, 52.5, 55), WIDE),
    "PointCircle2": _settings(1, 55, 5, (45, 47.5, 50), WIDE),
    "PointGoal1": _settings(0, 35, 5, (30, 30, 30), WIDE),
    "PointGoal2": _settings(1, 35, 5, (30, 30, 30), WIDE),
    "PointPush1": _settings(0, 20, 5, (15, 15, 15), WIDE),
    "PointPush2": _settings(0, 15, 3, (12, 12, 12), WIDE),
    "AntVelocity": _settings(1, 3000, 500, (2800, 2800, 2800), WIDE),
    "HalfCheetahVelocity": _settings(1, 3000, 500, (3000, 3000, 3000), WIDE),
    "HopperVelocity": _settings(1, 2000, 300, (1750, 1750, 1750), WIDE),
    "SwimmerVelocity": _settings(1, 250, 50, (160, 160, 160), WIDE),
    "Walker2dVelocity": _settings(1, 3600, 800, (2800, 2800, 2800), WIDE),
    "easysparse": _settings(2, 500, 100, (300, 350, 400), NARROW),
    "easymean": _settings(2, 500, 100, (300, 350, 400), NARROW),
    "easydense": _settings(2, 500, 100, (300, 350, 400), NARROW),
    "mediumsparse": _settings(0, 300, 100, (300, 300, 300), NARROW),
    "mediummean": _settings(0, 300, 100, (300, 300, 300), NARROW),
    "hardsparse": _settings(1, 500, 100, (300, 350, 400), NARROW),
    "hardmean": _settings(1, 500, 100, (300, 350, 400), NARROW),
    "harddense": _settings(1, 500, 100, (300, 350, 400), NARROW),
}
"""OSRL's settings by task (``examples/configs/cdt_configs.py``); CarCircle and mediumdense have the defaults there."""


class CDTHyperparameters(TransformerHyperparameters):
    """Defaults are OSRL's (``examples/configs/cdt_configs.py``)."""

    steps: Steps = Field(100_000, description="gradient steps of one training run")
    batch_size: BatchSize = Field(2048, description="windows a step draws from the trajectories")
    learning_rate: float = Field(1e-4, gt=0, description="AdamW's learning rate after the warm-up")
    warmup_steps: int = Field(500, ge=1, le=10**9, description="steps over which the learning rate rises linearly")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's decay rates")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW's weight decay")
    clip_grad: float | None = Field(0.25, gt=0, description="largest norm of an agent's gradient; null: not clipped")
    init_temperature: float = Field(0.1, gt=0, description="the entropy's weight at the start")
    temperature_lr: float = Field(1e-4, gt=0, description="Adam's learning rate for the temperature")
    cost_loss_weight: float = Field(0.02, ge=0, description="weight of predicting each step's cost")
    state_loss_weight: float = Field(0.0, ge=0, description="weight of predicting the next observation")
    reward_scale: float = Field(0.1, gt=0, description="rewards to go are multiplied by this")
    cost_scale: float = Field(1.0, gt=0, description="costs to go are multiplied by this")
    cost_offset: bool = Field(True, description="the network sees 50 minus the cost to go")
    cost_sampling: Literal["linear", "inverse", "none"] = Field(
        "linear", description="trajectories are drawn by max(70 - cost, 0), by 1 / (10 + cost), or all alike"
    )
    augment_share: float = Field(0.2, ge=0, le=100, description="relabelled trajectories for each of the data; 0: none")
    augment_degree: int = Field(4, ge=0, le=20, description="degree of the reward-cost frontier's polynomial")
    augment_max_reward: float = Field(600.0, description="highest return of a relabelled trajectory")
    augment_min_reward: float = Field(1.0, description="least that one lies above the frontier")
    augment_max_decrease: float = Field(100.0, ge=0, description="how much return a repeated choice may give up")
    augment_beta: float = Field(1.0, gt=0, description="a replacement at distance d has weight 1 / (d + beta)")
    targets: Literal["published", "frontier"] = Field(
        "published",
        description="the return to reach at a limit: from target_returns, or the best of the data within the limit",
    )
    target_returns: tuple[tuple[float, float], ...] = Field(
        ((450.0, 10.0), (500.0, 20.0), (550.0, 50.0)),
        min_length=1,
        description="(return, cost) pairs; linear between them, constant beyond",
    )

    @model_validator(mode="after")
    def _costs_rise(self) -> Self:
        costs = [cost for _, cost in self.target_returns]
        if sorted(set(costs)) != costs:
            raise ValueError("the costs of target_returns must rise")
        return self


class CDT(Algorithm[CDTHyperparameters]):
    """R constrained decision transformers side by side."""

    Hyperparameters = CDTHyperparameters
    summary = "constrained decision transformer: told a return and a cost to reach"
    per_task: ClassVar[Mapping[str, Mapping[str, Any]]] = PUBLISHED

    @classmethod
    def acts_on_cost_limit(cls, config: CDTHyperparameters) -> bool:
        """The policy is told the limit and a return to go with it."""
        return True

    @classmethod
    def policy_names(cls, config: CDTHyperparameters) -> tuple[str, ...]:
        """One policy."""
        return ("cdt",)

    @classmethod
    def columns(cls, config: CDTHyperparameters) -> tuple[str, ...]:
        """Steps with their costs, and what reward and cost is still to come."""
        return ("observations", "actions", "costs", "rewards_to_go", "costs_to_go")

    @classmethod
    def sequence_length(cls, config: CDTHyperparameters) -> int:
        """K steps a window."""
        return config.sequence_length

    @classmethod
    def select(cls, dataset: Dataset, config: CDTHyperparameters, replica: Replica) -> Selection:
        """Every finished trajectory and the relabelled ones, weighed by their cost.

        Raises:
            UserError: no trajectory is finished, none has a weight, or there is no frontier to augment from.
        """
        trajectories = dataset.trajectories
        count = len(trajectories) - trajectories.unfinished
        if not count:
            raise UserError(f"{dataset.path.name} holds no finished trajectory, and cdt trains on nothing else")
        costs, rewards = trajectories.cost_returns()[:count], trajectories.reward_returns()[:count]
        chosen, new_rewards, new_costs = np.arange(count), rewards, costs
        if config.augment_share > 0:
            rng = np.random.default_rng(replica.entropy("augmentation"))
            try:
                added, added_rewards, added_costs = augment(
                    costs,
                    rewards,
                    rng,
                    share=config.augment_share,
                    degree=config.augment_degree,
                    max_reward=config.augment_max_reward,
                    min_reward=config.augment_min_reward,
                    max_reward_decrease=config.augment_max_decrease,
                    beta=config.augment_beta,
                )
            except UserError as error:
                raise UserError(f"{dataset.path.name}: {error}; set augment_share: 0") from error
            chosen = np.concatenate([chosen, added])
            new_rewards, new_costs = np.concatenate([rewards, added_rewards]), np.concatenate([costs, added_costs])
        weights = {
            "linear": np.maximum(70 - new_costs, 0),
            "inverse": 1 / (10 + np.maximum(new_costs, 0)),
            "none": np.ones(len(chosen)),
        }[config.cost_sampling]
        if not weights.any():
            raise UserError(
                f"every trajectory of {dataset.path.name} costs 70 or more, so cost_sampling 'linear' draws none; use "
                "'inverse'"
            )
        segments = Segments(chosen, weights, new_rewards - rewards[chosen], new_costs - costs[chosen])
        frontier = pareto_frontier(costs, rewards)
        frontier = frontier[np.lexsort((rewards[frontier], costs[frontier]))]
        statistics = {"frontier_costs": costs[frontier], "frontier_returns": rewards[frontier]}
        return Selection(segments=segments, statistics=statistics)

    def __init__(
        self,
        config: CDTHyperparameters,
        task: Task,
        replicas: Sequence[Replica],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config = config
        generators = [replica.generator("weights") for replica in replicas]
        self.network = Transformer(config, task, generators, dtype).to(device)
        self.targets = [Targets.of(config, replica) for replica in replicas]
        self.target_entropy = -float(task.action_size)
        log_temperature = torch.full((len(replicas),), math.log(config.init_temperature), device=device, dtype=dtype)
        self.temperature = nn.ParameterDict({"log": log_temperature})
        self.schedule = Schedule.warm_up(config.learning_rate, config.warmup_steps, device)
        self.dropout = DropoutStreams(replicas, device)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=torch.tensor(config.learning_rate, device=device),
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.temperature_optimizer = adam([(config.temperature_lr, self.temperature.parameters())])

    def update(self, batch: Batch, noise: Batch) -> dict[str, Tensor]:
        """One gradient step of the network, then one of the temperature.

        Padding needs no mask in the attention: it lies behind the steps that count, which causality keeps from it.
        """
        c, mask = self.config, batch["mask"]
        observations, actions = batch["observations"], batch["actions"]
        mean, log_std, cost_scores, next_observations = self.network(
            batch["rewards_to_go"] * c.reward_scale,
            shown_cost(batch["costs_to_go"] * c.cost_scale, c),
            observations,
            actions,
            batch["time_steps"],
            self.dropout.draw(self.network.dropped(batch["time_steps"].shape[1:])),
        )
        share = mask / mask.sum((1, 2), keepdim=True)
        log_density = -0.5 * ((actions - mean) / log_std.exp()).square() - log_std - 0.5 * math.log(2 * math.pi)
        likelihood = (share * log_density.mean(-1)).sum((1, 2))
        entropy = 0.5 + 0.5 * math.log(2 * math.pi) + (share * log_std.mean(-1)).sum((1, 2))
        temperature = self.temperature["log"].exp()
        actor_loss = -(likelihood + temperature.detach() * entropy)
        costly = batch["costs"].long().clamp(0, 1)  # a cost is 0 or 1 to the network
        scores = functional.log_softmax(cost_scores, -1)
        cost_loss = (-scores.gather(-1, costly.unsqueeze(-1)).squeeze(-1) * mask).mean((1, 2))
        state_error = (next_observations[:, :, :-1] - observations[:, :, 1:]).square()
        # A mean over nothing, with windows of one step, is none.
        state_loss = (state_error * mask[:, :, :-1, None]).flatten(1).sum(1) / max(1, state_error[0].numel())
        loss = actor_loss + c.cost_loss_weight * cost_loss + c.state_loss_weight * state_loss

        parameters = list(self.network.parameters())
        gradients = torch.autograd.grad(loss.sum(), parameters)
        norm = joint_norm(gradients)
        if c.clip_grad is not None:
            clip_per_replica(gradients, norm, c.clip_grad)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.param_groups[0]["lr"] = rate = self.schedule.advance()
        self.optimizer.step()
        temperature_loss = temperature * (entropy - self.target_entropy).detach()
        minimise(self.temperature_optimizer, temperature_loss)

        return detached(
            {
                "loss": loss,
                "actor_loss": actor_loss,
                "nll": -likelihood,
                "entropy": entropy,
                "temperature": temperature,
                "cost_loss": cost_loss,
                "cost_accuracy": (share * (scores.argmax(-1) == costly)).sum((1, 2)),
                "state_loss": state_loss,
                "gradient_norm": norm,
                "learning_rate": rate.expand_as(loss),
            }
        )

    def generators(self) -> Sequence[torch.Generator]:
        """The dropout's."""
        return self.dropout.generators

    def policies(self, replica: int) -> dict[str, Policy]:
        """One replica's policy: the mean action of the context so far."""
        network, targets = single(self.network, replica), self.targets[replica]
        return {"cdt": CDTPolicy(network, targets, int(-self.target_entropy), self.config)}

    def parts(self) -> dict[str, Any]:
        """The network, the temperature, both optimisers, the dropout's generators and the learning rate's schedule."""
        return {
            "network": self.network,
            "temperature": self.temperature,
            "optimizer": self.optimizer,
            "temperature_optimizer": self.temperature_optimizer,
            "dropout": self.dropout,
            "updates": self.schedule,
        }

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        """The error of the mean action, and how often the cost is predicted, after up to K steps of context.

        Without dropout; returns and costs to go are the trajectories' own.
        """
        c = self.config
        mean, _, cost_scores, _ = self.network(
            batch["rewards_to_go"] * c.reward_scale,
            shown_cost(batch["costs_to_go"] * c.cost_scale, c),
            batch["observations"],
            batch["actions"],
            batch["time_steps"],
        )
        share = batch["mask"] / batch["mask"].sum((1, 2), keepdim=True)
        error = (mean.clamp(-1, 1) - batch["actions"]).square().mean(-1)
        right = cost_scores.argmax(-1) == batch["costs"].long().clamp(0, 1)
        return {"cdt/action_error": (share * error).sum((1, 2)), "cost_accuracy": (share * right).sum((1, 2))}


@dataclass(frozen=True)
class Targets:
    """Which return to reach at a cost limit: linear between the points, or the best one within the limit."""

    costs: tuple[float, ...]
    returns: tuple[float, ...]
    interpolate: bool

    @classmethod
    def of(cls, config: CDTHyperparameters, replica: Replica) -> Targets:
        """As the settings say."""
        if config.targets == "published":
            returns, costs = zip(*config.target_returns, strict=True)
            return cls(costs, returns, interpolate=True)
        costs, returns = (tuple(map(float, replica.statistics[f"frontier_{name}"])) for name in ("costs", "returns"))
        return cls(costs, returns, interpolate=False)

    def __call__(self, cost_limit: float) -> float:
        """The return to reach; beyond the ends that of the nearest point."""
        if self.interpolate:
            return float(np.interp(cost_limit, self.costs, self.returns))
        return self.returns[max(0, bisect_right(self.costs, cost_limit) - 1)]


class CDTPolicy(Policy):
    """The mean action for the last K steps, told the return and the cost that are left to reach.

    Args:
        network: of one replica, with a replica axis of 1.
        targets: the return to aim at for a cost limit.
        action_size: of the task.
        config: of the algorithm.
    """

    markov = False

    def __init__(self, network: nn.Module, targets: Targets, action_size: int, config: CDTHyperparameters) -> None:
        super().__init__()
        self.network, self.targets, self.action_size, self.config = network, targets, action_size, config

    def reset(self, seeds: Sequence[int], cost_limit: float | None) -> None:
        """Begin n episodes with empty contexts."""
        super().reset(seeds, cost_limit)
        count, limit, c = len(seeds), told(cost_limit, "cdt"), self.config
        self.reward_to_go = torch.full((count,), self.targets(limit) * c.reward_scale)
        self.cost_to_go = torch.full((count,), limit * c.cost_scale)
        self.context: list[Tensor] = []
        self.steps = 0

    def act(self, observations: Tensor) -> Tensor:
        """Actions (n, action_size)."""
        # The newest step's action is not known yet: zero, where causality hides it.
        no_action = observations.new_zeros(len(observations), self.action_size)
        to_go = (self.reward_to_go.to(observations), self.cost_to_go.to(observations))
        newest = [values.unsqueeze(1) for values in (*to_go, observations, no_action)]
        if self.context:
            newest = [torch.cat(pair, 1) for pair in zip(self.context, newest, strict=True)]
        self.context = [values[:, -self.config.sequence_length :] for values in newest]
        self.steps += 1
        first = max(0, self.steps - self.config.sequence_length)
        time_steps = torch.arange(first, self.steps, device=observations.device).expand(len(observations), -1)
        actions = self.predict(time_steps).clamp(-1, 1)
        self.context[-1] = torch.cat([self.context[-1][:, :-1], actions.unsqueeze(1)], 1)
        return actions

    def predict(self, time_steps: Tensor) -> Tensor:
        """Mean actions (n, action_size) after the context, whose steps are numbered (n, k)."""
        rewards_to_go, costs_to_go, observations, actions = (values.unsqueeze(0) for values in self.context)
        costs_to_go = shown_cost(costs_to_go, self.config)
        means: Tensor = self.network(rewards_to_go, costs_to_go, observations, actions, time_steps.unsqueeze(0))[0]
        return means[0, :, -1]

    def observe(self, rewards: Tensor, costs: Tensor) -> None:
        """What the last actions brought is no longer to go."""
        self.reward_to_go = self.reward_to_go.to(rewards) - rewards * self.config.reward_scale
        self.cost_to_go = self.cost_to_go.to(costs) - costs * self.config.cost_scale


def shown_cost(costs_to_go: Tensor, config: CDTHyperparameters) -> Tensor:
    """The scaled cost-to-go as the network sees it."""
    return COST_OFFSET - costs_to_go if config.cost_offset else costs_to_go
