"""A deliberately plain, single-agent CCAC, transcribed from its written description, in float64.

Nothing is stacked, fused or shared, so that an implementation can be compared with it. A batch maps `observations` and
`next_observations` (B, S), `actions` (B, A), `rewards`, `costs`, `done`, `costs_to_go` and `next_costs_to_go` (B,) to
tensors; rewards and costs are raw, and the step multiplies them by the settings' scales.
"""

from __future__ import annotations

import copy
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
    warm_up_steps: int = 200_000
    hidden_sizes: tuple[int, int] = (256, 256)  # of actor and critics
    vae_hidden_sizes: tuple[int, int] = (512, 512)  # of CVAE, classifier and multipliers
    latent_dim: int = 64
    critics: int = 4
    gamma: float = 0.99
    polyak: float = 0.005
    vae_beta: float = 0.5
    ood_threshold: float = 0.5
    log_multiplier_bounds: tuple[float, float] = (-20.0, 5.0)
    multiplier_decay: float = 0.01
    latent_clamp: float = 1.0
    actor_lr: float = 1e-4
    multiplier_lr: float = 1e-4
    critic_lr: float = 1e-3
    vae_lr: float = 1e-3  # of CVAE and classifier
    reward_scale: float = 0.1
    cost_scale: float = 1.0
    # One Adam holds both multipliers. Where gradients are set to zero (torch 1.13, the published numbers) each step of
    # one moves the other by its momentum; where they are set to None (torch 2) the other rests.
    zero_gradients: bool = True


def make_mlp(inputs: int, hidden: tuple[int, int], outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden[0]),
        nn.ReLU(),
        nn.Linear(hidden[0], hidden[1]),
        nn.ReLU(),
        nn.Linear(hidden[1], outputs),
    ).double()


class ClampForward(torch.autograd.Function):
    """A clamp of the value that its gradient does not see."""

    @staticmethod
    def forward(ctx: object, inputs: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(inputs, low), high)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return gradient, None, None


def clamp_forward(inputs: Tensor, low: Tensor, high: Tensor) -> Tensor:
    clamped = ClampForward.apply(inputs, low, high)
    assert isinstance(clamped, Tensor)
    return clamped


class GaussianNet(nn.Module):
    """A trunk of two ReLU layers with a mean and a log_std, the latter clamped as torch does it."""

    def __init__(self, inputs: int, hidden: tuple[int, int], outputs: int, bounds: tuple[float, float]) -> None:
        super().__init__()
        self.bounds = bounds
        self.trunk = nn.Sequential(nn.Linear(inputs, hidden[0]), nn.ReLU(), nn.Linear(hidden[0], hidden[1]), nn.ReLU())
        self.mean = nn.Linear(hidden[1], outputs)
        self.log_std = nn.Linear(hidden[1], outputs)
        self.double()

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(inputs)
        return self.mean(features), torch.clamp(self.log_std(features), self.bounds[0], self.bounds[1])


class CVAE(nn.Module):
    """[s, a, kappa] -> z and [z, kappa] -> (s, a) within the bounds of the data."""

    def __init__(self, settings: Settings, observation_min: Tensor, observation_max: Tensor) -> None:
        super().__init__()
        s, a, z, hidden = (
            settings.observation_size,
            settings.action_size,
            settings.latent_dim,
            settings.vae_hidden_sizes,
        )
        self.encoder = GaussianNet(s + a + 1, hidden, z, (-4.0, 15.0))
        self.decoder = make_mlp(z + 1, hidden, s + a)
        ones = torch.ones(a, dtype=torch.float64)
        self.low = torch.cat([observation_min.double(), -ones])
        self.high = torch.cat([observation_max.double(), ones])

    def decode(self, z: Tensor, kappa: Tensor) -> Tensor:
        return clamp_forward(self.decoder(torch.cat([z, kappa.unsqueeze(-1)], dim=-1)), self.low, self.high)


def evaluate_critics(critics: nn.ModuleList, observations: Tensor, kappa: Tensor, actions: Tensor) -> list[Tensor]:
    """The value (B,) of each network, never negative."""
    inputs = torch.cat([observations, kappa.unsqueeze(-1), actions], dim=-1)
    return [F.softplus(critic(inputs)).squeeze(-1) for critic in critics]


def smallest(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).amin(dim=0)


@torch.no_grad()
def polyak_step(target: nn.Module, online: nn.Module, rate: float) -> None:
    for old, new in zip(target.parameters(), online.parameters(), strict=True):
        old.copy_((1.0 - rate) * old + rate * new)


def minimise(loss: Tensor, optimizer: torch.optim.Optimizer, set_to_none: bool = True) -> float:
    optimizer.zero_grad(set_to_none=set_to_none)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def costs_to_go(costs: Sequence[float], done: Sequence[bool]) -> tuple[list[float], list[float]]:
    """kappa and its successor for each row of a dataset: what a trajectory still costs, undiscounted.

    A row's successor is 0 where its trajectory ends. A trailing trajectory that never ends has 0 for both.
    """
    kappa, following = [0.0] * len(costs), [0.0] * len(costs)
    start = 0
    for end, last in enumerate(done):
        if not last:
            continue
        for row in range(start, end + 1):
            kappa[row] = float(sum(costs[row : end + 1]))
            following[row] = float(sum(costs[row + 1 : end + 1]))
        start = end + 1
    return kappa, following


class ReferenceCCAC:
    def __init__(self, settings: Settings, observation_min: Tensor, observation_max: Tensor) -> None:
        self.settings = settings
        s, a, hidden = settings.observation_size, settings.action_size, settings.hidden_sizes
        self.actor = GaussianNet(s + 1, hidden, a, (-20.0, 2.0))
        self.critics = nn.ModuleList(make_mlp(s + 1 + a, hidden, 1) for _ in range(settings.critics))
        self.cost_critics = nn.ModuleList(make_mlp(s + 1 + a, hidden, 1) for _ in range(settings.critics))
        self.critics_target = copy.deepcopy(self.critics).requires_grad_(False)
        self.cost_critics_target = copy.deepcopy(self.cost_critics).requires_grad_(False)
        self.cvae = CVAE(settings, observation_min, observation_max)
        self.classifier = make_mlp(s + a + 1, settings.vae_hidden_sizes, 1)
        self.critic_multiplier = make_mlp(1, settings.vae_hidden_sizes, 1)  # lambda_1
        self.actor_multiplier = make_mlp(1, settings.vae_hidden_sizes, 1)  # lambda_2

        adam = torch.optim.Adam
        self.actor_optimizer = adam(self.actor.parameters(), lr=settings.actor_lr)
        self.critics_optimizer = adam(self.critics.parameters(), lr=settings.critic_lr)
        self.cost_critics_optimizer = adam(self.cost_critics.parameters(), lr=settings.critic_lr)
        self.cvae_optimizer = adam(self.cvae.parameters(), lr=settings.vae_lr)
        self.classifier_optimizer = adam(self.classifier.parameters(), lr=settings.vae_lr)
        self.multipliers_optimizer = adam(
            [*self.critic_multiplier.parameters(), *self.actor_multiplier.parameters()], lr=settings.multiplier_lr
        )
        self.updates = 0

    def sample_action(self, observations: Tensor, kappa: Tensor, noise: Tensor) -> Tensor:
        mean, log_std = self.actor(torch.cat([observations, kappa.unsqueeze(-1)], dim=-1))
        return torch.tanh(mean + torch.exp(log_std) * noise)

    def classify(self, pairs: Tensor, kappa: Tensor) -> Tensor:
        """The probability (B,) that pairs (B, S + A) cost more than kappa."""
        return torch.sigmoid(self.classifier(torch.cat([pairs, kappa.unsqueeze(-1)], dim=-1)).squeeze(-1))

    def multiplier(self, network: nn.Module, kappa: Tensor) -> Tensor:
        """Lambda (B,); its derivative by the network's output is lambda itself, at the bounds too."""
        low, high = (torch.tensor(bound, dtype=torch.float64) for bound in self.settings.log_multiplier_bounds)
        return torch.exp(clamp_forward(network(kappa.unsqueeze(-1)).squeeze(-1), low, high))

    def minimise_multiplier(self, network: nn.Module, objective: Tensor) -> float:
        penalty = sum((parameter**2).sum() for parameter in network.parameters())
        loss = objective + self.settings.multiplier_decay * penalty
        return minimise(loss, self.multipliers_optimizer, set_to_none=not self.settings.zero_gradients)

    def update_cvae_and_classifier(self, batch: Batch, noise: Tensor) -> dict[str, float]:
        """Steps 1 and 2, which are the warm-up's only ones. `noise` (B, latent_dim) is the encoder's."""
        kappa = batch["costs_to_go"] * self.settings.cost_scale
        pairs = torch.cat([batch["observations"], batch["actions"]], dim=-1)

        # 1. CVAE
        mean, log_std = self.cvae.encoder(torch.cat([pairs, kappa.unsqueeze(-1)], dim=-1))
        std = torch.exp(log_std)
        reconstruction = self.cvae.decode(mean + std * noise, kappa)
        kl = (-0.5 * (1.0 + 2.0 * log_std - mean**2 - std**2)).mean()
        vae_loss = ((reconstruction - pairs) ** 2).mean() + self.settings.vae_beta * kl
        losses = {"vae_loss": minimise(vae_loss, self.cvae_optimizer)}

        # 2. Classifier: does the pair cost more than the first row's kappa?
        first = kappa[0].expand_as(kappa)
        labels = (kappa > kappa[0]).double()
        real, rebuilt = self.classify(pairs, first), self.classify(reconstruction.detach(), first)
        classifier_loss = F.binary_cross_entropy(torch.cat([real, rebuilt]), torch.cat([labels, labels]))
        losses["classifier_loss"] = minimise(classifier_loss, self.classifier_optimizer)
        return losses

    def step(self, batch: Batch, noise: Mapping[str, Tensor]) -> dict[str, float]:
        """One update: of CVAE and classifier alone for the first `warm_up_steps`, of everything afterwards.

        `noise` holds standard normals, here in drawing order: "encoder" (B, latent_dim); "critic" (B, A) and
        "cost_critic" (B, A) for next actions; "latent" (B, latent_dim), not yet clamped; "actor" (B, A). The warm-up
        looks at the first alone.
        """
        losses = self.update_cvae_and_classifier(batch, noise["encoder"])
        self.updates += 1
        if self.updates <= self.settings.warm_up_steps:
            return losses

        cfg = self.settings
        s, a, next_s, done = batch["observations"], batch["actions"], batch["next_observations"], batch["done"]
        r, c = cfg.reward_scale * batch["rewards"], cfg.cost_scale * batch["costs"]
        kappa, next_kappa = cfg.cost_scale * batch["costs_to_go"], cfg.cost_scale * batch["next_costs_to_go"]

        # 3. Reward critics
        with torch.no_grad():
            next_a = self.sample_action(next_s, next_kappa, noise["critic"])
            bootstrap = smallest(evaluate_critics(self.critics_target, next_s, next_kappa, next_a))
            goal = r + cfg.gamma * (1.0 - done) * bootstrap
        values = evaluate_critics(self.critics, s, kappa, a)
        loss = torch.stack([F.mse_loss(value, goal) for value in values]).sum()
        losses["critic_loss"] = minimise(loss, self.critics_optimizer)

        # 4. Cost critics, raised where the data do not support the budget; then their multiplier
        with torch.no_grad():
            next_a = self.sample_action(next_s, next_kappa, noise["cost_critic"])
            bootstrap = smallest(evaluate_critics(self.cost_critics_target, next_s, next_kappa, next_a))
            goal = c + cfg.gamma * (1.0 - done) * bootstrap
            z = torch.clamp(noise["latent"], -cfg.latent_clamp, cfg.latent_clamp)
            generated = self.cvae.decode(z, kappa)
            ood = self.classify(generated, kappa) > cfg.ood_threshold
        values = evaluate_critics(self.cost_critics, s, kappa, a)
        loss = torch.stack([F.mse_loss(value, goal) for value in values]).sum()
        losses["ood_rows"] = float(ood.sum())
        if ood.any():
            ood_s, ood_a = generated[ood][:, : cfg.observation_size], generated[ood][:, cfg.observation_size :]
            ood_kappa = kappa[ood]
            ood_cost = smallest(evaluate_critics(self.cost_critics, ood_s, ood_kappa, ood_a))
            lambda_1 = self.multiplier(self.critic_multiplier, ood_kappa)
            loss = loss - (lambda_1.detach() * (ood_cost - ood_kappa)).mean()
            losses["cost_critic_loss"] = minimise(loss, self.cost_critics_optimizer)
            objective = (lambda_1 * (ood_cost.detach() - ood_kappa)).mean()
            losses["critic_multiplier_loss"] = self.minimise_multiplier(self.critic_multiplier, objective)
        else:
            losses["cost_critic_loss"] = minimise(loss, self.cost_critics_optimizer)

        # 5. Actor, then its multiplier
        action = self.sample_action(s, kappa, noise["actor"])
        q = smallest(evaluate_critics(self.critics, s, kappa, action))
        qc = smallest(evaluate_critics(self.cost_critics, s, kappa, action))
        lambda_2 = self.multiplier(self.actor_multiplier, kappa)
        loss = -q.mean() + (lambda_2.detach() * (qc - kappa)).mean()
        losses["actor_loss"] = minimise(loss, self.actor_optimizer)
        objective = -(lambda_2 * (qc.detach() - kappa)).mean()
        losses["actor_multiplier_loss"] = self.minimise_multiplier(self.actor_multiplier, objective)

        # 6. Targets
        polyak_step(self.critics_target, self.critics, cfg.polyak)
        polyak_step(self.cost_critics_target, self.cost_critics, cfg.polyak)
        return losses

    @torch.no_grad()
    def act(self, observation: Tensor, budget: float) -> Tensor:
        """The action (A,) at an observation (S,) with `budget` left, which starts at the cost limit."""
        inputs = torch.cat([observation, torch.tensor([budget], dtype=torch.float64)]).unsqueeze(0)
        mean, _ = self.actor(inputs)
        return torch.tanh(mean)[0]


def spend(budget: float, cost: float) -> float:
    """What is left of the budget after a step's raw cost."""
    return max(0.0, budget - cost)
