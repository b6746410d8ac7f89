"""A deliberately plain, single-agent FISOR, transcribed from its written description, in float64.

Nothing is stacked, fused or shared, so that an implementation can be compared with it. A batch maps `observations` and
`next_observations` (B, S), `actions` (B, A), `rewards`, `costs` and `done` (B,) to tensors. The step scales rewards,
makes the constraint signal from costs and clips actions; doing the last two again changes nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Settings:
    observation_size: int
    action_size: int
    critic_hidden_sizes: tuple[int, int] = (256, 256)
    frequencies: int = 32
    time_size: int = 128
    width: int = 256
    expansion: int = 4  # a block's inner layer is this many times as wide
    blocks: int = 3
    dropout: float = 0.1
    layer_norm_eps: float = 1e-6
    diffusion_steps: int = 5
    candidates: int = 16
    actor_rows: int = 1024  # of each of the two actor updates of a step
    critic_rows: int = 256
    gamma: float = 0.99
    polyak: float = 0.005
    actor_polyak: float = 0.001
    expectile: float = 0.9
    cost_temperature: float = 5.0
    reward_temperature: float = 3.0
    cost_cap: float = 150.0
    cost_floor: float = 0.0  # 1 on the authors' branch for MetaDrive
    reward_cap: float = 100.0
    critic_lr: float = 3e-4
    value_lr: float = 3e-4
    actor_lr: float = 3e-4
    actor_schedule_updates: int = 3_000_000  # actor updates, of which a step makes two
    reward_scale: float = 1.0  # T / (largest - smallest episode return of the task)
    unsafe_signal: float = 25.0
    safe_signal: float = -1.0
    action_limit: float = 1.0 - 1e-5


def reward_scale(horizon: int, smallest_return: float, largest_return: float) -> float:
    return horizon / (largest_return - smallest_return)


def noise_schedule(steps: int) -> tuple[list[float], list[float], list[float]]:
    """beta_t, alpha_t and abar_t for t = 1..steps; the list's index is t - 1."""
    betas = [1.0 - math.exp(-0.1 / steps - 0.5 * 9.9 * (2 * t - 1) / steps**2) for t in range(1, steps + 1)]
    alphas = [1.0 - beta for beta in betas]
    return betas, alphas, [math.prod(alphas[: t + 1]) for t in range(steps)]


def mish(x: Tensor) -> Tensor:
    return x * torch.tanh(F.softplus(x))


def make_mlp(inputs: int, hidden: tuple[int, int]) -> nn.Sequential:
    layers = [nn.Linear(inputs, hidden[0]), nn.Linear(hidden[0], hidden[1]), nn.Linear(hidden[1], 1)]
    for layer in layers:
        initialise_glorot(layer)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).double()


@torch.no_grad()
def initialise_glorot(layer: nn.Linear) -> None:
    nn.init.xavier_uniform_(layer.weight)
    layer.bias.zero_()


@torch.no_grad()
def initialise_lecun(layer: nn.Linear) -> None:
    """A normal truncated at two deviations, of variance 1/fan-in after the truncation."""
    scale = math.sqrt(1.0 / layer.in_features) / 0.87962566103423978
    nn.init.trunc_normal_(layer.weight, std=scale, a=-2.0 * scale, b=2.0 * scale)
    layer.bias.zero_()


class Block(nn.Module):
    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(settings.width, eps=settings.layer_norm_eps)
        self.expand = nn.Linear(settings.width, settings.expansion * settings.width)
        self.contract = nn.Linear(settings.expansion * settings.width, settings.width)
        initialise_lecun(self.expand)
        initialise_lecun(self.contract)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        dropped = x if mask is None else x * mask
        return x + self.contract(mish(self.expand(self.norm(dropped))))


class NoisePredictor(nn.Module):
    """eps(s, a_t, t) for integer t from 0."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(0.2 * torch.randn(settings.frequencies))
        self.time_first = nn.Linear(2 * settings.frequencies, settings.time_size)
        self.time_second = nn.Linear(settings.time_size, settings.time_size)
        inputs = settings.action_size + settings.observation_size + settings.time_size
        self.input = nn.Linear(inputs, settings.width)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.blocks))
        self.output = nn.Linear(settings.width, settings.action_size)
        for layer in (self.time_first, self.time_second, self.input, self.output):
            initialise_glorot(layer)
        self.double()

    def forward(
        self, observations: Tensor, noisy_actions: Tensor, times: Tensor, masks: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Predicted noise (B, A). `masks`, one (B, width) a block, multiply a block's input: 0 or 1/(1 - dropout)."""
        angles = 2.0 * math.pi * times.double().unsqueeze(-1) * self.frequencies
        features = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
        condition = self.time_second(mish(self.time_first(features)))
        x = self.input(torch.cat([noisy_actions, observations, condition], dim=-1))
        for number, block in enumerate(self.blocks):
            x = block(x, None if masks is None else masks[number])
        return self.output(mish(x))


def either(condition: Tensor, yes: float, no: float) -> Tensor:
    """As torch.where, which would round two plain numbers to float32."""
    return torch.where(condition, torch.tensor(yes, dtype=torch.float64), torch.tensor(no, dtype=torch.float64))


def evaluate_pairs(critics: nn.ModuleList, observations: Tensor, actions: Tensor) -> Tensor:
    """Values (networks, B)."""
    pairs = torch.cat([observations, actions], dim=-1)
    return torch.stack([critic(pairs).squeeze(-1) for critic in critics])


@torch.no_grad()
def polyak_step(target: nn.Module, online: nn.Module, rate: float) -> None:
    for old, new in zip(target.parameters(), online.parameters(), strict=True):
        old.copy_(old + rate * (new - old))


def minimise(loss: Tensor, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def cosine_rate(initial: float, updates_before: int, length: int) -> float:
    """The learning rate of an update that follows `updates_before` others."""
    return initial * 0.5 * (1.0 + math.cos(math.pi * min(updates_before, length) / length))


def regression_weights(q: Tensor, v: Tensor, g: Tensor, u: Tensor, settings: Settings) -> Tensor:
    """Reward-weighted where state and action are feasible, safety-weighted where the state is not, else nothing."""
    weights = []
    for q_i, v_i, g_i, u_i in zip(q.tolist(), v.tolist(), g.tolist(), u.tolist(), strict=True):
        if u_i > 0:
            power = min(settings.cost_temperature * (u_i - g_i), 700.0)  # the exponential is finite up to there
            weights.append(min(max(math.exp(power), settings.cost_floor), settings.cost_cap))
        elif g_i <= 0:
            power = min(settings.reward_temperature * (q_i - v_i), 700.0)
            weights.append(min(math.exp(power), settings.reward_cap))
        else:
            weights.append(0.0)
    return torch.tensor(weights, dtype=torch.float64)


class ReferenceFISOR:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        s, a, hidden = settings.observation_size, settings.action_size, settings.critic_hidden_sizes
        self.critics = nn.ModuleList(make_mlp(s + a, hidden) for _ in range(2))  # Q
        self.value = make_mlp(s, hidden)  # V
        self.safety_critics = nn.ModuleList(make_mlp(s + a, hidden) for _ in range(2))  # H
        self.safety_value = make_mlp(s, hidden)  # W
        self.actor = NoisePredictor(settings)
        self.critics_target = copy.deepcopy(self.critics).requires_grad_(False)
        self.safety_critics_target = copy.deepcopy(self.safety_critics).requires_grad_(False)
        self.actor_target = copy.deepcopy(self.actor).requires_grad_(False)
        self.betas, self.alphas, self.abars = noise_schedule(settings.diffusion_steps)

        adam = torch.optim.Adam
        self.critics_optimizer = adam(self.critics.parameters(), lr=settings.critic_lr)
        self.value_optimizer = adam(self.value.parameters(), lr=settings.value_lr)
        self.safety_critics_optimizer = adam(self.safety_critics.parameters(), lr=settings.critic_lr)
        self.safety_value_optimizer = adam(self.safety_value.parameters(), lr=settings.value_lr)
        self.actor_optimizer = adam(self.actor.parameters(), lr=settings.actor_lr)
        self.actor_updates = 0

    def update_actor(
        self, observations: Tensor, actions: Tensor, times: Tensor, e: Tensor, masks: Sequence[Tensor] | None
    ) -> float:
        cfg = self.settings
        abar = torch.tensor(self.abars, dtype=torch.float64)[times].unsqueeze(-1)
        noisy = torch.sqrt(abar) * actions + torch.sqrt(1.0 - abar) * e
        with torch.no_grad():
            q = evaluate_pairs(self.critics_target, observations, actions).amin(dim=0)
            v = self.value(observations).squeeze(-1)
            g = evaluate_pairs(self.safety_critics_target, observations, actions).amax(dim=0)
            u = self.safety_value(observations).squeeze(-1)
            weights = regression_weights(q, v, g, u, cfg)
        errors = ((self.actor(observations, noisy, times, masks) - e) ** 2).sum(dim=-1)
        rate = cosine_rate(cfg.actor_lr, self.actor_updates, cfg.actor_schedule_updates)
        self.actor_optimizer.param_groups[0]["lr"] = rate
        loss = minimise((weights * errors).mean(), self.actor_optimizer)
        polyak_step(self.actor_target, self.actor, cfg.actor_polyak)
        self.actor_updates += 1
        return loss

    def step(self, batch: Batch, noise: Mapping[str, Sequence[Tensor]]) -> dict[str, float]:
        """One update: the actor twice, then V, Q, W and H.

        For each of the two actor updates `noise` holds "times", integers 0 to 4 (actor_rows,), and "normals"
        (actor_rows, A), in drawing order times, normals, times, normals; and, where dropout is on, "masks": a tensor
        (actor_rows, width) a block, the first update's blocks and then the second's, each 0 or 1/(1 - dropout).
        """
        cfg = self.settings
        rows = cfg.actor_rows
        a = batch["actions"].clamp(-cfg.action_limit, cfg.action_limit)
        assert len(a) >= max(2 * rows, cfg.critic_rows)

        # 1. Actor, twice
        losses = {}
        for number, part in enumerate((slice(0, rows), slice(rows, 2 * rows))):
            masks = None
            if "masks" in noise:
                masks = noise["masks"][number * cfg.blocks : (number + 1) * cfg.blocks]
            times, e = noise["times"][number], noise["normals"][number]
            losses[f"actor_loss_{number + 1}"] = self.update_actor(
                batch["observations"][part], a[part], times, e, masks
            )

        # The critics see the first rows only.
        few = slice(0, cfg.critic_rows)
        s, next_s, a = batch["observations"][few], batch["next_observations"][few], a[few]
        r, mask = cfg.reward_scale * batch["rewards"][few], 1.0 - batch["done"][few]
        h = either(batch["costs"][few] > 0, cfg.unsafe_signal, cfg.safe_signal)

        # 2. V
        with torch.no_grad():
            q = evaluate_pairs(self.critics_target, s, a).amin(dim=0)
        diff = q - self.value(s).squeeze(-1)
        weight = either(diff > 0, cfg.expectile, 1.0 - cfg.expectile)
        losses["value_loss"] = minimise((weight * diff**2).mean(), self.value_optimizer)

        # 3. Q, with V as just updated
        with torch.no_grad():
            goal = r + cfg.gamma * mask * self.value(next_s).squeeze(-1)
        loss = ((evaluate_pairs(self.critics, s, a) - goal) ** 2).mean()
        losses["critic_loss"] = minimise(loss, self.critics_optimizer)
        polyak_step(self.critics_target, self.critics, cfg.polyak)

        # 4. W leans low: the best reachable value
        with torch.no_grad():
            g = evaluate_pairs(self.safety_critics_target, s, a).amax(dim=0)
        diff = g - self.safety_value(s).squeeze(-1)
        weight = either(diff < 0, cfg.expectile, 1.0 - cfg.expectile)
        losses["safety_value_loss"] = minimise((weight * diff**2).mean(), self.safety_value_optimizer)

        # 5. H, with W as just updated
        with torch.no_grad():
            following = torch.maximum(h, self.safety_value(next_s).squeeze(-1))
            goal = mask * ((1.0 - cfg.gamma) * h + cfg.gamma * following) + (1.0 - mask) * h
        loss = ((evaluate_pairs(self.safety_critics, s, a) - goal) ** 2).mean()
        losses["safety_critic_loss"] = minimise(loss, self.safety_critics_optimizer)
        polyak_step(self.safety_critics_target, self.safety_critics, cfg.polyak)
        return losses

    @torch.no_grad()
    def denoise(self, observations: Tensor, noise: Sequence[Tensor]) -> Tensor:
        """Actions (rows, A) from the slow copy. `noise`: the start, then what t = 5, 4, 3, 2 add, each (rows, A)."""
        x = noise[0]
        steps = self.settings.diffusion_steps
        assert len(noise) == steps
        for t in range(steps, 0, -1):
            beta, alpha, abar = self.betas[t - 1], self.alphas[t - 1], self.abars[t - 1]
            times = torch.full((len(x),), t - 1)
            predicted = self.actor_target(observations, x, times)
            x = (x - beta / math.sqrt(1.0 - abar) * predicted) / math.sqrt(alpha)
            if t > 1:
                x = x + math.sqrt(beta) * noise[steps - t + 1]
            x = x.clamp(-1.0, 1.0)
        return x

    @torch.no_grad()
    def act(self, observation: Tensor, noise: Sequence[Tensor]) -> Tensor:
        """The action (A,) at an observation (S,): the safest of the candidates. `noise`: five normals (16, A)."""
        observations = observation.expand(self.settings.candidates, -1)
        candidates = self.denoise(observations, noise)
        danger = evaluate_pairs(self.safety_critics_target, observations, candidates).amax(dim=0)
        return candidates[int(danger.argmin())]
