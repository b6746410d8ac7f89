"""BEAR-Lag: bootstrapping error accumulation reduction (Kumar et al., NeurIPS 2019, arXiv 1906.00949) with a PID
Lagrange multiplier.

As OSRL has it (osrl-lib 0.1.0, ``osrl/algorithms/bearl.py``): a Gaussian actor is held to the VAE's support by a bound
on the maximum mean discrepancy of their samples, and to the cost limit by the multiplier. Deviations are numbered in
docs/algorithms/bear-lag.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

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
    ascend,
    train_twins,
    twins_on_held_out,
)
from algorithms.parts.limits import discounted_limit
from algorithms.parts.methods import detached, named
from algorithms.parts.networks import Builder, StackedGaussian, frozen
from algorithms.parts.optimisers import adam, minimise, polyak_update
from algorithms.parts.policies import MeanActionPolicy
from harness.algorithm import Batch, Policy, Replica
from harness.bounds import Count, Steps
from harness.tasks import Task


class BEARLagHyperparameters(LagrangianHyperparameters):
    """Defaults are OSRL's (``examples/configs/bearl_configs.py``)."""

    steps: Steps = Field(300_000, description="gradient steps of one training run")
    kernel: Literal["gaussian", "laplacian"] = Field("gaussian", description="of the maximum mean discrepancy")
    mmd_sigma: float = Field(50.0, gt=0, description="width of the kernel")
    mmd_threshold: float = Field(0.05, description="what the maximum mean discrepancy is held to")
    mmd_samples: Count = Field(10, description="actions a state of the VAE and of the actor that are compared")
    alpha_lr: float = Field(1e-3, gt=0, description="step size of the discrepancy's multiplier")
    policy_start: int = Field(0, ge=0, le=10**9, description="steps before which the actor does not seek reward")


class BEARLag(LimitedMethod[BEARLagHyperparameters]):
    """R BEAR-Lag agents side by side."""

    Hyperparameters = BEARLagHyperparameters
    summary = "Q-learning held to the data's support (maximum mean discrepancy), with a PID Lagrange multiplier"

    @classmethod
    def policy_names(cls, config: BEARLagHyperparameters) -> tuple[str, ...]:
        """One policy."""
        return ("bear-lag",)

    @classmethod
    def noise(cls, config: BEARLagHyperparameters, task: Task) -> dict[str, tuple[int, ...]]:
        """Latents of the VAE's own step and its compared samples; the actor's in both targets and compared."""
        batch, action = config.batch_size, task.action_size
        return {
            "vae": (batch, latent_size(task)),
            "reward_target": (batch * config.sampled_actions, action),
            "cost_target": (batch * config.sampled_actions, action),
            "vae_samples": (batch * config.mmd_samples, latent_size(task)),
            "actor_samples": (batch * config.mmd_samples, action),
        }

    def __init__(
        self,
        config: BEARLagHyperparameters,
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
                "actor": build.gaussian(task.observation_size, *c.actor_hidden_sizes, task.action_size),
                "critics": build.mlp(pair, *c.critic_hidden_sizes, 1, ensemble=2 * c.num_q),
                "cost_critics": build.mlp(pair, *c.critic_hidden_sizes, 1, ensemble=2 * c.num_qc),
            }
        )
        self.targets = frozen(self.networks)
        self.multiplier = PIDMultiplier(c.pid, discounted_limit(c, task, replicas).to(device, dtype))
        counts = {"log_alpha": torch.zeros_like(self.multiplier.threshold), "updates": torch.zeros((), device=device)}
        self.scalars = nn.ParameterDict(counts).requires_grad_(False)
        critics = [*self.networks["critics"].parameters(), *self.networks["cost_critics"].parameters()]
        self.vae_optimizer = adam([(c.vae_lr, self.vae.parameters())])
        self.critic_optimizer = adam([(c.critic_lr, critics)])
        self.actor_optimizer = adam([(c.actor_lr, self.networks["actor"].parameters())])

    def update(self, batch: Batch, noise: Batch) -> dict[str, Tensor]:
        """One gradient step, in OSRL's order: VAE, critics, actor and multipliers, targets."""
        c, net = self.config, self.networks
        observations = batch["observations"]
        vae_loss = self.vae.loss(observations, batch["actions"], noise["vae"], c.vae_beta)
        minimise(self.vae_optimizer, vae_loss)

        following = repeated(batch["next_observations"], c.sampled_actions)
        with torch.no_grad():
            mean, log_std = (
                repeated(part, c.sampled_actions) for part in self.targets["actor"](batch["next_observations"])
            )
            next_pairs, next_cost_pairs = (
                torch.cat([following, torch.tanh(mean + log_std.exp() * noise[f"{name}_target"])], -1)
                for name in ("reward", "cost")
            )
        q_loss, qc_loss = train_twins(net, self.targets, self.critic_optimizer, batch, c, (next_pairs, next_cost_pairs))

        # The discrepancy compares actions before their tanh; the value is that of each state's first action.
        with torch.no_grad():
            latents = noise["vae_samples"].clamp(-LATENT_CLAMP, LATENT_CLAMP)
            proposed = self.vae.decode(repeated(observations, c.mmd_samples), latents)
        mean, log_std = net["actor"](observations)
        own = repeated(mean, c.mmd_samples) + repeated(log_std.exp(), c.mmd_samples) * noise["actor_samples"]
        cloned, acted = (samples.unflatten(1, (-1, c.mmd_samples)) for samples in (proposed, own))
        mmd = discrepancy(cloned, acted, c.kernel, c.mmd_sigma)
        pairs = torch.cat([observations, torch.tanh(own[:, :: c.mmd_samples])], -1)
        reward_value, cost_value = actors_values(net, pairs, c)
        multiplier, penalty = self.multiplier.penalise(cost_value)
        excess = (mmd - c.mmd_threshold).mean(1)
        alpha = self.scalars["log_alpha"].exp()
        seeks_reward = (self.scalars["updates"] >= c.policy_start).to(excess.dtype)
        actor_loss = alpha * excess - seeks_reward * reward_value.mean(1) + penalty
        minimise(self.actor_optimizer, actor_loss)
        ascend(self.scalars["log_alpha"], c.alpha_lr, excess)
        self.scalars["updates"].add_(1)
        polyak_update(self.targets.parameters(), net.parameters(), c.polyak)
        return detached(
            {
                "vae_loss": vae_loss,
                "critic_loss": q_loss,
                "cost_critic_loss": qc_loss,
                "actor_loss": actor_loss,
                "mmd": mmd.mean(1),
                "alpha": self.scalars["log_alpha"].exp(),
                "cost_penalty": penalty,
                "cost_value": cost_value.mean(1),
                "multiplier": multiplier,
            }
        )

    def policies(self, replica: int) -> dict[str, Policy]:
        """One replica's policy: the mean action."""
        actor = self.networks["actor"]
        assert isinstance(actor, StackedGaussian)
        return {"bear-lag": MeanActionPolicy(actor.unstacked(replica))}

    def parts(self) -> dict[str, Any]:
        """Networks, targets, optimisers, both multipliers and the count of updates."""
        optimizers = ("vae_optimizer", "critic_optimizer", "actor_optimizer")
        return named(self, "vae", "networks", "targets", "scalars", "multiplier", *optimizers)

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        """The critics, as the actor's step reads them."""
        return twins_on_held_out(batch, self.config, self.networks)


def discrepancy(one: Tensor, other: Tensor, kernel: str, sigma: float) -> Tensor:
    """The maximum mean discrepancy of two sets of S samples each: (R, B, S, dim) twice -> (R, B)."""

    def similarity(x: Tensor, y: Tensor) -> Tensor:
        difference = x.unsqueeze(3) - y.unsqueeze(2)
        distance = difference.square() if kernel == "gaussian" else difference.abs()
        return torch.exp(-distance.sum(-1) / (2 * sigma)).mean((2, 3))

    return (similarity(one, one) + similarity(other, other) - 2 * similarity(one, other) + 1e-6).sqrt()
