"""A deliberately plain, single-agent TraC with the labelling of its segments, transcribed from its written description.

Nothing is stacked, fused or shared, so that an implementation can be compared with it; everything is float64. A batch
maps `observations` (B, L, S), `actions` (B, L, A), `labels` and `weights` (B,) to tensors; the step clips actions,
and doing that again changes nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]
Trajectory = tuple[int, int]  # the first row and the row after the last


@dataclass(frozen=True)
class Settings:
    observation_size: int
    action_size: int
    bc_steps: int = 30_000
    hidden_sizes: tuple[int, int] = (256, 256)
    dropout: float = 0.25
    alpha: float = 0.2
    gamma: float = 0.99
    eta: float = 0.25
    bc_lr: float = 1e-4
    trac_lr: float = 1e-5  # reached after the ramp
    ramp_steps: int = 10_000
    smallest_probability: float = 1e-6
    action_limit: float = 1.0 - 1e-5


def find_trajectories(ends: Sequence[bool]) -> list[Trajectory]:
    """The finished trajectories of a dataset whose rows end one where a terminal or a timeout is."""
    trajectories, start = [], 0
    for row, end in enumerate(ends):
        if end:
            trajectories.append((start, row + 1))
            start = row + 1
    return trajectories


def longest(trajectories: Sequence[Trajectory]) -> int:
    return max(end - start for start, end in trajectories)


def segment_length(trajectories: Sequence[Trajectory], seg_ratio: float) -> int:
    return math.floor(longest(trajectories) * seg_ratio)


def segment_budget(trajectories: Sequence[Trajectory], length: int, cost_limit: float) -> float:
    return cost_limit * length / longest(trajectories)


def count_segments(trajectories: Sequence[Trajectory], length: int, seg_ratio: float) -> int:
    if seg_ratio < 1.0:
        return min((longest(trajectories) - length) // 6 * len(trajectories), 1_000_000)
    whole = sum(end - start == longest(trajectories) for start, end in trajectories)
    return min(whole, 1_000_000)


def draw_start(trajectories: Sequence[Trajectory], length: int, first: float, second: float) -> int:
    """A segment's first row, from two uniform numbers in [0, 1): one for the trajectory and one for the start."""
    eligible = [(start, end) for start, end in trajectories if end - start >= length]
    start, end = eligible[math.floor(first * len(eligible))]
    return start + math.floor(second * (end - start - length + 1))


def label_segments(
    returns: Sequence[float], costs: Sequence[float], budget: float, top: float, bottom: float
) -> tuple[list[int | None], list[float | None]]:
    """Label and weight of each segment, None where it is dropped, from its sums of rewards and costs.

    Of equally good safe segments the later ones count as better. Raises ValueError where safe segments cannot be
    ordered: none is safe, or all have one return.
    """
    labels: list[int | None] = [None] * len(returns)
    weights: list[float | None] = [None] * len(returns)
    safe = [i for i, cost in enumerate(costs) if cost <= budget]
    if not safe:
        raise ValueError("no segment is safe")
    low, high = min(returns[i] for i in safe), max(returns[i] for i in safe)
    if low == high:
        raise ValueError("all safe segments have the same return")

    goodness = {i: (returns[i] - low) / (high - low) for i in safe}
    up = {i: 0.3 * goodness[i] + 0.7 for i in safe}
    down = {i: 0.3 * (1.0 - goodness[i]) + 0.7 for i in safe}
    ranked = sorted(safe, key=lambda i: up[i])  # worst first; sorted keeps the order of equals
    for i in ranked[len(ranked) - math.ceil(top * len(ranked)) :]:
        labels[i], weights[i] = 1, up[i]
    for i in ranked[: math.ceil(bottom * len(ranked))]:
        labels[i], weights[i] = 0, down[i]
    for i, cost in enumerate(costs):
        if cost > budget:
            labels[i], weights[i] = 0, 1.0
    return labels, weights


class Policy(nn.Module):
    """A deterministic actor: dropout stands between a hidden layer and its ReLU."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        first, second = settings.hidden_sizes
        self.first = nn.Linear(settings.observation_size, first)
        self.second = nn.Linear(first, second)
        self.output = nn.Linear(second, settings.action_size)
        for layer in (self.first, self.second, self.output):
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.double()

    def forward(self, observations: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:
        """Actions (..., A). `masks`: two tensors (..., width), each 0 or 1/(1 - dropout); none without dropout."""
        hidden = self.first(observations)
        if masks:
            hidden = hidden * masks[0]
        hidden = self.second(torch.relu(hidden))
        if masks:
            hidden = hidden * masks[1]
        return torch.tanh(self.output(torch.relu(hidden)))


def log_probability(policy: Policy, observations: Tensor, actions: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:
    """The negative squared distance (...,) of actions from the policy's."""
    return -((policy(observations, masks) - actions) ** 2).sum(dim=-1)


def trac_loss(advantage: Tensor, labels: Tensor, weights: Tensor, eta: float, smallest: float) -> Tensor:
    """The weighted cross-entropy of sigmoid(advantage) with the labels, all of them (B,)."""
    desirable = labels == 1
    positives, negatives = int(desirable.sum()), int((~desirable).sum())
    p = torch.sigmoid(advantage)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(labels)):
        if desirable[i]:
            total = total + weights[i] * torch.log(torch.clamp(p[i], min=smallest))
        else:
            balance = eta * positives / negatives
            total = total + balance * weights[i] * torch.log(torch.clamp(1.0 - p[i], min=smallest))
    return -total / len(labels)


class ReferenceTraC:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.policy = Policy(settings)
        self.reference: Policy | None = None  # the cloned policy, once cloning has ended
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=settings.bc_lr)
        self.updates = 0

    def end_cloning(self) -> None:
        self.reference = copy.deepcopy(self.policy).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.policy.parameters(), lr=self.settings.trac_lr)

    def segment_advantages(self, observations: Tensor, actions: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """The discounted sum (B,) of log-likelihood ratios of policy and reference."""
        cfg = self.settings
        assert self.reference is not None
        with torch.no_grad():
            before = log_probability(self.reference, observations, actions)
        ratio = log_probability(self.policy, observations, actions, masks) - before
        discounts = [cfg.alpha * cfg.gamma**t for t in range(ratio.shape[1])]
        return (torch.tensor(discounts, dtype=torch.float64) * ratio).sum(dim=1)

    def step(self, batch: Batch, noise: Sequence[Tensor] = ()) -> dict[str, float]:
        """One update: of cloning for the first `bc_steps`, of TraC afterwards.

        `noise` holds the dropout masks of the policy's two hidden layers, (B, L, width), each 0 or 1/(1 - dropout); it
        is empty where there is no dropout. The reference is never masked.
        """
        cfg = self.settings
        observations = batch["observations"]
        actions = batch["actions"].clamp(-cfg.action_limit, cfg.action_limit)
        if self.updates < cfg.bc_steps:
            name, loss = "bc_loss", -log_probability(self.policy, observations, actions, noise).mean()
        else:
            advantage = self.segment_advantages(observations, actions, noise)
            name = "trac_loss"
            loss = trac_loss(advantage, batch["labels"], batch["weights"], cfg.eta, cfg.smallest_probability)
            j = self.updates - cfg.bc_steps + 1
            self.optimizer.param_groups[0]["lr"] = cfg.trac_lr * min(1.0, j / cfg.ramp_steps)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.updates += 1
        if self.updates == cfg.bc_steps:
            self.end_cloning()
        return {name: float(loss.detach())}

    @torch.no_grad()
    def act(self, observation: Tensor) -> Tensor:
        """The action (A,) at an observation (S,), without dropout."""
        return self.policy(observation)
