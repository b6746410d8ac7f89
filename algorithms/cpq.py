"""CPQ: constraints penalized Q-learning (Xu, Zhan, Zhu, AAAI 2022, arXiv 2107.09003).

As OSRL has it (osrl-lib 0.1.0, ``osrl/algorithms/cpq.py``): the cost of actions that a VAE finds out of distribution is
to be pushed up, and only actions whose cost value keeps the limit count in the reward backup and for the actor.
Deviations are numbered in docs/algorithms/cpq.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from algorithms.parts.critics import backups, critic_loss, critics_on_held_out, least
from algorithms.parts.cvae import StackedVAE, latent_size
from algorithms.parts.lagrangian import LimitedMethod, ascend
from algorithms.parts.limits import discounted_limit
from algorithms.parts.losses import gaussian_kl
from algorithms.parts.methods import QLearningHyperparameters, detached, named
from algorithms.parts.networks import Builder, frozen
from algorithms.parts.optimisers import adam, minimise, polyak_update
from algorithms.parts.policies import MeanActionPolicy
from harness.algorithm import Batch, Policy, Replica
from harness.tasks import Task

OOD_QUANTILE = 0.75
"""Sampled actions whose KL divergence lies above this quantile of the batch count as out of distribution."""


class CPQHyperparameters(QLearningHyperparameters):
    """Defaults are OSRL's (``examples/configs/cpq_configs.py``)."""

    actor_lr: float = Field(1e-4, gt=0, description="Adam's learning rate for the actor")
    alpha_lr: float = Field(1e-4, gt=0, description="step size of the penalty's multiplier")
    ood_cost: float = Field(
        1.5, gt=0, description="the cost value of actions out of distribution is held to this times the limit's"
    )
    ood_gradient: bool = Field(
        False,
        description="push the cost of actions out of distribution up through the live critic, as the paper's authors "
        "do; false: as in OSRL, where the penalty has no gradient",
    )


class CPQ(LimitedMethod[CPQHyperparameters]):
    """R CPQ agents side by side."""

    Hyperparameters = CPQHyperparameters
    summary = "constraints penalized Q-learning"

    @classmethod
    def policy_names(cls, config: CPQHyperparameters) -> tuple[str, ...]:
        """One policy."""
        return ("cpq",)

    @classmethod
    def noise(cls, config: CPQHyperparameters, task: Task) -> dict[str, tuple[int, ...]]:
        """The VAE's latents, and the actor's actions: next in both targets, sampled, and in its own step."""
        batch, action = config.batch_size, task.action_size
        return {
            "vae": (batch, latent_size(task)),
            "reward_target": (batch, action),
            "cost_target": (batch, action),
            "sampled": (config.sampled_actions * batch, action),
            "actor": (batch, action),
        }

    def __init__(
        self,
        config: CPQHyperparameters,
        task: Task,
        replicas: Sequence[Replica],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config = c = config
        build, pair = Builder.of(replicas, device, dtype), task.observation_size + task.action_size
        self.actor = build.gaussian(task.observation_size, *c.actor_hidden_sizes, task.action_size)
        self.vae = StackedVAE(build, task, c.vae_hidden_size)
        self.critics = nn.ModuleDict(
            {
                "reward": build.mlp(pair, *c.critic_hidden_sizes, 1, ensemble=c.num_q),
                "cost": build.mlp(pair, *c.critic_hidden_sizes, 1, ensemble=c.num_qc),
            }
        )
        self.targets = frozen(self.critics)
        self.threshold = discounted_limit(c, task, replicas).to(device, dtype)
        self.scalars = nn.ParameterDict({"log_alpha": torch.zeros_like(self.threshold)}).requires_grad_(False)
        self.vae_optimizer = adam([(c.vae_lr, self.vae.parameters())])
        self.critic_optimizer = adam([(c.critic_lr, self.critics.parameters())])
        self.actor_optimizer = adam([(c.actor_lr, self.actor.parameters())])

    def update(self, batch: Batch, noise: Batch) -> dict[str, Tensor]:
        """One gradient step, in OSRL's order: VAE, critics and the penalty's multiplier, actor, targets.

        The reward and the cost critics step disjoint parameters towards targets from before their step, so one backward
        pass serves both.
        """
        c, threshold = self.config, self.threshold.unsqueeze(1)
        observations, actions, following = batch["observations"], batch["actions"], batch["next_observations"]
        vae_loss = self.vae.loss(observations, actions, noise["vae"], c.vae_beta)
        minimise(self.vae_optimizer, vae_loss)

        with torch.no_grad():
            mean, log_std = self.actor(following)
            proposed = self._pairs(following, mean, log_std, noise["reward_target"])
            safe = least(self.targets["cost"], proposed) <= threshold
            value = safe * least(self.targets["reward"], proposed)
            proposed = self._pairs(following, mean, log_std, noise["cost_target"])
            backup, cost_backup = backups(batch, c, value, least(self.targets["cost"], proposed))
        pairs = torch.cat([observations, actions], -1)
        q_loss = critic_loss(self.critics["reward"](pairs).squeeze(-1), backup)
        qc_loss = critic_loss(self.critics["cost"](pairs).squeeze(-1), cost_backup)
        ood_cost = self._out_of_distribution_cost(observations, noise["sampled"])
        ood_excess = c.ood_cost * self.threshold - ood_cost
        penalised = qc_loss + self.scalars["log_alpha"].exp() * ood_excess
        minimise(self.critic_optimizer, q_loss + penalised)
        ascend(self.scalars["log_alpha"], c.alpha_lr, ood_excess)

        mean, log_std = self.actor(observations)
        pairs = self._pairs(observations, mean, log_std, noise["actor"])
        reward_value = least(self.critics["reward"], pairs)
        with torch.no_grad():
            cost_value = least(self.critics["cost"], pairs)
            safe = cost_value <= threshold
        actor_loss = -(safe * reward_value).mean(1)
        minimise(self.actor_optimizer, actor_loss)
        polyak_update(self.targets.parameters(), self.critics.parameters(), c.polyak)
        return detached(
            {
                "vae_loss": vae_loss,
                "critic_loss": q_loss,
                "cost_critic_loss": penalised,
                "actor_loss": actor_loss,
                "alpha": self.scalars["log_alpha"].exp(),
                "ood_cost": ood_cost,
                "cost_value": cost_value.mean(1),
                "safe_actions": safe.to(vae_loss.dtype).mean(1),
            }
        )

    @staticmethod
    def _pairs(observations: Tensor, mean: Tensor, log_std: Tensor, noise: Tensor) -> Tensor:
        return torch.cat([observations, torch.tanh(mean + log_std.exp() * noise)], -1)

    def _out_of_distribution_cost(self, observations: Tensor, noise: Tensor) -> Tensor:
        """The mean over all sampled actions of the cost value of those out of distribution: (R,).

        As in OSRL the samples are the actor's before their tanh, and each replica has a quantile of its own.
        """
        samples = self.config.sampled_actions
        tiled = observations.repeat(1, samples, 1)  # sample after sample
        with torch.no_grad():
            mean, log_std = self.actor(observations)
            sampled = mean.repeat(1, samples, 1) + log_std.exp().repeat(1, samples, 1) * noise
            divergence = gaussian_kl(*self.vae.encode(tiled, sampled)).mean(-1)
            foreign = divergence >= torch.quantile(divergence, OOD_QUANTILE, dim=1, keepdim=True)
        with torch.set_grad_enabled(self.config.ood_gradient):
            critics = self.critics["cost"] if self.config.ood_gradient else self.targets["cost"]
            return (foreign * least(critics, torch.cat([tiled, sampled], -1))).mean(1)

    def policies(self, replica: int) -> dict[str, Policy]:
        """One replica's policy: the mean action."""
        return {"cpq": MeanActionPolicy(self.actor.unstacked(replica))}

    def parts(self) -> dict[str, Any]:
        """Networks, targets, optimisers and the penalty's multiplier."""
        optimizers = ("vae_optimizer", "critic_optimizer", "actor_optimizer")
        return named(self, "actor", "vae", "critics", "targets", "scalars", *optimizers)

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        """The critics, as the actor's step reads them."""
        pairs = torch.cat([batch["observations"], batch["actions"]], -1)
        values, costs = (least(self.critics[name], pairs) for name in ("reward", "cost"))
        return critics_on_held_out(batch, self.config, values, costs)
