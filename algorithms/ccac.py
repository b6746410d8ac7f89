"""CCAC: constraint-conditioned actor-critic (ICLR 2025, OpenReview nrRkAAAufl).

Actor and critics take the budget, what an episode may still cost, as an input, so that one agent serves every cost
limit. A variational auto-encoder makes up state-action pairs for a budget, and a classifier finds those that the data
does not support at it; two learned multipliers push the cost critic up there, and the actor under the budget. As the
authors' code has it (BU-DEPEND-Lab/CCAC at 4707c1f). Deviations are numbered in docs/algorithms/ccac.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from algorithms.parts.critics import critic_loss, critics_on_held_out
from algorithms.parts.losses import gaussian_kl, mean_where, per_replica_mean
from algorithms.parts.methods import ActorCriticHyperparameters, TransitionMethod, affordable, detached, named, scaled
from algorithms.parts.networks import Builder, Gaussian
from algorithms.parts.optimisers import adam, minimise, polyak_update
from algorithms.parts.policies import told
from harness.algorithm import Batch, Policy, Replica, Selection
from harness.bounds import Count, HiddenSizes, Steps, Width, require_weights
from harness.data.dataset import Dataset
from harness.tasks import Task

LATENT_CLAMP = 1.0
"""Latents of made-up pairs are clamped to this, elementwise."""
FOREIGN = 0.5
"""A made-up pair counts as out of distribution where the classifier's probability lies above this."""
LOG_MULTIPLIER_RANGE = (-20.0, 5.0)
"""What the logarithms of the multipliers are clamped to."""
BOUND = math.exp(LOG_MULTIPLIER_RANGE[1])
"""No multiplier is larger."""
LATER = (
    *("critic_loss", "cost_critic_loss", "negative_targets", "foreign", "foreign_excess", "foreign_multiplier"),
    *("actor_loss", "reward_value", "cost_value", "over_budget", "budget_multiplier"),
)
"""Metrics of what the warm-up does not train; they are 0 there."""
LEAST_PROBABILITY = 1e-12
"""Below it the cross-entropy is flat, as torch's own is: a classifier that is surely wrong learns nothing from it."""


class CCACHyperparameters(ActorCriticHyperparameters):
    """Defaults are the authors' (``examples/configs/ccac_configs.py``)."""

    steps: Steps = Field(400_000, description="gradient steps of one training run, the warm-up included")
    warm_up: float = Field(
        0.5, ge=0, lt=1, description="share of the steps that train the auto-encoder and the classifier alone, first"
    )
    vae_hidden_sizes: HiddenSizes = Field((512, 512), description="hidden layers of the auto-encoder, each way")
    latent_size: Width = Field(64, description="size of the auto-encoder's latent space")
    classifier_hidden_sizes: HiddenSizes = Field((512, 512), description="hidden layers of the classifier")
    multiplier_hidden_sizes: HiddenSizes = Field((512, 512), description="hidden layers of each multiplier's network")
    actor_lr: float = Field(1e-4, gt=0, description="Adam's learning rate for the actor")
    critic_lr: float = Field(1e-3, gt=0, description="Adam's learning rate for the critics")
    vae_lr: float = Field(1e-3, gt=0, description="Adam's learning rate for the auto-encoder")
    classifier_lr: float = Field(1e-3, gt=0, description="Adam's learning rate for the classifier")
    multiplier_lr: float = Field(1e-4, gt=0, description="Adam's learning rate for the multipliers' networks")
    multiplier_decay: float = Field(0.01, ge=0, description="weight of a multiplier network's squared parameters")
    polyak: float = Field(0.005, gt=0, le=1, description="rate at which the target critics follow")
    vae_beta: float = Field(0.5, ge=0, description="weight of the auto-encoder's KL term")
    num_q: Count = Field(4, description="reward critics in the ensemble")
    num_qc: Count = Field(4, description="cost critics in the ensemble")
    critic_output: Literal["softplus", "linear"] = Field(
        "softplus",
        description="softplus: critics are positive, as published, and cannot learn a negative return; linear: can",
    )
    zero_grad: Literal["zeros", "none"] = Field(
        "zeros",
        description="the multipliers' networks share an optimiser. zeros: a step of one also moves the other by its "
        "momentum, as in the torch 1.13 of the published results; none: the other rests, as from torch 2.0 on",
    )

    _affordable = affordable("num_q", "num_qc")

    @model_validator(mode="after")
    def _affordable_vae(self) -> Self:
        require_weights(self.latent_size * max(self.vae_hidden_sizes[0], self.vae_hidden_sizes[-1]))
        return self


class CCAC(TransitionMethod[CCACHyperparameters]):
    """R CCAC agents side by side."""

    Hyperparameters = CCACHyperparameters
    summary = "constraint-conditioned actor-critic (ICLR 2025): told the budget that is left"
    per_task: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "CarRun": {"steps": 200_000, "batch_size": 1024},
        "DroneCircle": {"steps": 600_000},
        "SwimmerVelocity": {"reward_scale": 0.01},
    }

    @classmethod
    def acts_on_cost_limit(cls, config: CCACHyperparameters) -> bool:
        """The policy is told the limit: its first budget."""
        return True

    @classmethod
    def policy_names(cls, config: CCACHyperparameters) -> tuple[str, ...]:
        """One policy."""
        return ("ccac",)

    @classmethod
    def columns(cls, config: CCACHyperparameters) -> tuple[str, ...]:
        """Transitions with what ends an episode, and the budgets that their trajectories used, now and next."""
        return (*super().columns(config), "costs_to_go", "next_costs_to_go")

    @classmethod
    def select(cls, dataset: Dataset, config: CCACHyperparameters, replica: Replica) -> Selection:
        """All of it; the observations' least and largest values bound what the auto-encoder makes up."""
        least, most = dataset.observation_range
        return Selection(statistics={"observation_minimum": least, "observation_maximum": most})

    @classmethod
    def noise(cls, config: CCACHyperparameters, task: Task) -> dict[str, tuple[int, ...]]:
        """Latents of the encoder, next actions in both targets, latents of made-up pairs, the actor's actions."""
        latent, action = (config.batch_size, config.latent_size), (config.batch_size, task.action_size)
        return {"vae": latent, "reward_target": action, "cost_target": action, "made_up": latent, "actor": action}

    def __init__(
        self,
        config: CCACHyperparameters,
        task: Task,
        replicas: Sequence[Replica],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config = c = config
        self.warm_up_steps = int(c.warm_up * c.steps)
        pair = task.observation_size + task.action_size
        build = Builder.of(replicas, device, dtype)

        def critics() -> nn.ModuleDict:
            sizes = (pair + 1, *c.critic_hidden_sizes, 1)
            return nn.ModuleDict(
                {"reward": build.mlp(*sizes, ensemble=c.num_q), "cost": build.mlp(*sizes, ensemble=c.num_qc)}
            )

        self.actor = build.gaussian(task.observation_size + 1, *c.actor_hidden_sizes, task.action_size)
        self.critics, self.targets = critics(), critics().requires_grad_(False)
        self.targets.load_state_dict(self.critics.state_dict())
        encoder_sizes = (pair + 1, *c.vae_hidden_sizes, c.latent_size)
        self.models = nn.ModuleDict(
            {
                "encoder": build.gaussian(*encoder_sizes, log_std_range=(-4.0, 15.0)),
                "decoder": build.mlp(c.latent_size + 1, *c.vae_hidden_sizes, pair),
                "classifier": build.mlp(pair + 1, *c.classifier_hidden_sizes, 1),
            }
        )
        self.multipliers = nn.ModuleDict(
            {name: build.mlp(1, *c.multiplier_hidden_sizes, 1) for name in ("made_up", "actor")}
        )

        # Adam is elementwise: one serves networks whose gradients come from one backward pass.
        models = {name: list(model.parameters()) for name, model in self.models.items()}
        vae = [*models["encoder"], *models["decoder"]]
        self.model_optimizer = adam([(c.vae_lr, vae), (c.classifier_lr, models["classifier"])])
        self.critic_optimizer = adam([(c.critic_lr, self.critics.parameters())])
        self.actor_optimizer = adam([(c.actor_lr, self.actor.parameters())])
        self.multiplier_optimizer = MultiplierAdam(self.multipliers, c.multiplier_lr, drag=c.zero_grad == "zeros")
        self.least, self.most = (
            made_up_bounds(replicas, name, end, task).to(device, dtype)
            for name, end in (("observation_minimum", -1.0), ("observation_maximum", 1.0))
        )

    def variant(self, step: int) -> Literal["warm-up", "full"]:
        """The warm-up's steps come first."""
        return "warm-up" if step < self.warm_up_steps else "full"

    def update(self, batch: Batch, noise: Batch) -> dict[str, Tensor]:
        """One gradient step, in the authors' order; in the warm-up of the auto-encoder and the classifier alone."""
        actions = batch["actions"].clamp(-1, 1)
        pairs = torch.cat([batch["observations"], actions], -1)
        budgets = (batch["costs_to_go"] * self.config.cost_scale).unsqueeze(-1)

        metrics = self._train_models(pairs, budgets, noise)
        if self.variant(self.step) == "full":
            states = torch.cat([batch["observations"], budgets], -1)
            metrics |= self._train_critics(batch, states, actions, budgets, noise)
            metrics |= self._train_actor(states, budgets, noise)
            polyak_update(self.targets.parameters(), self.critics.parameters(), self.config.polyak)
        else:
            metrics |= dict.fromkeys(LATER, torch.zeros_like(metrics["vae_loss"]))
        return detached(metrics)

    def _train_models(self, pairs: Tensor, budgets: Tensor, noise: Batch) -> dict[str, Tensor]:
        """Steps 1 and 2: the auto-encoder, and the classifier of pairs that cost more than a budget.

        The classifier sees all pairs of a batch, and their reconstructions, at one budget: that of the first row of
        each replica's own batch. It reads no parameter that the auto-encoder's step changes, so one backward pass
        serves both.
        """
        mean, log_std = self.models["encoder"](torch.cat([pairs, budgets], -1))
        reconstructed = self.decode(mean + log_std.exp() * noise["vae"], budgets)
        reconstruction = per_replica_mean((reconstructed - pairs).square())
        kl = per_replica_mean(gaussian_kl(mean, log_std))
        vae_loss = reconstruction + self.config.vae_beta * kl

        first = budgets[:, :1]
        label = (budgets > first).to(pairs.dtype).repeat(1, 2, 1)
        probability = self.exceeds(torch.cat([pairs, reconstructed.detach()], 1), first)
        classifier_loss = -per_replica_mean(
            label * probability.clamp(min=LEAST_PROBABILITY).log()
            + (1 - label) * (1 - probability).clamp(min=LEAST_PROBABILITY).log()
        )
        minimise(self.model_optimizer, vae_loss + classifier_loss)
        return {
            "vae_loss": vae_loss,
            "reconstruction": reconstruction,
            "kl": kl,
            "classifier_loss": classifier_loss,
            "classifier_accuracy": per_replica_mean(((probability > 0.5) == (label > 0.5)).to(pairs.dtype)),
        }

    def _train_critics(
        self, batch: Batch, states: Tensor, actions: Tensor, budgets: Tensor, noise: Batch
    ) -> dict[str, Tensor]:
        """Steps 3 and 4: reward and cost critics, and the multiplier of made-up pairs out of distribution.

        The critics step disjoint parameters, so one backward pass serves both.
        """
        c = self.config
        rewards, costs, alive = scaled(batch, c)
        with torch.no_grad():
            following = torch.cat(
                [batch["next_observations"], (batch["next_costs_to_go"] * c.cost_scale).unsqueeze(-1)], -1
            )
            mean, log_std = self.actor(following)

            def future(name: str) -> Tensor:
                action = torch.tanh(mean + log_std.exp() * noise[f"{name}_target"])
                return c.gamma * alive * self._values(self.targets[name], following, action).amin(1)

            reward_target, cost_target = rewards + future("reward"), costs + future("cost")
            made_up = self.decode(noise["made_up"].clamp(-LATENT_CLAMP, LATENT_CLAMP), budgets)
            foreign = self.exceeds(made_up, budgets).squeeze(-1) > FOREIGN
        made_up_observations, made_up_actions = made_up.tensor_split([-actions.shape[-1]], -1)
        made_up_states = torch.cat([made_up_observations, budgets], -1)
        q_loss = critic_loss(self._values(self.critics["reward"], states, actions), reward_target)
        both = self._values(
            self.critics["cost"], torch.cat([states, made_up_states], 1), torch.cat([actions, made_up_actions], 1)
        )
        seen, unseen = both.chunk(2, 2)
        excess = unseen.amin(1) - budgets.squeeze(-1)
        multiplier = self.multiplier("made_up", budgets)
        # Where no pair of a replica's batch is out of distribution, the terms are zero, and its multiplier rests.
        any_foreign = foreign.any(1)
        penalty = mean_where(foreign, multiplier.detach() * excess)
        qc_loss = critic_loss(seen, cost_target)
        minimise(self.critic_optimizer, q_loss + qc_loss - penalty)
        network = self.multipliers["made_up"]
        loss = mean_where(foreign, multiplier * excess.detach()) + c.multiplier_decay * squares(network)
        self.multiplier_optimizer.minimise("made_up", loss, any_foreign)
        return {
            "critic_loss": q_loss,
            "cost_critic_loss": qc_loss,
            "negative_targets": per_replica_mean((reward_target < 0).to(q_loss.dtype)),
            "foreign": per_replica_mean(foreign.to(q_loss.dtype)),
            "foreign_excess": mean_where(foreign, excess),
            "foreign_multiplier": mean_where(foreign, multiplier),
        }

    def _train_actor(self, states: Tensor, budgets: Tensor, noise: Batch) -> dict[str, Tensor]:
        """Step 5: the actor, and the multiplier that holds it to the budget."""
        mean, log_std = self.actor(states)
        actions = torch.tanh(mean + log_std.exp() * noise["actor"])
        value = self._values(self.critics["reward"], states, actions).amin(1)
        cost = self._values(self.critics["cost"], states, actions).amin(1)
        excess = cost - budgets.squeeze(-1)
        multiplier = self.multiplier("actor", budgets)
        actor_loss = (multiplier.detach() * excess - value).mean(1)
        minimise(self.actor_optimizer, actor_loss)
        loss = self.config.multiplier_decay * squares(self.multipliers["actor"])
        loss = loss - (multiplier * excess.detach()).mean(1)
        self.multiplier_optimizer.minimise("actor", loss, torch.ones_like(loss, dtype=torch.bool))
        return {
            "actor_loss": actor_loss,
            "reward_value": value.mean(1),
            "cost_value": cost.mean(1),
            "over_budget": per_replica_mean((excess > 0).to(loss.dtype)),
            "budget_multiplier": multiplier.mean(1),
        }

    def decode(self, latents: Tensor, budgets: Tensor) -> Tensor:
        """Pairs (R, B, observation + action) within the data's bounds, for latents and budgets (R, B, 1).

        The gradient passes the bounds unchanged.
        """
        pairs = self.models["decoder"](torch.cat([latents, budgets], -1))
        return straight_through(pairs, pairs.clamp(self.least, self.most))

    def exceeds(self, pairs: Tensor, budgets: Tensor) -> Tensor:
        """The probability (R, B, 1) that pairs (R, B, dim) cost more than budgets (R, B or 1, 1)."""
        budgets = budgets.expand(-1, pairs.shape[1], -1)
        return torch.sigmoid(self.models["classifier"](torch.cat([pairs, budgets], -1)))

    def multiplier(self, name: str, budgets: Tensor) -> Tensor:
        """One of the two multipliers (R, B) at budgets (R, B, 1); the gradient passes the bounds unchanged."""
        logarithm = self.multipliers[name](budgets).squeeze(-1)
        return straight_through(logarithm, logarithm.clamp(*LOG_MULTIPLIER_RANGE)).exp()

    def _values(self, critics: nn.Module, states: Tensor, actions: Tensor) -> Tensor:
        """What every critic of an ensemble says of actions in states with their budgets: (R, n, B)."""
        values: Tensor = critics(torch.cat([states, actions], -1)).squeeze(-1)
        return nn.functional.softplus(values) if self.config.critic_output == "softplus" else values

    @classmethod
    def warnings(cls, config: CCACHyperparameters, metrics: Mapping[str, float]) -> tuple[str, ...]:
        """Whether the critics cannot say what they are to learn, or a multiplier stands at its bound."""
        said = []
        if config.critic_output == "softplus" and metrics["negative_targets"] > 0.5:
            said.append("most of its reward targets are negative, and its critics, with softplus, are not")
        if metrics["budget_multiplier"] > 0.999 * BOUND:
            said.append(f"its multiplier stands at its upper bound, {BOUND:.4g}")
        return tuple(said)

    def policies(self, replica: int) -> dict[str, Policy]:
        """One replica's policy: the mean action, at the budget that is left."""
        return {"ccac": BudgetPolicy(self.actor.unstacked(replica), self.config.cost_scale)}

    def parts(self) -> dict[str, Any]:
        """Networks, targets and optimisers."""
        optimizers = ("model_optimizer", "critic_optimizer", "actor_optimizer", "multiplier_optimizer")
        return named(self, "actor", "critics", "targets", "models", "multipliers", *optimizers)

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        """The critics and the mean action at the budget that each step's trajectory used, and the auto-encoder.

        The auto-encoder decodes the encoder's mean.
        """
        actions = batch["actions"].clamp(-1, 1)
        budgets = (batch["costs_to_go"] * self.config.cost_scale).unsqueeze(-1)
        states, pairs = (torch.cat([batch["observations"], other], -1) for other in (budgets, actions))
        values, costs = (self._values(self.critics[name], states, actions).amin(1) for name in ("reward", "cost"))
        error = (torch.tanh(self.actor(states)[0]) - batch["actions"]).square()
        code, _ = self.models["encoder"](torch.cat([pairs, budgets], -1))
        return {
            "ccac/action_error": per_replica_mean(error),
            "reconstruction": per_replica_mean((self.decode(code, budgets) - pairs).square()),
            **critics_on_held_out(batch, self.config, values, costs),
        }


class MultiplierAdam:
    """One Adam for both multipliers' networks, that a replica can sit out: it counts every replica's steps alone.

    Args:
        networks: by name, of R replicas each.
        lr: the learning rate.
        drag: whether a step for one network is a step of the other, too, with a gradient of zero, once that has had a
            gradient of its own. So it is where ``zero_grad`` leaves zeros.
    """

    BETAS, EPSILON = (0.9, 0.999), 1e-8

    def __init__(self, networks: nn.ModuleDict, lr: float, drag: bool) -> None:
        self.parameters = {name: list(network.parameters()) for name, network in networks.items()}
        self.lr, self.drag = lr, drag
        self.state: dict[str, dict[str, Tensor]] = {}
        for name, parameters in self.parameters.items():
            flat = flattened(parameters)
            count = torch.zeros(len(flat), dtype=torch.float64, device=flat.device)
            self.state[name] = {"step": count, "exp_avg": torch.zeros_like(flat), "exp_avg_sq": torch.zeros_like(flat)}

    def minimise(self, name: str, loss: Tensor, taking_part: Tensor) -> None:
        """Step one network down its losses (R,), in the replicas (R,) that take part; in others nothing changes."""
        gradient = flattened(torch.autograd.grad(loss.sum(), self.parameters[name]))
        for other, state in self.state.items():
            if other == name:
                self._step(other, gradient, taking_part)
            elif self.drag:
                self._step(other, torch.zeros_like(state["exp_avg"]), taking_part & (state["step"] > 0))

    @torch.no_grad()
    def _step(self, name: str, gradient: Tensor, taking_part: Tensor) -> None:
        state, rows = self.state[name], taking_part.unsqueeze(1)
        first, second = self.BETAS
        state["step"].add_(taking_part)
        step = state["step"].clamp(min=1).unsqueeze(1)
        exp_avg = state["exp_avg"].lerp(gradient, 1 - first)
        exp_avg_sq = (second * state["exp_avg_sq"]).add_(gradient.square().mul_(1 - second))
        deviation = exp_avg_sq.sqrt().div_((1 - second**step).sqrt().to(gradient.dtype)).add_(self.EPSILON)
        change = (-self.lr / (1 - first**step).to(gradient.dtype) * exp_avg).div_(deviation)
        for key, value in (("exp_avg", exp_avg), ("exp_avg_sq", exp_avg_sq)):
            torch.where(rows, value, state[key], out=state[key])
        sizes = [parameter[0].numel() for parameter in self.parameters[name]]
        parts = torch.where(rows, change, 0).split(sizes, 1)
        for parameter, part in zip(self.parameters[name], parts, strict=True):
            parameter.add_(part.view_as(parameter))

    def state_dict(self) -> dict[str, Any]:
        """Counts (R,) and moments (R, parameters) of both networks."""
        return self.state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Counts and moments."""
        for name, own in self.state.items():
            for key, value in own.items():
                value.copy_(state[name][key])


class BudgetPolicy(Policy):
    """tanh of the actor's mean at an observation and the budget: what is left of the cost limit, never below 0."""

    markov = False  # it depends on what earlier steps cost

    def __init__(self, actor: Gaussian, cost_scale: float) -> None:
        super().__init__()
        self.actor, self.cost_scale = actor, cost_scale

    def reset(self, seeds: Sequence[int], cost_limit: float | None) -> None:
        """Begin n episodes with the whole limit left."""
        super().reset(seeds, cost_limit)
        self.budget = torch.full((len(seeds),), told(cost_limit, "ccac") * self.cost_scale)

    def act(self, observations: Tensor) -> Tensor:
        """Deterministic actions (n, action_size)."""
        self.budget = self.budget.to(observations)
        return torch.tanh(self.actor(torch.cat([observations, self.budget.unsqueeze(1)], 1))[0])

    def observe(self, rewards: Tensor, costs: Tensor) -> None:
        """What the last actions cost is no longer left."""
        self.budget = (self.budget.to(costs) - costs * self.cost_scale).clamp(min=0)


def made_up_bounds(replicas: Sequence[Replica], statistic: str, action: float, task: Task) -> Tensor:
    """One end of the range of each replica's pairs: its data's observations', and that of actions: (R, 1, dim)."""
    actions = torch.full((task.action_size,), action)
    return torch.stack([torch.cat([torch.tensor(one.statistics[statistic]), actions]) for one in replicas]).unsqueeze(1)


def straight_through(values: Tensor, clamped: Tensor) -> Tensor:
    """The clamped values, to the last bit, with the gradient of the values themselves."""
    return values - values.detach() + clamped.detach()


def squares(network: nn.Module) -> Tensor:
    """The sum of each replica's squared parameters: (R,)."""
    return flattened(list(network.parameters())).square().sum(1)


def flattened(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors (R, ...) one behind the other: (R, n)."""
    return torch.cat([tensor.flatten(1) for tensor in tensors], 1)
