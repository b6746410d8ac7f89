"""The conditional variational auto-encoder of actions that BCQ-Lag, BEAR-Lag and CPQ share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from algorithms.parts.losses import gaussian_kl, per_replica_mean
from algorithms.parts.networks import Builder
from harness.tasks import Task

LATENT_CLAMP = 0.5
"""OSRL clamps the latents of actions that a VAE proposes to this, elementwise."""


def latent_size(task: Task) -> int:
    """OSRL's VAEs have two latent dimensions for each of the action."""
    return 2 * task.action_size


class StackedVAE(nn.Module):
    """R conditional variational auto-encoders of actions, as OSRL has them (``VAE`` in ``osrl/common/net.py``).

    Args:
        build: makes its networks.
        task: whose actions.
        hidden: width of two hidden layers each way.
    """

    def __init__(self, build: Builder, task: Task, hidden: int) -> None:
        super().__init__()
        observation, action, self.latent_size = task.observation_size, task.action_size, latent_size(task)
        sizes = (observation + action, hidden, hidden, self.latent_size)
        self.encoder = build.gaussian(*sizes, log_std_range=(-4.0, 15.0))
        self.decoder = build.mlp(observation + self.latent_size, hidden, hidden, action)

    def encode(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of the latent, (R, B, latent) each."""
        mean, log_std = self.encoder(torch.cat([observations, actions], -1))
        return mean, log_std

    def decode(self, observations: Tensor, latents: Tensor) -> Tensor:
        """Actions before their tanh, (R, B, action)."""
        return self.decoder(torch.cat([observations, latents], -1))  # type: ignore[no-any-return]

    def loss(self, observations: Tensor, actions: Tensor, noise: Tensor, beta: float) -> Tensor:
        """Mean squared reconstruction error plus ``beta`` times the mean KL term: (R,).

        Args:
            noise: (R, B, latent) of the reparameterisation.
        """
        mean, log_std = self.encode(observations, actions)
        reconstruction = torch.tanh(self.decode(observations, mean + log_std.exp() * noise))
        error = (reconstruction - actions).square()
        return per_replica_mean(error) + beta * per_replica_mean(gaussian_kl(mean, log_std))
