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

from algorithms.baseline import (
    LATENT_CLAMP,
    LOG_ALPHA_BOUND,
    Baseline,
    LagrangianHyperparameters,
    MeanActionPolicy,
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
from algorithms.networks import (
    SQUASHED_LOG_STD_RANGE,
    StackedGaussian,
    StackedMLP,
    StackedVAE,
    adam,
    minimise,
    polyak_update,
)
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


class BEARLag(Baseline[BEARLagHyperparameters]):
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
        observation, action = task.observation_size, task.action_size
        generators = [replica.generator("weights") for replica in replicas]

        def actor() -> StackedGaussian:
            return StackedGaussian(
                generators, (observation, *c.actor_hidden_sizes, action), SQUASHED_LOG_STD_RANGE, dtype
            )

        def critics(count: int) -> StackedMLP:
            return StackedMLP(generators, (observation + action, *c.critic_hidden_sizes, 1), 2 * count, dtype)

        self.vae = StackedVAE(generators, (observation, c.vae_hidden_size, latent_size(task), action), dtype).to(device)
        networks = {"actor": actor(), "critics": critics(c.num_q), "cost_critics": critics(c.num_qc)}
        self.networks = nn.ModuleDict(networks).to(device)
        self.targets = nn.ModuleDict({"actor": actor(), "critics": critics(c.num_q), "cost_critics": critics(c.num_qc)})
        self.targets.to(device).requires_grad_(False)
        self.targets.load_state_dict(self.networks.state_dict())
        self.multiplier = PIDMultiplier(c.pid, discounted_limit(c, task, replicas).to(device, dtype))
        self.scalars = nn.ParameterDict({"log_alpha": torch.zeros_like(self.multiplier.threshold)}).requires_grad_(
            False
        )
        self.scalars["updates"] = nn.Parameter(torch.zeros((), device=device), requires_grad=False)
        net = self.networks
        self.vae_optimizer = adam([(c.vae_lr, self.vae.parameters())])
        self.critic_optimizer = adam([(c.critic_lr, [*net["critics"].parameters(), *net["cost_critics"].parameters()])])
        self.actor_optimizer = adam([(c.actor_lr, net["actor"].parameters())])

    def update(self, batch: Batch, noise: Batch) -> dict[str, Tensor]:
        """One gradient step, in OSRL's order: VAE, critics, actor and multipliers, targets.

        The reward and the cost critics step disjoint parameters towards targets from before their step, so one backward
        pass serves both.
        """
        c, net = self.config, self.networks
        observations = batch["observations"]
        rewards, costs, alive = scaled(batch, c)

        vae_loss = self.vae.loss(observations, batch["actions"], noise["vae"], c.vae_beta)
        minimise(self.vae_optimizer, vae_loss)

        following = batch["next_observations"]
        with torch.no_grad():
            mean, log_std = (repeated(part, c.sampled_actions) for part in self.targets["actor"](following))
            following = repeated(following, c.sampled_actions)
            target = self._next_value("critics", following, mean + log_std.exp() * noise["reward_target"])
            cost_target = self._next_value("cost_critics", following, mean + log_std.exp() * noise["cost_target"])
            backup = rewards + c.gamma * alive * target
            cost_backup = costs + c.gamma * (1 if c.cost_bootstrap_through_done else alive) * cost_target
        pairs = torch.cat([observations, batch["actions"]], -1)
        q_loss = critic_loss(net["critics"](pairs).squeeze(-1), backup)
        qc_loss = critic_loss(net["cost_critics"](pairs).squeeze(-1), cost_backup)
        minimise(self.critic_optimizer, q_loss + qc_loss)

        # The discrepancy compares actions before their tanh; the value is that of each state's first action.
        with torch.no_grad():
            latents = noise["vae_samples"].clamp(-LATENT_CLAMP, LATENT_CLAMP)
            proposed = self.vae.decode(repeated(observations, c.mmd_samples), latents)
        mean, log_std = net["actor"](observations)
        own = repeated(mean, c.mmd_samples) + repeated(log_std.exp(), c.mmd_samples) * noise["actor_samples"]
        mmd = discrepancy(
            proposed.unflatten(1, (-1, c.mmd_samples)), own.unflatten(1, (-1, c.mmd_samples)), c.kernel, c.mmd_sigma
        )
        pairs = torch.cat([observations, torch.tanh(own.unflatten(1, (-1, c.mmd_samples))[:, :, 0])], -1)
        reward_value = net["critics"](pairs).squeeze(-1).amin(1)
        cost_value = reduced(net["cost_critics"](pairs).squeeze(-1), c.cost_critic_reduction)
        multiplier, penalty = self.multiplier.penalise(cost_value)
        excess = (mmd - c.mmd_threshold).mean(1)
        alpha = self.scalars["log_alpha"].exp()
        seeks_reward = (self.scalars["updates"] >= c.policy_start).to(excess.dtype)
        actor_loss = alpha * excess - seeks_reward * reward_value.mean(1) + penalty
        minimise(self.actor_optimizer, actor_loss)
        with torch.no_grad():
            self.scalars["log_alpha"].add_(c.alpha_lr * alpha * excess.detach()).clamp_(
                -LOG_ALPHA_BOUND, LOG_ALPHA_BOUND
            )
            self.scalars["updates"].add_(1)
        polyak_update(self.targets.parameters(), net.parameters(), c.polyak)

        metrics = {
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
        return {name: value.detach() for name, value in metrics.items()}

    def _next_value(self, critics: str, following: Tensor, raw_actions: Tensor) -> Tensor:
        values = self.targets[critics](torch.cat([following, torch.tanh(raw_actions)], -1)).squeeze(-1)
        return mixed_target(values, self.config.target_mix, self.config.sampled_actions)

    def policies(self, replica: int) -> dict[str, Policy]:
        """One replica's policy: the mean action."""
        actor = self.networks["actor"]
        assert isinstance(actor, StackedGaussian)
        return {"bear-lag": MeanActionPolicy(actor.unstacked(replica))}

    def parts(self) -> dict[str, Any]:
        """Networks, targets, optimisers, both multipliers and the count of updates."""
        return {
            "vae": self.vae,
            "networks": self.networks,
            "targets": self.targets,
            "scalars": self.scalars,
            "multiplier": self.multiplier,
            "vae_optimizer": self.vae_optimizer,
            "critic_optimizer": self.critic_optimizer,
            "actor_optimizer": self.actor_optimizer,
        }

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        """The critics, as the actor's step reads them."""
        pairs = torch.cat([batch["observations"], batch["actions"]], -1)
        values, costs = (self.networks[name](pairs).squeeze(-1) for name in ("critics", "cost_critics"))
        return critics_on_held_out(
            batch, self.config, values.amin(1), reduced(costs, self.config.cost_critic_reduction)
        )


def discrepancy(one: Tensor, other: Tensor, kernel: str, sigma: float) -> Tensor:
    """The maximum mean discrepancy of two sets of S samples each: (R, B, S, dim) twice -> (R, B)."""

    def similarity(x: Tensor, y: Tensor) -> Tensor:
        difference = x.unsqueeze(3) - y.unsqueeze(2)
        distance = difference.square() if kernel == "gaussian" else difference.abs()
        return torch.exp(-distance.sum(-1) / (2 * sigma)).mean((2, 3))

    return (similarity(one, one) + similarity(other, other) - 2 * similarity(one, other) + 1e-6).sqrt()
