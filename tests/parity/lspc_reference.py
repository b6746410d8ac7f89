"""A deliberately plain, single-agent LSPC, transcribed from its written description, to compare an implementation with.

Nothing is stacked, fused or shared: it follows the description's six steps from top to bottom.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Settings:
    observation_size: int
    action_size: int
    max_action: float = 1.0
    hidden_sizes: tuple[int, int] = (256, 256)
    latent_dim: int = 32
    gamma: float = 0.99
    polyak: float = 0.005
    expectile: float = 0.7
    beta_r: float = 2.0
    beta_c: float = 2.0
    cap_r: float = 200.0
    cap_c: float = 200.0
    vae_beta: float = 0.5
    vae_clamp: float = 0.25
    max_latent: float = 0.25
    safety_threshold: float = 999.0
    actor_lr: float = 3e-4  # CVAE and latent safety encoder
    q_lr: float = 3e-4  # reward and cost Q critics
    v_lr: float = 3e-4  # V and Vc
    clamped_cost_value: bool = True  # in its own loss and in the advantage, as the authors have it


def make_mlp(inputs: int, hidden: tuple[int, int], outputs: int, dtype: torch.dtype) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden[0], dtype=dtype),
        nn.ReLU(),
        nn.Linear(hidden[0], hidden[1], dtype=dtype),
        nn.ReLU(),
        nn.Linear(hidden[1], outputs, dtype=dtype),
    )


class GaussianEncoder(nn.Module):
    def __init__(
        self, inputs: int, hidden: tuple[int, int], outputs: int, bounds: tuple[float, float], dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.bounds = bounds
        self.trunk = nn.Sequential(
            nn.Linear(inputs, hidden[0], dtype=dtype),
            nn.ReLU(),
            nn.Linear(hidden[0], hidden[1], dtype=dtype),
            nn.ReLU(),
        )
        self.mean = nn.Linear(hidden[1], outputs, dtype=dtype)
        self.log_std = nn.Linear(hidden[1], outputs, dtype=dtype)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(inputs)
        return self.mean(features), torch.clamp(self.log_std(features), self.bounds[0], self.bounds[1])


def expectile_loss(u: Tensor, tau: float) -> Tensor:
    """Mean over the batch of |tau - 1(u < 0)| u^2."""
    negative = (u < 0).to(u.dtype)
    return (torch.abs(tau - negative) * u**2).mean()


def polyak_step(target: nn.Module, online: nn.Module, rate: float) -> None:
    with torch.no_grad():
        for old, new in zip(target.parameters(), online.parameters(), strict=True):
            old.copy_((1.0 - rate) * old + rate * new)


def minimise(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


class ReferenceLSPC:
    def __init__(self, settings: Settings, dtype: torch.dtype = torch.float64) -> None:
        self.settings = settings
        s, a, z = settings.observation_size, settings.action_size, settings.latent_dim
        hidden = settings.hidden_sizes

        self.v = make_mlp(s, hidden, 1, dtype)
        self.q1 = make_mlp(s + a, hidden, 1, dtype)
        self.q2 = make_mlp(s + a, hidden, 1, dtype)
        self.vc = make_mlp(s, hidden, 1, dtype)
        self.qc1 = make_mlp(s + a, hidden, 1, dtype)
        self.qc2 = make_mlp(s + a, hidden, 1, dtype)
        self.encoder = GaussianEncoder(s + a, hidden, z, (-4.0, 15.0), dtype)
        self.decoder = make_mlp(s + z, hidden, a, dtype)  # without its tanh: see decode
        self.latent_encoder = GaussianEncoder(s, hidden, z, (-10.0, 2.0), dtype)

        self.q1_target = copy.deepcopy(self.q1).requires_grad_(False)
        self.q2_target = copy.deepcopy(self.q2).requires_grad_(False)
        self.qc1_target = copy.deepcopy(self.qc1).requires_grad_(False)
        self.qc2_target = copy.deepcopy(self.qc2).requires_grad_(False)

        adam = torch.optim.Adam
        self.v_optimizer = adam(self.v.parameters(), lr=settings.v_lr)
        self.q_optimizer = adam([*self.q1.parameters(), *self.q2.parameters()], lr=settings.q_lr)
        self.vc_optimizer = adam(self.vc.parameters(), lr=settings.v_lr)
        self.qc_optimizer = adam([*self.qc1.parameters(), *self.qc2.parameters()], lr=settings.q_lr)
        self.vae_optimizer = adam([*self.encoder.parameters(), *self.decoder.parameters()], lr=settings.actor_lr)
        self.latent_optimizer = adam(self.latent_encoder.parameters(), lr=settings.actor_lr)

    def decode(self, observations: Tensor, z: Tensor) -> Tensor:
        return self.settings.max_action * torch.tanh(self.decoder(torch.cat([observations, z], dim=-1)))

    def update(self, batch: dict[str, Tensor], noise: dict[str, Tensor]) -> dict[str, Tensor]:
        cfg = self.settings
        s, a, next_s = batch["observations"], batch["actions"], batch["next_observations"]
        r, c, done = batch["rewards"], batch["costs"], batch["done"]
        sa = torch.cat([s, a], dim=-1)

        # Both bootstraps come from before any update of this step.
        with torch.no_grad():
            next_v = self.v(next_s).squeeze(-1)
            next_vc = torch.clamp(self.vc(next_s).squeeze(-1), min=0.0)

        # 1. V
        with torch.no_grad():
            q = torch.minimum(self.q1_target(sa), self.q2_target(sa)).squeeze(-1)
        adv = q - self.v(s).squeeze(-1)
        v_loss = expectile_loss(adv, cfg.expectile)
        minimise(v_loss, self.v_optimizer)

        # 2. Q, then its targets
        q_goal = r + cfg.gamma * (1.0 - done) * next_v
        q_loss = (F.mse_loss(self.q1(sa).squeeze(-1), q_goal) + F.mse_loss(self.q2(sa).squeeze(-1), q_goal)) / 2.0
        minimise(q_loss, self.q_optimizer)
        polyak_step(self.q1_target, self.q1, cfg.polyak)
        polyak_step(self.q2_target, self.q2, cfg.polyak)

        # 3. Vc, and the safety mask
        with torch.no_grad():
            qc = torch.clamp(torch.maximum(self.qc1_target(sa), self.qc2_target(sa)).squeeze(-1), min=0.0)
        vc = self.vc(s).squeeze(-1)
        if cfg.clamped_cost_value:
            vc = torch.clamp(vc, min=0.0)
        cost_adv = -(qc - vc)
        vc_loss = expectile_loss(cost_adv, cfg.expectile)
        minimise(vc_loss, self.vc_optimizer)
        mask = ((torch.clamp(vc.detach(), min=0.0) < cfg.safety_threshold) & (qc < cfg.safety_threshold)).to(qc.dtype)

        # 4. Qc, then its targets
        qc_goal = c + cfg.gamma * (1.0 - done) * next_vc
        qc_loss = (F.mse_loss(self.qc1(sa).squeeze(-1), qc_goal) + F.mse_loss(self.qc2(sa).squeeze(-1), qc_goal)) / 2.0
        minimise(qc_loss, self.qc_optimizer)
        polyak_step(self.qc1_target, self.qc1, cfg.polyak)
        polyak_step(self.qc2_target, self.qc2, cfg.polyak)

        # 5. CVAE
        vae_weight = torch.clamp(torch.exp(cfg.beta_c * cost_adv.detach()), max=cfg.cap_c) * mask
        mean, log_std = self.encoder(sa)
        std = torch.exp(log_std)
        recon = self.decode(s, mean + std * noise["vae"])
        kl = -cfg.vae_beta * 0.5 * (1.0 + torch.log(std**2) - mean**2 - std**2).mean(dim=-1)
        vae_loss = (vae_weight * (((recon - a) ** 2).sum(dim=-1) + kl)).mean()
        minimise(vae_loss, self.vae_optimizer)

        # 6. Latent safety encoder, through the decoder that step 5 has just updated
        latent_weight = torch.clamp(torch.exp(cfg.beta_r * adv.detach()), max=cfg.cap_r)
        mu, log_sigma = self.latent_encoder(s)
        u = mu + torch.exp(log_sigma) * noise["latent"]
        a_hat = self.decode(s, torch.tanh(u) * cfg.max_latent)
        latent_loss = (latent_weight * ((a_hat - a) ** 2).sum(dim=-1)).mean()
        minimise(latent_loss, self.latent_optimizer)
        self.vae_optimizer.zero_grad()  # step 6 also left gradients in the decoder, which must never be stepped

        losses = {"v_loss": v_loss, "q_loss": q_loss, "vc_loss": vc_loss, "qc_loss": qc_loss}
        losses |= {"vae_loss": vae_loss, "latent_loss": latent_loss}
        return {name: loss.detach() for name, loss in losses.items()}

    @torch.no_grad()
    def act_safe(self, observations: Tensor, z_noise: Tensor) -> Tensor:
        return self.decode(observations, torch.clamp(z_noise, -self.settings.vae_clamp, self.settings.vae_clamp))

    @torch.no_grad()
    def act_optimised(self, observations: Tensor, u_noise: Tensor) -> Tensor:
        mu, log_sigma = self.latent_encoder(observations)
        u = mu + torch.exp(log_sigma) * u_noise
        return self.decode(observations, torch.tanh(u) * self.settings.max_latent)
