"""BCQ-Lag: batch-constrained Q-learning (Fujimoto et al., ICML 2019, arXiv 1812.02900) with a PID Lagrange multiplier.

As OSRL has it (osrl-lib 0.1.0, ``osrl/algorithms/bcql.py``): actions are the VAE's, moved a little by an actor that
raises the reward critics and, by the multiplier, lowers the cost critics. Deviations are numbered in
docs/algorithms/bcq-lag.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from algorithms.parts.critics import repeated
from algorithms.parts.cvae import LATENT_CLAMP, StackedVAE, latent_size
from algorithms.parts.lagrangian import (
    LagrangianHyperparameters,
    LimitedMethod,
    PIDMultiplier,
    actors_values,
    train_twins,
    twins_on_held_out,
)
from algorithms.parts.limits import discounted_limit
from algorithms.parts.methods import detached, named
from algorithms.parts.networks import Builder, StackedMLP, frozen
from algorithms.parts.optimisers import adam, minimise, polyak_update
from harness.algorithm import Batch, Policy, Replica
from harness.tasks import Task


class BCQLagHyperparameters(LagrangianHyperparameters):
    """Defaults are OSRL's (``examples/configs/bcql_configs.py``)."""

    phi: float = Field(0.05, ge=0, le=1, description="the most by which the actor moves a VAE's action")


class BCQLag(LimitedMethod[BCQLagHyperparameters]):
    """R BCQ-Lag agents side by side."""

    Hyperparameters = BCQLagHyperparameters
    summary = "batch-constrained Q-learning with a PID Lagrange multiplier"

    @classmethod
    def policy_names(cls, config: BCQLagHyperparameters) -> tuple[str, ...]:
        """One policy."""
        return ("bcq-lag",)

    @classmethod
    def noise(cls, config: BCQLagHyperparameters, task: Task) -> dict[str, tuple[int, ...]]:
        """Latents: of the VAE's own step, of the next actions in both targets, and of the actor's actions."""
        own = (config.batch_size, latent_size(task))
        sampled = (config.batch_size * config.sampled_actions, latent_size(task))
        return {"vae": own, "reward_target": sampled, "cost_target": sampled, "actor": own}

    def __init__(
        self,
        config: BCQLagHyperparameters,
        task: Task,
        replicas: Sequence[Replica],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config = c = config
        build, pair = Builder.of(replicas, device, dtype), task.observation_size + task.action_size
        self.vae = StackedVAE(build, task, c.vae_hidden_size)
        self.networks = nn.ModuleDict(
            {
                "actor": build.mlp(pair, *c.actor_hidden_sizes, task.action_size, activation=nn.Tanh),
                "critics": build.mlp(pair, *c.critic_hidden_sizes, 1, ensemble=2 * c.num_q),
                "cost_critics": build.mlp(pair, *c.critic_hidden_sizes, 1, ensemble=2 * c.num_qc),
            }
        )
        self.targets = frozen(self.networks)
        self.multiplier = PIDMultiplier(c.pid, discounted_limit(c, task, replicas).to(device, dtype))
        critics = [*self.networks["critics"].parameters(), *self.networks["cost_critics"].parameters()]
        self.vae_optimizer = adam([(c.vae_lr, self.vae.parameters())])
        self.critic_optimizer = adam([(c.critic_lr, critics)])
        self.actor_optimizer = adam([(c.actor_lr, self.networks["actor"].parameters())])

    def pairs(self, actor: nn.Module, observations: Tensor, noise: Tensor) -> Tensor:
        """Observations with the VAE's actions for latents out of ``noise``, moved by the actor: (R, B, dim)."""
        proposed = torch.tanh(self.vae.decode(observations, noise.clamp(-LATENT_CLAMP, LATENT_CLAMP)))
        moved = perturbed(proposed, actor(torch.cat([observations, proposed], -1)), self.config.phi)
        return torch.cat([observations, moved], -1)

    def update(self, batch: Batch, noise: Batch) -> dict[str, Tensor]:
        """One gradient step, in OSRL's order: VAE, critics, actor and multiplier, targets."""
        c, net = self.config, self.networks
        observations = batch["observations"]
        vae_loss = self.vae.loss(observations, batch["actions"], noise["vae"], c.vae_beta)
        minimise(self.vae_optimizer, vae_loss)

        following = repeated(batch["next_observations"], c.sampled_actions)
        with torch.no_grad():
            next_pairs = self.pairs(self.targets["actor"], following, noise["reward_target"])
            next_cost_pairs = self.pairs(self.targets["actor"], following, noise["cost_target"])
        q_loss, qc_loss = train_twins(net, self.targets, self.critic_optimizer, batch, c, (next_pairs, next_cost_pairs))

        pairs = self.pairs(net["actor"], observations, noise["actor"])
        reward_value, cost_value = actors_values(net, pairs, c)
        multiplier, penalty = self.multiplier.penalise(cost_value)
        actor_loss = penalty - reward_value.mean(1)
        minimise(self.actor_optimizer, actor_loss)
        polyak_update(self.targets.parameters(), net.parameters(), c.polyak)
        return detached(
            {
                "vae_loss": vae_loss,
                "critic_loss": q_loss,
                "cost_critic_loss": qc_loss,
                "actor_loss": actor_loss,
                "cost_penalty": penalty,
                "cost_value": cost_value.mean(1),
                "multiplier": multiplier,
            }
        )

    def policies(self, replica: int) -> dict[str, Policy]:
        """One replica's policy; it samples, at evaluation too."""
        actor = self.networks["actor"]
        assert isinstance(actor, StackedMLP)
        networks = self.vae.decoder.unstacked(replica), actor.unstacked(replica)
        return {"bcq-lag": PerturbedPolicy(*networks, self.vae.latent_size, self.config.phi)}

    def parts(self) -> dict[str, Any]:
        """Networks, targets, optimisers and the multiplier's controller."""
        optimizers = ("vae_optimizer", "critic_optimizer", "actor_optimizer")
        return named(self, "vae", "networks", "targets", *optimizers, "multiplier")

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        """The critics, as the actor's step reads them."""
        return twins_on_held_out(batch, self.config, self.networks)


def perturbed(actions: Tensor, output: Tensor, phi: float) -> Tensor:
    """Actions moved by at most ``phi`` in the direction of the actor's output, and kept in [-1, 1]."""
    return (actions + phi * torch.tanh(output)).clamp(-1, 1)


class PerturbedPolicy(Policy):
    """The VAE's action for a clamped normal latent, moved by the actor."""

    def __init__(self, decoder: nn.Sequential, actor: nn.Sequential, latent_size: int, phi: float) -> None:
        super().__init__()
        self.decoder, self.actor, self.latent_size, self.phi = decoder, actor, latent_size, phi

    def act(self, observations: Tensor) -> Tensor:
        """Sampled actions (n, action_size)."""
        latents = self.noise(self.latent_size).to(observations).clamp(-LATENT_CLAMP, LATENT_CLAMP)
        proposed = torch.tanh(self.decoder(torch.cat([observations, latents], -1)))
        return perturbed(proposed, self.actor(torch.cat([observations, proposed], -1)), self.phi)
