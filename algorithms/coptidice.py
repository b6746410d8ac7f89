"""COptiDICE: constrained stationary distribution correction estimation (Lee et al., ICLR 2022, arXiv 2204.08957).

As OSRL has it (osrl-lib 0.1.0, ``osrl/algorithms/coptidice.py``): nu weighs the data's transitions by how the optimal
policy would visit them, lambda pays for their cost, an upper bound on which chi and tau estimate, and the actor clones
the weighted data. Deviations are numbered in docs/algorithms/coptidice.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from algorithms.parts import diagnostics
from algorithms.parts.lagrangian import LimitedMethod
from algorithms.parts.limits import cost_limits, discounted_limit
from algorithms.parts.methods import ActorCriticHyperparameters, affordable, detached, named, scaled
from algorithms.parts.networks import Builder
from algorithms.parts.optimisers import adam, minimise
from algorithms.parts.policies import MeanActionPolicy
from harness.algorithm import Batch, Policy, Replica, Selection
from harness.bounds import Count
from harness.data.dataset import Dataset
from harness.tasks import Task

AUGMENTATION = 0.1
"""The actor's observations and actions carry noise of this many standard deviations of the data."""


class COptiDICEHyperparameters(ActorCriticHyperparameters):
    """Defaults are OSRL's (``examples/configs/coptidice_configs.py``)."""

    actor_lr: float = Field(1e-4, gt=0, description="Adam's learning rate for the actor")
    critic_lr: float = Field(1e-4, gt=0, description="Adam's learning rate for nu and chi")
    scalar_lr: float = Field(1e-4, gt=0, description="Adam's learning rate for lambda and tau")
    alpha: float = Field(0.5, gt=0, description="weight of the divergence from the data's distribution")
    divergence: Literal["softchi", "chi2", "kl"] = Field("softchi", description="its f")
    cost_ub_epsilon: float = Field(
        0.01, ge=0, description="KL radius of the cost's upper bound; 0: the cost is estimated without a bound"
    )
    num_nu: Count = Field(2, description="networks in nu's ensemble")
    num_chi: Count = Field(2, description="networks in chi's ensemble")
    cost_threshold: Literal["osrl", "per_step"] = Field(
        "osrl",
        description="what the cost per step is held to: a discounted total, as in OSRL, which hardly ever binds, or "
        "the limit divided by the episode's length",
    )

    _affordable = affordable("num_nu", "num_chi")


class COptiDICE(LimitedMethod[COptiDICEHyperparameters]):
    """R COptiDICE agents side by side."""

    Hyperparameters = COptiDICEHyperparameters
    summary = "constrained offline RL by stationary distribution correction estimation"

    @classmethod
    def policy_names(cls, config: COptiDICEHyperparameters) -> tuple[str, ...]:
        """One policy."""
        return ("coptidice",)

    @classmethod
    def columns(cls, config: COptiDICEHyperparameters) -> tuple[str, ...]:
        """With what begins an episode."""
        return (*super().columns(config), "initial")

    @classmethod
    def select(cls, dataset: Dataset, config: COptiDICEHyperparameters, replica: Replica) -> Selection:
        """All transitions; the share of initial ones, and how far observations and actions spread."""
        initial = dataset.column("initial")
        statistics = {
            "initial_share": np.asarray(initial.mean(dtype=np.float64)),
            "observation_std": dataset.arrays["observations"].std(0, dtype=np.float64),
            "action_std": dataset.arrays["actions"].std(0, dtype=np.float64),
        }
        return Selection(statistics=statistics)

    @classmethod
    def noise(cls, config: COptiDICEHyperparameters, task: Task) -> dict[str, tuple[int, ...]]:
        """What the actor's observations and actions are augmented with."""
        batch = config.batch_size
        return {"observations": (batch, task.observation_size), "actions": (batch, task.action_size)}

    def __init__(
        self,
        config: COptiDICEHyperparameters,
        task: Task,
        replicas: Sequence[Replica],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config = c = config
        build, observation = Builder.of(replicas, device, dtype), task.observation_size

        def measured(name: str) -> Tensor:
            values = np.stack([replica.statistics[name] for replica in replicas])
            return torch.as_tensor(values).to(device, dtype).unsqueeze(1)

        self.actor = build.gaussian(observation, *c.actor_hidden_sizes, task.action_size)
        self.nu = build.mlp(observation, *c.critic_hidden_sizes, 1, ensemble=c.num_nu)
        self.chi = build.mlp(observation, *c.critic_hidden_sizes, 1, ensemble=c.num_chi)
        ones = torch.ones(len(replicas), device=device, dtype=dtype)
        # Both are kept positive by a softplus.
        self.scalars = nn.ParameterDict({"lambda": ones.clone(), "tau": ones.clone()})
        if c.cost_threshold == "osrl":
            threshold = discounted_limit(c, task, replicas)
        else:
            threshold = cost_limits(c, replicas) / task.max_episode_steps
        self.threshold = threshold.to(device, dtype)
        self.initial_share = measured("initial_share")
        self.observation_noise = AUGMENTATION * measured("observation_std")
        self.action_noise = AUGMENTATION * measured("action_std")
        groups = [(c.critic_lr, self.nu.parameters()), (c.scalar_lr, [self.scalars["lambda"]])]
        if c.cost_ub_epsilon > 0:
            groups += [(c.critic_lr, self.chi.parameters()), (c.scalar_lr, [self.scalars["tau"]])]
        self.weight_optimizer = adam(groups)
        self.actor_optimizer = adam([(c.actor_lr, self.actor.parameters())])

    def update(self, batch: Batch, noise: Batch) -> dict[str, Tensor]:
        """One gradient step: nu, chi, tau and lambda, then the actor with the new nu.

        The first four step disjoint parameters and read each other's values from before the step, so one backward pass
        serves them all.
        """
        c = self.config
        observations, initial = batch["observations"], batch["initial"]
        rewards, costs, alive = scaled(batch, c)
        # R x (B states, B next states) in one pass.
        states = torch.cat([observations, batch["next_observations"]], 1)
        multiplier = functional.softplus(self.scalars["lambda"])
        penalised = rewards - multiplier.detach().unsqueeze(1) * costs

        values = self.nu(states).squeeze(-1).amin(1)
        value, next_value = values.chunk(2, 1)
        advantage = penalised + c.gamma * alive * next_value - value
        weights = self._weights(advantage)
        w = weights.detach()
        nu_loss = ((1 - c.gamma) * value * initial / self.initial_share).mean(1)
        nu_loss = nu_loss + (weights * advantage - c.alpha * divergence(weights, c.divergence)).mean(1)

        tau = functional.softplus(self.scalars["tau"])
        if c.cost_ub_epsilon == 0:
            weighted_cost = (w * costs).mean(1)
            chi_loss = tau_loss = kl = torch.zeros_like(nu_loss)
        else:
            chi, next_chi = self.chi(states).squeeze(-1).amin(1).chunk(2, 1)
            ell = (1 - c.gamma) * chi * initial / self.initial_share + w * (costs + c.gamma * alive * next_chi - chi)
            # The worst distribution of the batch within the KL radius; its logarithm is relative to the uniform one.
            log_worst = torch.log_softmax(ell / tau.detach().unsqueeze(1), 1) + math.log(ell.shape[1])
            worst = log_worst.exp()
            kl = (worst * log_worst - worst + 1).mean(1)
            weighted_cost = (worst * w * costs).mean(1)
            chi_loss = (worst * ell).mean(1)
            tau_loss = tau * (c.cost_ub_epsilon - kl.detach())
        lambda_loss = multiplier * (self.threshold - weighted_cost.detach())
        minimise(self.weight_optimizer, nu_loss + chi_loss + tau_loss + lambda_loss)

        with torch.no_grad():
            value, next_value = self.nu(states).squeeze(-1).amin(1).chunk(2, 1)
            new_weights = self._weights(penalised + c.gamma * alive * next_value - value)
        mean, log_std = self.actor(observations + noise["observations"] * self.observation_noise)
        actions = batch["actions"] + noise["actions"] * self.action_noise
        log_density = -0.5 * ((actions - mean) / log_std.exp()).square() - log_std - 0.5 * math.log(2 * math.pi)
        actor_loss = -(new_weights * log_density.sum(-1)).mean(1)
        minimise(self.actor_optimizer, actor_loss)

        return detached(
            {
                "nu_loss": nu_loss,
                "chi_loss": chi_loss,
                "tau_loss": tau_loss,
                "lambda_loss": lambda_loss,
                "actor_loss": actor_loss,
                "td_error": advantage.square().mean(1),
                "divergence": divergence(w, c.divergence).mean(1),
                "kl": kl,
                "weighted_cost": weighted_cost,
                "tau": tau,
                "multiplier": multiplier,
            }
        )

    def _weights(self, advantage: Tensor) -> Tensor:
        """How the optimal policy would visit the transitions, relative to the data: max(0, f'^-1(e / alpha))."""
        x = advantage / self.config.alpha
        if self.config.divergence == "kl":
            return torch.exp(x - 1)
        if self.config.divergence == "chi2":
            return torch.relu(x + 1)
        return torch.relu(torch.where(x < 0, torch.exp(x.clamp(max=0)), x + 1))

    def policies(self, replica: int) -> dict[str, Policy]:
        """One replica's policy: the mean action."""
        return {"coptidice": MeanActionPolicy(self.actor.unstacked(replica))}

    def parts(self) -> dict[str, Any]:
        """Networks, lambda and tau, and both optimisers."""
        return named(self, "actor", "nu", "chi", "scalars", "weight_optimizer", "actor_optimizer")

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        """nu, which values states by the rewards less lambda times the costs, scaled as in training."""
        price = functional.softplus(self.scalars["lambda"]).unsqueeze(1) * self.config.cost_scale
        rewards = batch["discounted_rewards_to_go"] * self.config.reward_scale
        actual = rewards - price * batch["discounted_costs_to_go"]
        return diagnostics.calibration("nu", self.nu(batch["observations"]).squeeze(-1).amin(1), actual)


def divergence(weights: Tensor, kind: str) -> Tensor:
    """f of the weights, elementwise."""
    if kind == "kl":
        return weights * torch.log(weights + 1e-10)
    chi2 = 0.5 * (weights - 1).square()
    if kind == "chi2":
        return chi2
    return torch.where(weights < 1, weights * (torch.log(weights + 1e-10) - 1) + 1, chi2)
