"""Deliberately plain, single-agent CAPS with its two backbones, transcribed from its written description.

Nothing is stacked, fused or shared, so that an implementation can be compared with it. A batch maps `observations` and
`next_observations` (B, S), `actions` (B, A), `rewards`, `costs` and `done` (B,) to tensors; rewards and costs are raw,
and the step multiplies them by the settings' scales.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class IQLSettings:
    observation_size: int
    action_size: int
    heads: int = 2
    hidden_sizes: tuple[int, int] = (512, 512)
    gamma: float = 0.99
    polyak: float = 0.005
    tau: float = 0.7
    tau_c: float = 0.7
    beta: float = 3.0
    beta_c: float = 3.0
    cap: float = 100.0
    critic_lr: float = 3e-4
    value_lr: float = 3e-4
    actor_lr: float = 3e-4
    actor_schedule_steps: int = 1_000_000
    reward_scale: float = 0.1
    cost_scale: float = 1.0


@dataclass(frozen=True)
class SACSettings:
    observation_size: int
    action_size: int
    heads: int = 2
    hidden_sizes: tuple[int, int] = (512, 512)
    critics: int = 4
    gamma: float = 0.99
    polyak: float = 0.005
    bc_scale: float = 2.5  # lambda_k = bc_scale / mean|mix_k|
    initial_alpha: float = 0.1
    actor_lr: float = 1e-4
    critic_lr: float = 1e-3
    alpha_lr: float = 1e-4
    reward_scale: float = 0.1
    cost_scale: float = 1.0


def make_trunk(inputs: int, hidden: tuple[int, int]) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden[0]), nn.ReLU(), nn.Linear(hidden[0], hidden[1]), nn.ReLU()).double()


def make_mlp(inputs: int, hidden: tuple[int, int], outputs: int) -> nn.Sequential:
    return nn.Sequential(*make_trunk(inputs, hidden), nn.Linear(hidden[1], outputs)).double()


def make_critics(number: int, inputs: int, hidden: tuple[int, int]) -> nn.ModuleList:
    return nn.ModuleList(make_mlp(inputs, hidden, 1) for _ in range(number))


def evaluate_critics(critics: nn.ModuleList, observations: Tensor, actions: Tensor) -> list[Tensor]:
    """The value (B,) that each critic gives to the pairs."""
    pairs = torch.cat([observations, actions], dim=-1)
    return [critic(pairs).squeeze(-1) for critic in critics]


def smallest(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).amin(dim=0)


def expectile_loss(u: Tensor, tau: float) -> Tensor:
    """Mean over the batch of |tau - 1(u < 0)| u^2."""
    return (torch.abs(tau - (u < 0).double()) * u**2).mean()


def minimise(loss: Tensor, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def polyak_step(target: nn.Module, online: nn.Module, rate: float) -> None:
    for old, new in zip(target.parameters(), online.parameters(), strict=True):
        old.copy_((1.0 - rate) * old + rate * new)


def cosine_rate(initial: float, updates_before: int, length: int) -> float:
    """The learning rate of an update that follows `updates_before` others."""
    return initial * 0.5 * (1.0 + math.cos(math.pi * updates_before / length))


def head_weights(w_r: Tensor, w_c: Tensor, heads: int) -> list[Tensor]:
    """The K weights (B,) of the regression: reward alone, mixtures, cost alone."""
    between = [w_r + (2.0 * k / (heads - 1)) * w_c for k in range(1, heads - 1)]
    return [w_r, *between, w_c]


def mixtures(q: Tensor, qc: Tensor, heads: int) -> list[Tensor]:
    """What each of the K heads of the SAC backbone maximises: reward alone, mixtures, cost alone, each (B,)."""
    return [q + (2.0 * k / (heads - 1)) * qc for k in range(heads - 1)] + [qc]


def cost_threshold(budget: float, steps_left: int, gamma: float) -> float:
    """The remaining budget as a discounted cost return over the steps that are left."""
    return max(budget, 0.0) * (1.0 - gamma**steps_left) / ((1.0 - gamma) * steps_left)


def choose_head(rewards: Sequence[float], costs: Sequence[float], threshold: float, clamp_costs: bool) -> int:
    """The feasible head with the largest reward estimate, or the head with the smallest cost estimate if none is."""
    compared = [max(cost, 0.0) if clamp_costs else cost for cost in costs]
    feasible = [k for k, cost in enumerate(compared) if cost < threshold]
    if feasible:
        return max(feasible, key=lambda k: rewards[k])
    return min(range(len(costs)), key=lambda k: costs[k])


def act_within_budget(
    candidates: Tensor,
    observation: Tensor,
    critics: nn.ModuleList,
    cost_critics: nn.ModuleList,
    threshold: float,
    clamp_costs: bool,
) -> tuple[Tensor, int]:
    """The chosen row of `candidates` (K, A) at one observation (S,), and its number."""
    observations = observation.expand(len(candidates), -1)
    rewards = smallest(evaluate_critics(critics, observations, candidates)).tolist()
    costs = (-smallest(evaluate_critics(cost_critics, observations, candidates))).tolist()
    head = choose_head(rewards, costs, threshold, clamp_costs)
    return candidates[head], head


class HeadsActor(nn.Module):
    """K deterministic heads on one trunk; their variance is 1 throughout."""

    def __init__(self, settings: IQLSettings) -> None:
        super().__init__()
        self.trunk = make_trunk(settings.observation_size, settings.hidden_sizes)
        self.heads = nn.ModuleList(
            nn.Linear(settings.hidden_sizes[1], settings.action_size).double() for _ in range(settings.heads)
        )

    def forward(self, observations: Tensor) -> list[Tensor]:
        """The mean (B, A) of every head."""
        features = self.trunk(observations)
        return [torch.tanh(head(features)) for head in self.heads]


class ReferenceCapsIQL:
    """CAPS(IQL): float64, on the CPU."""

    def __init__(self, settings: IQLSettings) -> None:
        self.settings = settings
        s, a, hidden = settings.observation_size, settings.action_size, settings.hidden_sizes
        self.critics = make_critics(2, s + a, hidden)
        self.cost_critics = make_critics(2, s + a, hidden)  # of the return of -c
        self.value = make_mlp(s, hidden, 1)
        self.cost_value = make_mlp(s, hidden, 1)
        self.actor = HeadsActor(settings)
        self.critics_target = copy.deepcopy(self.critics).requires_grad_(False)
        self.cost_critics_target = copy.deepcopy(self.cost_critics).requires_grad_(False)

        adam = torch.optim.Adam
        self.critics_optimizer = adam(self.critics.parameters(), lr=settings.critic_lr)
        self.cost_critics_optimizer = adam(self.cost_critics.parameters(), lr=settings.critic_lr)
        self.value_optimizer = adam(self.value.parameters(), lr=settings.value_lr)
        self.cost_value_optimizer = adam(self.cost_value.parameters(), lr=settings.value_lr)
        self.actor_optimizer = adam(self.actor.parameters(), lr=settings.actor_lr)
        self.updates = 0

    def step(self, batch: Batch, noise: Sequence[Tensor] = ()) -> dict[str, float]:
        """One update. It draws no noise."""
        assert not noise
        cfg = self.settings
        s, a, next_s, done = batch["observations"], batch["actions"], batch["next_observations"], batch["done"]
        r, c = cfg.reward_scale * batch["rewards"], cfg.cost_scale * batch["costs"]

        # 0. Both bootstraps, before any update.
        with torch.no_grad():
            next_v = self.value(next_s).squeeze(-1)
            next_u = self.cost_value(next_s).squeeze(-1)

        # 1. Values
        with torch.no_grad():
            q = smallest(evaluate_critics(self.critics_target, s, a))
            qc = smallest(evaluate_critics(self.cost_critics_target, s, a))
        adv_r = q - self.value(s).squeeze(-1)
        value_loss = minimise(expectile_loss(adv_r, cfg.tau), self.value_optimizer)
        adv_c = qc - self.cost_value(s).squeeze(-1)
        cost_value_loss = minimise(expectile_loss(adv_c, cfg.tau_c), self.cost_value_optimizer)

        # 2. Critics
        goal = r + cfg.gamma * (1.0 - done) * next_v
        first, second = evaluate_critics(self.critics, s, a)
        loss = (F.mse_loss(first, goal) + F.mse_loss(second, goal)) / 2.0
        critic_loss = minimise(loss, self.critics_optimizer)
        cost_goal = -c + cfg.gamma * (1.0 - done) * next_u
        first, second = evaluate_critics(self.cost_critics, s, a)
        loss = (F.mse_loss(first, cost_goal) + F.mse_loss(second, cost_goal)) / 2.0
        cost_critic_loss = minimise(loss, self.cost_critics_optimizer)

        # 3. Actor
        w_r = torch.clamp(torch.exp(cfg.beta * adv_r.detach()), max=cfg.cap)
        w_c = torch.clamp(torch.exp(cfg.beta_c * adv_c.detach()), max=cfg.cap)
        weights = head_weights(w_r, w_c, cfg.heads)
        nlls = [0.5 * ((a - mean) ** 2).sum(dim=-1) for mean in self.actor(s)]
        per_head = [(weight * nll).mean() for weight, nll in zip(weights, nlls, strict=True)]
        rate = cosine_rate(cfg.actor_lr, self.updates, cfg.actor_schedule_steps)
        self.actor_optimizer.param_groups[0]["lr"] = rate
        actor_loss = minimise(torch.stack(per_head).sum() / cfg.heads, self.actor_optimizer)

        # 4. Targets
        polyak_step(self.critics_target, self.critics, cfg.polyak)
        polyak_step(self.cost_critics_target, self.cost_critics, cfg.polyak)
        self.updates += 1
        return {
            "value_loss": value_loss,
            "cost_value_loss": cost_value_loss,
            "critic_loss": critic_loss,
            "cost_critic_loss": cost_critic_loss,
            "actor_loss": actor_loss,
        }

    @torch.no_grad()
    def act(self, observation: Tensor, budget: float, step: int, horizon: int) -> tuple[Tensor, int]:
        """The action (A,) at an observation (S,), `step` steps into an episode of `horizon` steps, and its head.

        `budget` is what is left of the cost limit; it may be negative.
        """
        candidates = torch.cat([mean.clamp(-1.0, 1.0) for mean in self.actor(observation.unsqueeze(0))])
        threshold = cost_threshold(budget, horizon - step, self.settings.gamma)
        return act_within_budget(candidates, observation, self.critics, self.cost_critics, threshold, clamp_costs=False)


class SquashedHeadsActor(nn.Module):
    """K tanh-squashed Gaussian heads on one trunk."""

    def __init__(self, settings: SACSettings) -> None:
        super().__init__()
        width, a = settings.hidden_sizes[1], settings.action_size
        self.trunk = make_trunk(settings.observation_size, settings.hidden_sizes)
        self.means = nn.ModuleList(nn.Linear(width, a).double() for _ in range(settings.heads))
        self.log_stds = nn.ModuleList(nn.Linear(width, a).double() for _ in range(settings.heads))

    def forward(self, observations: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The mean and log_std (B, A) of every head, before the tanh."""
        features = self.trunk(observations)
        return [
            (mean(features), torch.clamp(log_std(features), -20.0, 2.0))
            for mean, log_std in zip(self.means, self.log_stds, strict=True)
        ]


def squashed_sample(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """tanh(mean + std noise) (B, A) and the logarithm of its density (B,)."""
    u = mean + torch.exp(log_std) * noise
    log_normal = -0.5 * noise**2 - log_std - 0.5 * math.log(2.0 * math.pi)
    log_slope = 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u))  # log(1 - tanh(u)^2)
    return torch.tanh(u), (log_normal - log_slope).sum(dim=-1)


class ReferenceCapsSAC:
    """CAPS(SAC+BC): float64, on the CPU."""

    def __init__(self, settings: SACSettings) -> None:
        self.settings = settings
        s, a, hidden = settings.observation_size, settings.action_size, settings.hidden_sizes
        self.critics = make_critics(settings.critics, s + a, hidden)
        self.cost_critics = make_critics(settings.critics, s + a, hidden)  # of the return of -c
        self.actor = SquashedHeadsActor(settings)
        self.log_alpha = torch.tensor(math.log(settings.initial_alpha), dtype=torch.float64, requires_grad=True)
        self.critics_target = copy.deepcopy(self.critics).requires_grad_(False)
        self.cost_critics_target = copy.deepcopy(self.cost_critics).requires_grad_(False)

        adam = torch.optim.Adam
        self.critics_optimizer = adam(self.critics.parameters(), lr=settings.critic_lr)
        self.cost_critics_optimizer = adam(self.cost_critics.parameters(), lr=settings.critic_lr)
        self.actor_optimizer = adam(self.actor.parameters(), lr=settings.actor_lr)
        self.alpha_optimizer = adam([self.log_alpha], lr=settings.alpha_lr)

    def critic_loss(
        self, critics: nn.ModuleList, targets: nn.ModuleList, signal: Tensor, batch: Batch, noise: Sequence[Tensor]
    ) -> Tensor:
        """(1/K) sum over heads and sum over networks of the mean squared errors; one noise (B, A) a head."""
        cfg = self.settings
        s, a, next_s, done = batch["observations"], batch["actions"], batch["next_observations"], batch["done"]
        alpha = self.log_alpha.detach().exp()
        total = torch.zeros((), dtype=torch.float64)
        with torch.no_grad():
            heads = self.actor(next_s)
        for (mean, log_std), e in zip(heads, noise, strict=True):
            with torch.no_grad():
                next_a, log_pi = squashed_sample(mean, log_std, e)
                bootstrap = smallest(evaluate_critics(targets, next_s, next_a))
                # The entropy term stands outside gamma and (1 - d).
                goal = signal + cfg.gamma * (1.0 - done) * bootstrap - alpha * log_pi
            for value in evaluate_critics(critics, s, a):
                total = total + F.mse_loss(value, goal)
        return total / cfg.heads

    def step(self, batch: Batch, noise: Sequence[Tensor]) -> dict[str, float]:
        """One update.

        `noise` holds 3 K standard normals (B, A) in drawing order: each head's next action for the reward critics,
        each head's next action for the cost critics, each head's action for the actor.
        """
        cfg = self.settings
        k = cfg.heads
        assert len(noise) == 3 * k
        s, a = batch["observations"], batch["actions"]
        r, c = cfg.reward_scale * batch["rewards"], cfg.cost_scale * batch["costs"]

        # 1. and 2. Critics
        loss = self.critic_loss(self.critics, self.critics_target, r, batch, noise[:k])
        critic_loss = minimise(loss, self.critics_optimizer)
        loss = self.critic_loss(self.cost_critics, self.cost_critics_target, -c, batch, noise[k : 2 * k])
        cost_critic_loss = minimise(loss, self.cost_critics_optimizer)

        # 3. Actor, through the critics just updated
        alpha = self.log_alpha.detach().exp()
        total = torch.zeros((), dtype=torch.float64)
        log_pis = []
        for head, ((mean, log_std), e) in enumerate(zip(self.actor(s), noise[2 * k :], strict=True)):
            action, log_pi = squashed_sample(mean, log_std, e)
            q = smallest(evaluate_critics(self.critics, s, action))
            qc = smallest(evaluate_critics(self.cost_critics, s, action))
            mix = mixtures(q, qc, k)[head]
            scale = cfg.bc_scale / mix.abs().mean().detach()
            total = total + (alpha * log_pi).mean() - scale * mix.mean() + ((action - a) ** 2).mean()
            log_pis.append(log_pi.detach())
        actor_loss = minimise(total, self.actor_optimizer)

        # 4. Temperature, from the same samples
        target_entropy = -float(cfg.action_size)
        gaps = [(self.log_alpha.exp() * (-log_pi - target_entropy)).mean() for log_pi in log_pis]
        alpha_loss = minimise(torch.stack(gaps).sum(), self.alpha_optimizer)

        # 5. Targets
        polyak_step(self.critics_target, self.critics, cfg.polyak)
        polyak_step(self.cost_critics_target, self.cost_critics, cfg.polyak)
        return {
            "critic_loss": critic_loss,
            "cost_critic_loss": cost_critic_loss,
            "actor_loss": actor_loss,
            "alpha_loss": alpha_loss,
            "alpha": float(self.log_alpha.detach().exp()),
        }

    @torch.no_grad()
    def act(self, observation: Tensor, budget: float, step: int, horizon: int) -> tuple[Tensor, int]:
        """As ReferenceCapsIQL.act; with the budget spent no head is ever feasible."""
        heads = self.actor(observation.unsqueeze(0))
        candidates = torch.cat([torch.tanh(mean).clamp(-1.0, 1.0) for mean, _ in heads])
        threshold = cost_threshold(budget, horizon - step, self.settings.gamma)
        return act_within_budget(candidates, observation, self.critics, self.cost_critics, threshold, clamp_costs=True)
