"""CAPS: constraint-adaptive policy switching (Chemingui et al., AAAI 2025, arXiv 2412.18946).

One training run gives K policy heads on a shared trunk, from one for reward alone to one for cost alone, and critics of
both. At every step of an episode the agent takes the head whose action has the most reward among those whose estimated
cost fits into what is left of the budget. Two backbones train heads and critics: implicit Q-learning with
advantage-weighted heads (``iql``), and a soft actor-critic held to the data (``sac``).

Everywhere here **the cost critics value the return of -c**, so that larger is better for both signals. Deviations from
the authors' code are numbered in docs/algorithms/caps.md.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from algorithms.parts.critics import critics_on_held_out, least, mean_critic_loss
from algorithms.parts.losses import expectile_loss, per_replica_mean
from algorithms.parts.methods import ActorCriticHyperparameters, TransitionMethod, affordable, detached, named, scaled
from algorithms.parts.networks import Builder, StackedGaussian, StackedMLP, single, squashed
from algorithms.parts.optimisers import adam, minimise, polyak_update
from algorithms.parts.policies import told
from algorithms.parts.schedules import Schedule
from harness.algorithm import Batch, Policy, Replica
from harness.bounds import Count, HiddenSizes
from harness.tasks import Task

SIGNALS = ("reward", "cost")
"""What is valued: the return of the rewards, and that of the costs with their sign turned."""

LEARNED_LOG_STD_RANGE = (-5.0, 2.0)
"""What the study ``iql_actor_std: learned`` clamps the heads' log standard deviations to."""


class CAPSHyperparameters(ActorCriticHyperparameters):
    """Defaults are the authors'."""

    actor_hidden_sizes: HiddenSizes = Field((512, 512), description="hidden layers of the actor, shared by the heads")
    critic_hidden_sizes: HiddenSizes = Field((512, 512), description="hidden layers of every critic and value")
    backbone: Literal["iql", "sac"] = Field("iql", description="what trains the heads and the critics")
    heads: int = Field(2, ge=2, le=100, description="policies to switch between, from reward alone to cost alone")
    polyak: float = Field(0.005, gt=0, le=1, description="rate at which the target critics follow")
    iql_critics: Count = Field(2, description="iql: critics in each ensemble")
    iql_actor_lr: float = Field(3e-4, gt=0, description="iql: Adam's learning rate for the heads at the start")
    iql_critic_lr: float = Field(3e-4, gt=0, description="iql: Adam's learning rate for critics and values")
    iql_cosine_steps: int | None = Field(
        1_000_000,
        ge=1,
        le=10**9,
        description="iql: updates over which the heads' learning rate falls to 0 by a cosine, whatever "
        "steps is; null: constant",
    )
    iql_expectile_r: float = Field(0.7, gt=0, lt=1, description="iql: expectile of the reward value (tau)")
    iql_expectile_c: float = Field(0.7, gt=0, lt=1, description="iql: expectile of the cost value")
    iql_beta_r: float = Field(3.0, ge=0, description="iql: inverse temperature of the reward advantage's weight")
    iql_beta_c: float = Field(3.0, ge=0, description="iql: inverse temperature of the cost advantage's weight")
    iql_cap: float = Field(100.0, gt=0, description="iql: largest weight that an advantage gives")
    iql_actor_std: Literal["unit", "learned"] = Field(
        "unit",
        description="iql: the heads' standard deviation in the likelihood: 1, as in the authors' code, whose optimiser "
        "does not know it; or learned, one a head and dimension",
    )
    sac_critics: Count = Field(4, description="sac: critics in each ensemble")
    sac_actor_lr: float = Field(1e-4, gt=0, description="sac: Adam's learning rate for the heads")
    sac_critic_lr: float = Field(1e-3, gt=0, description="sac: Adam's learning rate for the critics")
    sac_alpha_lr: float = Field(1e-4, gt=0, description="sac: Adam's learning rate for the temperature")
    sac_init_alpha: float = Field(0.1, gt=0, description="sac: the temperature at the start")
    sac_value_weight: float = Field(
        2.5, ge=0, description="sac: weight of the critics beside cloning, per mean |value|"
    )
    sac_cost_floor: bool = Field(
        True,
        description="sac: a cost estimate counts as at least 0, so that no head fits where the budget is spent, as in "
        "the authors' code; false: a negative one fits, as with iql",
    )

    _affordable = affordable("iql_critics", "sac_critics")


# What the two backbones share


def head_shares(heads: int) -> tuple[list[float], list[float]]:
    """How much reward and how much cost counts for each of K heads.

    The first follows the reward alone and the last the cost alone; head k between them reward + 2k / (K - 1) cost.
    """
    last = heads - 1
    return [1.0] * last + [0.0], [2 * k / last for k in range(last)] + [1.0]


def by_head(outputs: Tensor, heads: int) -> Tensor:
    """The heads' outputs side by side as an axis: (..., K * size) -> (..., K, size)."""
    return outputs.reshape(*outputs.shape[:-1], heads, -1)


class Backbone(ABC):
    """Trains K heads and two ensembles of critics, for R replicas side by side.

    Args:
        critics: how many in an ensemble.
    """

    actor: StackedMLP | StackedGaussian
    floors_cost: bool
    """Whether acting takes a cost estimate for at least 0."""

    def __init__(self, config: CAPSHyperparameters, task: Task, build: Builder, critics: int) -> None:
        self.config = config
        sizes = (task.observation_size + task.action_size, *config.critic_hidden_sizes, 1)

        def ensembles() -> nn.ModuleDict:
            return nn.ModuleDict({name: build.mlp(*sizes, ensemble=critics) for name in SIGNALS})

        self.critics, self.targets = ensembles(), ensembles().requires_grad_(False)
        self.targets.load_state_dict(self.critics.state_dict())
        self.shares = torch.tensor(head_shares(config.heads), device=build.device, dtype=build.dtype)

    @classmethod
    def noise(cls, config: CAPSHyperparameters, task: Task) -> dict[str, tuple[int, ...]]:
        """See :meth:`harness.algorithm.Algorithm.noise`."""
        return {}

    @abstractmethod
    def update(self, batch: Batch, noise: Batch) -> dict[str, Tensor]:
        """One gradient step; metrics (R,)."""

    @abstractmethod
    def proposals(self, observations: Tensor) -> Tensor:
        """Each head's mean action: (R, B, dim) -> (R, B, K, action_size)."""

    @abstractmethod
    def mean_network(self, replica: int) -> nn.Sequential:
        """One replica's heads before their tanh, (n, dim) -> (n, K * action_size), on the CPU."""

    def parts(self) -> dict[str, Any]:
        """What training changes."""
        return named(self, "critics", "targets", "actor")

    def follow(self) -> None:
        """The targets follow their critics."""
        polyak_update(self.targets.parameters(), self.critics.parameters(), self.config.polyak)

    def mixed(self, reward: Tensor, cost: Tensor) -> Tensor:
        """What each head seeks, reward and cost weighed by its shares: (R, K or 1, B) twice -> (R, K, B)."""
        reward_share, cost_share = self.shares.unsqueeze(-1)
        sought: Tensor = reward_share * reward + cost_share * cost
        return sought


# Implicit Q-learning


class IQL(Backbone):
    """Expectile regression of values, and heads that clone the data by its advantages."""

    actor: StackedMLP
    floors_cost = False

    def __init__(self, config: CAPSHyperparameters, task: Task, build: Builder) -> None:
        super().__init__(config, task, build, config.iql_critics)
        c, observation = config, task.observation_size
        self.values = nn.ModuleDict({name: build.mlp(observation, *c.critic_hidden_sizes, 1) for name in SIGNALS})
        self.actor = build.mlp(observation, *c.actor_hidden_sizes, c.heads * task.action_size)
        self.spread = nn.ParameterDict()
        if c.iql_actor_std == "learned":
            shape = (len(build.generators), c.heads, 1, task.action_size)
            self.spread["log_std"] = nn.Parameter(torch.zeros(shape, device=build.device, dtype=build.dtype))
        # Adam is elementwise, and no network's loss reads what another's step changes: one optimiser serves all.
        valued = [*self.values.parameters(), *self.critics.parameters()]
        cloned = [*self.actor.parameters(), *self.spread.parameters()]
        self.optimizer = adam([(c.iql_critic_lr, valued), (c.iql_actor_lr, cloned)])
        cosine = c.iql_cosine_steps
        self.schedule = None if cosine is None else Schedule.cosine(c.iql_actor_lr, cosine, build.device)

    def update(self, batch: Batch, noise: Batch) -> dict[str, Tensor]:
        """One gradient step: values, critics, heads, targets; all from what was there before it."""
        c = self.config
        observations, actions, following = batch["observations"], batch["actions"], batch["next_observations"]
        rewards, costs, alive = scaled(batch, c)
        pairs = torch.cat([observations, actions], -1)
        losses, head_weights = [], []
        metrics: dict[str, Tensor] = {}
        for name, signal, expectile, beta in (
            ("reward", rewards, c.iql_expectile_r, c.iql_beta_r),
            ("cost", -costs, c.iql_expectile_c, c.iql_beta_c),
        ):
            with torch.no_grad():
                backup = signal + c.gamma * alive * self.values[name](following).squeeze(-1)
                estimate = least(self.targets[name], pairs)
            value = self.values[name](observations).squeeze(-1)
            advantage = estimate - value
            value_loss = expectile_loss(advantage, expectile)
            q_loss = mean_critic_loss(self.critics[name](pairs).squeeze(-1), backup)
            weight = torch.exp(beta * advantage.detach()).clamp(max=c.iql_cap)
            head_weights.append(weight.unsqueeze(1))
            losses += [value_loss, q_loss]
            metrics |= {
                f"{name}_value_loss": value_loss,
                f"{name}_critic_loss": q_loss,
                f"{name}_value": value.mean(1),
                f"{name}_weight": weight.mean(1),
            }

        error = self.proposals(observations).transpose(1, 2) - actions.unsqueeze(1)  # (R, K, B, A)
        if "log_std" in self.spread:
            log_std = self.spread["log_std"].clamp(*LEARNED_LOG_STD_RANGE)
            nll = (0.5 * (error / log_std.exp()).square() + log_std).sum(-1)
        else:
            nll = 0.5 * error.square().sum(-1)
        # Sums of the two clipped weights, not a weight of the summed advantages.
        actor_loss = per_replica_mean(self.mixed(*head_weights) * nll)
        if self.schedule is not None:
            self.optimizer.param_groups[1]["lr"] = self.schedule.advance()
        minimise(self.optimizer, torch.stack([*losses, actor_loss]).sum(0))
        self.follow()
        cloning = error.square().mean((2, 3))
        return metrics | {
            "actor_loss": actor_loss,
            "reward_head_error": cloning[:, 0],
            "cost_head_error": cloning[:, -1],
        }

    def proposals(self, observations: Tensor) -> Tensor:
        """tanh of each head's outputs."""
        outputs: Tensor = self.actor(observations)
        return by_head(torch.tanh(outputs), self.config.heads)

    def mean_network(self, replica: int) -> nn.Sequential:
        """The actor."""
        return self.actor.unstacked(replica)

    def parts(self) -> dict[str, Any]:
        """Values, the optimiser, the heads' spread if it is learnt and their learning rate's schedule if it has one."""
        parts = {**super().parts(), "values": self.values, "optimizer": self.optimizer}
        if self.spread:
            parts["spread"] = self.spread
        return parts if self.schedule is None else {**parts, "schedule": self.schedule}


# Soft actor-critic with behaviour cloning


class SAC(Backbone):
    """Soft critics of all heads' actions at once, and heads that climb their mix of them, held to the data."""

    actor: StackedGaussian

    def __init__(self, config: CAPSHyperparameters, task: Task, build: Builder) -> None:
        super().__init__(config, task, build, config.sac_critics)
        c = config
        self.floors_cost, self.target_entropy = c.sac_cost_floor, -float(task.action_size)
        self.actor = build.gaussian(task.observation_size, *c.actor_hidden_sizes, c.heads * task.action_size)
        start = math.log(c.sac_init_alpha)
        log_alpha = torch.full((len(build.generators),), start, device=build.device, dtype=build.dtype)
        self.temperature = nn.ParameterDict({"log_alpha": log_alpha})
        self.critic_optimizer = adam([(c.sac_critic_lr, self.critics.parameters())])
        self.actor_optimizer = adam([(c.sac_actor_lr, self.actor.parameters())])
        self.alpha_optimizer = adam([(c.sac_alpha_lr, self.temperature.parameters())])

    @classmethod
    def noise(cls, config: CAPSHyperparameters, task: Task) -> dict[str, tuple[int, ...]]:
        """Every head's action in the reward target, in the cost target and in its own step."""
        shape = (config.heads, config.batch_size, task.action_size)
        return {"reward_target": shape, "cost_target": shape, "actor": shape}

    def update(self, batch: Batch, noise: Batch) -> dict[str, Tensor]:
        """One gradient step: critics, heads, temperature, targets.

        Reward and cost critics step disjoint parameters towards targets from before their step, so one backward pass
        serves both.
        """
        c = self.config
        observations, actions, following = batch["observations"], batch["actions"], batch["next_observations"]
        rewards, costs, alive = scaled(batch, c)
        pairs = torch.cat([observations, actions], -1)
        alpha = self.temperature["log_alpha"].exp()
        metrics = {}
        for name, signal in (("reward", rewards), ("cost", -costs)):
            with torch.no_grad():
                proposed, log_density = self.sample(following, noise[f"{name}_target"])
                future = self.valued(self.targets[name], following, proposed)
                # The entropy's term stands outside of the discount, and is there at an episode's end, too.
                backup = (c.gamma * alive).unsqueeze(1) * future - alpha.view(-1, 1, 1) * log_density
                backup += signal.unsqueeze(1)
            error = self.critics[name](pairs).squeeze(-1).unsqueeze(1) - backup.unsqueeze(2)
            metrics[f"{name}_critic_loss"] = error.square().mean(3).sum(2).mean(1)
        minimise(self.critic_optimizer, metrics["reward_critic_loss"] + metrics["cost_critic_loss"])

        proposed, log_density = self.sample(observations, noise["actor"])
        values = [self.valued(self.critics[name], observations, proposed) for name in SIGNALS]
        mixed = self.mixed(*values)
        scale = c.sac_value_weight / mixed.detach().abs().mean(2)
        cloning = (proposed - actions.unsqueeze(1)).square().mean((2, 3))
        entropy = -log_density.mean(2)  # (R, K), as the others
        actor_loss = (cloning - scale * mixed.mean(2) - alpha.detach().unsqueeze(1) * entropy).sum(1)
        minimise(self.actor_optimizer, actor_loss)
        minimise(self.alpha_optimizer, alpha * (entropy.detach() - self.target_entropy).sum(1))
        self.follow()
        return metrics | {
            "actor_loss": actor_loss,
            "temperature": alpha,
            "entropy": entropy.mean(1),
            "reward_head_error": cloning[:, 0],
            "cost_head_error": cloning[:, -1],
            "reward_value": values[0][:, 0].mean(1),
            "cost_value": values[1][:, -1].mean(1),
        }

    def sample(self, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """An action of every head and its log-density: (R, B, dim), (R, K, B, A) -> (R, K, B, A), (R, K, B)."""
        mean, log_std = (by_head(x, self.config.heads).transpose(1, 2) for x in self.actor(observations))
        return squashed(mean, log_std, noise)

    def valued(self, critics: nn.Module, observations: Tensor, actions: Tensor) -> Tensor:
        """The least value of every head's action: (R, B, dim), (R, K, B, A) -> (R, K, B)."""
        heads = actions.shape[1]
        tiled = observations.unsqueeze(1).expand(-1, heads, -1, -1)
        values = least(critics, torch.cat([tiled, actions], -1).flatten(1, 2))
        return values.reshape(actions.shape[:-1])

    def proposals(self, observations: Tensor) -> Tensor:
        """tanh of each head's mean."""
        mean, _ = self.actor(observations)
        return by_head(torch.tanh(mean), self.config.heads)

    def mean_network(self, replica: int) -> nn.Sequential:
        """The actor's trunk and its means."""
        return nn.Sequential(*self.actor.trunk.unstacked(replica), nn.ReLU(), self.actor.mean.unstacked(replica))

    def parts(self) -> dict[str, Any]:
        """The temperature and the optimisers."""
        optimizers = ("critic_optimizer", "actor_optimizer", "alpha_optimizer")
        return {**super().parts(), **named(self, "temperature", *optimizers)}


# The algorithm

BACKBONES: dict[str, type[IQL | SAC]] = {"iql": IQL, "sac": SAC}


class CAPS(TransitionMethod[CAPSHyperparameters]):
    """R CAPS agents side by side."""

    Hyperparameters = CAPSHyperparameters
    summary = "constraint-adaptive policy switching by what is left of the budget: policy caps-iql or caps-sac"
    per_task: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "metadrive": {"steps": 200_000, "iql_expectile_r": 0.5, "iql_expectile_c": 0.5}
    }

    @classmethod
    def acts_on_cost_limit(cls, config: CAPSHyperparameters) -> bool:
        """The limit is the budget that an episode starts with."""
        return True

    @classmethod
    def policy_names(cls, config: CAPSHyperparameters) -> tuple[str, ...]:
        """One policy, named after its backbone."""
        return (f"caps-{config.backbone}",)

    @classmethod
    def noise(cls, config: CAPSHyperparameters, task: Task) -> dict[str, tuple[int, ...]]:
        """The backbone's."""
        return BACKBONES[config.backbone].noise(config, task)

    def __init__(
        self,
        config: CAPSHyperparameters,
        task: Task,
        replicas: Sequence[Replica],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config, self.task = config, task
        self.backbone = BACKBONES[config.backbone](config, task, Builder.of(replicas, device, dtype))

    def update(self, batch: Batch, noise: Batch) -> dict[str, Tensor]:
        """One gradient step, in the authors' order."""
        return detached(self.backbone.update(batch, noise))

    def policies(self, replica: int) -> dict[str, Policy]:
        """One replica's policy: its heads and the live critics, which choose among them."""
        heads, critics = self.backbone.mean_network(replica), single(self.backbone.critics, replica)
        steps, floors = self.task.max_episode_steps, self.backbone.floors_cost
        return {f"caps-{self.config.backbone}": SwitchingPolicy(heads, critics, steps, floors, self.config)}

    def parts(self) -> dict[str, Any]:
        """The backbone's."""
        return self.backbone.parts()

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        """The critics as acting reads them, and the error of the first and of the last head's mean action."""
        observations, actions = batch["observations"], batch["actions"]
        pairs = torch.cat([observations, actions], -1)
        rewards, costs = (least(self.backbone.critics[name], pairs) for name in SIGNALS)
        error = (self.backbone.proposals(observations) - actions.unsqueeze(2)).square().mean((1, 3))
        return {
            **critics_on_held_out(batch, self.config, rewards, -costs),
            "reward_head_error": error[:, 0],
            "cost_head_error": error[:, -1],
        }


# Acting


def cost_threshold(budget: Tensor, steps_left: int, gamma: float) -> Tensor:
    """The discounted total of a cost that spends a budget (n,), if any is left, evenly over h steps: (n,).

    ``max(b, 0) (1 - gamma^h) / ((1 - gamma) h)``.
    """
    return budget.clamp(min=0) * ((1 - gamma**steps_left) / ((1 - gamma) * steps_left))


def choose(rewards: Tensor, costs: Tensor, threshold: Tensor, floors_cost: bool = False) -> Tensor:
    """The head of each row: of those below the threshold the one with the most reward; if there is none, the cheapest.

    Args:
        rewards: (n, K) what each head's action is estimated to bring.
        costs: (n, K) what it is estimated to cost.
        threshold: (n,).
        floors_cost: an estimate counts as at least 0 beside the threshold (not where the least is sought).

    Returns:
        (n,) indices.
    """
    fits = (costs.clamp(min=0) if floors_cost else costs) < threshold.unsqueeze(1)
    best = torch.where(fits, rewards, -torch.inf).argmax(1)
    return torch.where(fits.any(1), best, costs.argmin(1))


class SwitchingPolicy(Policy):
    """Takes at each step the head that the critics and what is left of the budget choose.

    Args:
        heads: of one replica, (n, dim) -> (n, K * action_size), before their tanh.
        critics: of one replica, with a replica axis of 1.
        steps: of an episode, at most.
        floors_cost: whether a cost estimate counts as at least 0 beside the threshold.
        config: of the algorithm.
    """

    markov = False

    def __init__(
        self, heads: nn.Sequential, critics: nn.ModuleDict, steps: int, floors_cost: bool, config: CAPSHyperparameters
    ) -> None:
        super().__init__()
        self.heads, self.critics = heads, critics
        self.steps, self.floors_cost, self.config = steps, floors_cost, config

    def reset(self, seeds: Sequence[int], cost_limit: float | None) -> None:
        """Begin n episodes with the whole budget."""
        super().reset(seeds, cost_limit)
        self.budget = torch.full((len(seeds),), told(cost_limit, "caps") * self.config.cost_scale)
        self.steps_left = self.steps

    def act(self, observations: Tensor) -> Tensor:
        """Deterministic actions (n, action_size)."""
        proposed = by_head(torch.tanh(self.heads(observations)), self.config.heads)
        tiled = observations.unsqueeze(1).expand(-1, self.config.heads, -1)
        pairs = torch.cat([tiled, proposed], -1).flatten(0, 1).unsqueeze(0)
        rewards, returns = (least(self.critics[name], pairs).view(proposed.shape[:2]) for name in SIGNALS)
        threshold = cost_threshold(self.budget.to(rewards), self.steps_left, self.config.gamma)
        chosen = choose(rewards, -returns, threshold, self.floors_cost)
        return torch.take_along_dim(proposed, chosen.view(-1, 1, 1), 1).squeeze(1)

    def observe(self, rewards: Tensor, costs: Tensor) -> None:
        """What the last actions cost is spent, and a step is gone."""
        self.budget = self.budget.to(costs) - costs * self.config.cost_scale
        self.steps_left = max(self.steps_left - 1, 1)
