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

from algorithms.baseline import (
    LATENT_CLAMP,
    Baseline,
    LagrangianHyperparameters,
    PIDMultiplier,
    critic_loss,
    critics_on_held_out,
    discounted_limit,
    latent_size,
    mixed_target,
    reduced,
    repeated,
    scaled,
)
from algorithms.networks import StackedMLP, StackedVAE, adam, minimise, polyak_update
from harness.algorithm import Batch, Policy, Replica
from harness.tasks import Task


class BCQLagHyperparameters(LagrangianHyperparameters):
    """Defaults are OSRL's (``examples/configs/bcql_configs.py``)."""

    phi: float = Field(0.05, ge=0, le=1, description="the most by which the actor moves a VAE's action")


class BCQLag(Baseline[BCQLagHyperparameters]):
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
        latent, samples = latent_size(task), config.batch_size * config.sampled_actions
        return {
            "vae": (config.batch_size, latent),
            "reward_target": (samples, latent),
            "cost_target": (samples, latent),
            "actor": (config.batch_size, latent),
        }

    def __init__(
        self,
        config: BCQLagHyperparameters,
        task: Task,
        replicas: Sequence[Replica],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config = c = config
        observation, action = task.observation_size, task.action_size
        pair = observation + action
        generators = [replica.generator("weights") for replica in replicas]

        def actor() -> StackedMLP:
            return StackedMLP(generators, (pair, *c.actor_hidden_sizes, action), dtype=dtype, activation=nn.Tanh)

        def critics(count: int) -> StackedMLP:
            return StackedMLP(generators, (pair, *c.critic_hidden_sizes, 1), 2 * count, dtype)

        self.vae = StackedVAE(generators, (observation, c.vae_hidden_size, latent_size(task), action), dtype).to(device)
        networks = {"actor": actor(), "critics": critics(c.num_q), "cost_critics": critics(c.num_qc)}
        self.networks = nn.ModuleDict(networks).to(device)
        self.targets = nn.ModuleDict({"actor": actor(), "critics": critics(c.num_q), "cost_critics": critics(c.num_qc)})
        self.targets.to(device).requires_grad_(False)
        self.targets.load_state_dict(self.networks.state_dict())
        self.multiplier = PIDMultiplier(c.pid, discounted_limit(c, task, replicas).to(device, dtype))
        net = self.networks
        self.vae_optimizer = adam([(c.vae_lr, self.vae.parameters())])
        self.critic_optimizer = adam([(c.critic_lr, [*net["critics"].parameters(), *net["cost_critics"].parameters()])])
        self.actor_optimizer = adam([(c.actor_lr, net["actor"].parameters())])

    def actions(self, actor: nn.Module, observations: Tensor, noise: Tensor) -> Tensor:
        """The VAE's actions for latents out of ``noise``, moved by the actor: (R, B, action_size)."""
        proposed = torch.tanh(self.vae.decode(observations, noise.clamp(-LATENT_CLAMP, LATENT_CLAMP)))
        return perturbed(proposed, actor(torch.cat([observations, proposed], -1)), self.config.phi)

    def update(self, batch: Batch, noise: Batch) -> dict[str, Tensor]:
        """One gradient step, in OSRL's order: VAE, critics, actor and multiplier, targets.

        The reward and the cost critics step disjoint parameters towards targets from before their step, so one backward
        pass serves both.
        """
        c, net = self.config, self.networks
        observations = batch["observations"]
        rewards, costs, alive = scaled(batch, c)

        vae_loss = self.vae.loss(observations, batch["actions"], noise["vae"], c.vae_beta)
        minimise(self.vae_optimizer, vae_loss)

        following = repeated(batch["next_observations"], c.sampled_actions)
        with torch.no_grad():
            target = self._next_value("critics", following, noise["reward_target"])
            cost_target = self._next_value("cost_critics", following, noise["cost_target"])
            backup = rewards + c.gamma * alive * target
            cost_backup = costs + c.gamma * (1 if c.cost_bootstrap_through_done else alive) * cost_target
        pairs = torch.cat([observations, batch["actions"]], -1)
        q_loss = critic_loss(net["critics"](pairs).squeeze(-1), backup)
        qc_loss = critic_loss(net["cost_critics"](pairs).squeeze(-1), cost_backup)
        minimise(self.critic_optimizer, q_loss + qc_loss)

        pairs = torch.cat([observations, self.actions(net["actor"], observations, noise["actor"])], -1)
        reward_value = net["critics"](pairs).squeeze(-1).amin(1)
        cost_value = reduced(net["cost_critics"](pairs).squeeze(-1), c.cost_critic_reduction)
        multiplier, penalty = self.multiplier.penalise(cost_value)
        actor_loss = penalty - reward_value.mean(1)
        minimise(self.actor_optimizer, actor_loss)
        polyak_update(self.targets.parameters(), net.parameters(), c.polyak)

        metrics = {
            "vae_loss": vae_loss,
            "critic_loss": q_loss,
            "cost_critic_loss": qc_loss,
            "actor_loss": actor_loss,
            "cost_penalty": penalty,
            "cost_value": cost_value.mean(1),
            "multiplier": multiplier,
        }
        return {name: value.detach() for name, value in metrics.items()}

    def _next_value(self, critics: str, following: Tensor, noise: Tensor) -> Tensor:
        actions = self.actions(self.targets["actor"], following, noise)
        values = self.targets[critics](torch.cat([following, actions], -1)).squeeze(-1)
        return mixed_target(values, self.config.target_mix, self.config.sampled_actions)

    def policies(self, replica: int) -> dict[str, Policy]:
        """One replica's policy; it samples, at evaluation too."""
        actor = self.networks["actor"]
        assert isinstance(actor, StackedMLP)
        return {
            "bcq-lag": PerturbedPolicy(
                self.vae.decoder.unstacked(replica), actor.unstacked(replica), self.vae.latent_size, self.config.phi
            )
        }

    def parts(self) -> dict[str, Any]:
        """Networks, targets, optimisers and the multiplier's controller."""
        return {
            "vae": self.vae,
            "networks": self.networks,
            "targets": self.targets,
            "vae_optimizer": self.vae_optimizer,
            "critic_optimizer": self.critic_optimizer,
            "actor_optimizer": self.actor_optimizer,
            "multiplier": self.multiplier,
        }

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        """The critics, as the actor's step reads them."""
        pairs = torch.cat([batch["observations"], batch["actions"]], -1)
        values, costs = (self.networks[name](pairs).squeeze(-1) for name in ("critics", "cost_critics"))
        return critics_on_held_out(
            batch, self.config, values.amin(1), reduced(costs, self.config.cost_critic_reduction)
        )


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
