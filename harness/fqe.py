"""Fitted Q-evaluation: what a policy earns and costs, judged by the data alone (Le, Voloshin, Yue, ICML 2019).

A network Q(s, a) for the reward and one for the cost are fitted to ``r + gamma Q'(s', pi(s'))`` on logged transitions;
Q' follows them slowly. The estimate is the mean of Q(s0, pi(s0)) over the first states of the logged trajectories, as
Paine et al. (2020, arXiv 2007.09055) rank policies with. It is discounted, and of an episode without a time limit: only
terminals end it, behind a timeout it goes on.

The networks of all policies are trained side by side, policy axis first. They speak in units of the data, so that one
learning rate serves every task: ``(1 - gamma) Q = mean + std f`` for the network's output f and the mean and standard
deviation of the logged rewards (or costs). Observations are standardised. No value is taken for more, or less, than the
greatest or least logged reward in every step would give: where a policy leaves the data, bootstrapping would else run
away.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from algorithms.parts.networks import StackedMLP
from algorithms.parts.optimisers import adam, minimise, polyak_update
from harness.algorithm import Policy, Replica, acted
from harness.capacity import undisturbed_randomness
from harness.data.dataset import Dataset
from harness.data.sampling import Columns
from harness.suite import FQE

COLUMNS = ("observations", "actions", "rewards", "costs", "terminals")
CHUNK = 4096
"""Observations on which a policy acts at once."""
BLOCK = 64
"""Steps whose minibatches are drawn at once. Results do not depend on it."""


@dataclass(frozen=True)
class Candidate:
    """A policy to be judged.

    Args:
        policy: on the CPU, one that acts on the last observation alone (:attr:`harness.algorithm.Policy.markov`).
        replica: the agent that it is of. All that is random derives from it, so that an agent's policies are judged
            with the same first weights, minibatches and action noise, at every step of its training.
        cost_limit: what the policy is told.
    """

    policy: Policy
    replica: Replica
    cost_limit: float | None = None


@dataclass(frozen=True)
class Estimate:
    """Discounted sums from the first state on, as the data has them: not normalised."""

    episode_return: float
    cost: float


class FittedQ:
    """Judges policies on one dataset.

    Args:
        dataset: the training data.
        settings: of the fit.
        device: where to fit.
        dtype: of networks and data.
        on_host: leave the data in the host's memory.
    """

    def __init__(
        self,
        dataset: Dataset,
        settings: FQE,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        on_host: bool = False,
    ) -> None:
        self.settings, self.device, self.dtype, self.on_host = settings, torch.device(device), dtype, on_host
        columns = {name: torch.as_tensor(dataset.column(name), dtype=dtype) for name in COLUMNS}
        self._following = torch.as_tensor(dataset.column("next_observations"))
        self._first = torch.as_tensor(dataset.column("observations")[dataset.trajectories.starts])
        observations = columns["observations"]
        self._mean, self._std = observations.mean(0), observations.std(0, correction=0) + 1e-3
        columns["observations"] = self._standardised(observations)
        columns["next_observations"] = self._standardised(self._following)
        signals = torch.stack([columns.pop("rewards"), columns.pop("costs")], 1).double()
        scale = signals.std(0, correction=0)
        scale[scale == 0] = 1
        self._offset, self._scale = signals.mean(0) / scale, scale
        signals = signals / scale - self._offset
        columns["signals"] = signals.to(dtype)
        self._least, self._most = signals.amin(0), signals.amax(0)
        if dataset.arrays["terminals"].any():  # behind which nothing comes
            self._least, self._most = (
                torch.minimum(self._least, -self._offset),
                torch.maximum(self._most, -self._offset),
            )
        self._data = Columns(columns, self.device, on_host)
        self._size, self._action_size = len(signals), dataset.task.action_size

    def estimates(self, candidates: Sequence[Candidate]) -> list[Estimate]:
        """What each policy earns and costs; it does not depend on the others.

        Raises:
            ValueError: a policy acts on more than the last observation, so that no Q(s, a) is of it.
        """
        s = self.settings
        if not candidates:
            return []
        for candidate in candidates:
            if not candidate.policy.markov:
                raise ValueError(f"{type(candidate.policy).__name__} acts on more than the last observation")
        generators = [candidate.replica.generator("fqe") for candidate in candidates]
        actions = [self._actions(candidate, self._following, "next") for candidate in candidates]
        following = Columns({"actions": torch.cat(actions).to(self.dtype)}, self.device, self.on_host)
        sizes = (self._first.shape[1] + actions[0].shape[1], *s.hidden_sizes, 1)
        values = StackedMLP(generators, sizes, ensemble=2, dtype=self.dtype).to(self.device)
        targets = copy.deepcopy(values).requires_grad_(False)
        optimizer = adam([(s.learning_rate, values.parameters())])
        offset, least, most = (
            bound.to(self.device, self.dtype).unsqueeze(1) for bound in (self._offset, self._least, self._most)
        )
        shift = self._size * torch.arange(len(candidates), device=self.device).unsqueeze(1)

        for step in range(s.steps):
            if step % BLOCK == 0:
                drawn = [torch.randint(self._size, (BLOCK, s.batch_size), generator=one) for one in generators]
                block = torch.stack(drawn, 1).to(self.device)
            rows = block[step % BLOCK]
            batch = self._data.take(rows)
            with torch.no_grad():
                pairs = torch.cat([batch["next_observations"], following.take(rows + shift)["actions"]], -1)
                ended = batch["terminals"].unsqueeze(1)
                ahead = targets(pairs).squeeze(-1).clamp(least, most)
                ahead = (1 - ended) * ahead - ended * offset  # Q = 0 behind the end
                target = (1 - s.gamma) * batch["signals"].mT + s.gamma * ahead
            pairs = torch.cat([batch["observations"], batch["actions"]], -1)
            loss = (values(pairs).squeeze(-1) - target).square().mean(2).sum(1)
            optimizer.param_groups[0]["lr"] = s.learning_rate * (1 - step / s.steps)
            minimise(optimizer, loss)
            polyak_update(targets.parameters(), values.parameters(), s.polyak)

        first = torch.stack([self._actions(candidate, self._first, "first") for candidate in candidates]).to(self.dtype)
        observations = self._standardised(self._first).expand(len(candidates), -1, -1)
        with torch.no_grad():
            outputs = values(torch.cat([observations, first], -1).to(self.device)).squeeze(-1)
            outputs = outputs.clamp(least, most).mean(2).cpu()
        estimates = (outputs.double() + self._offset) * self._scale / (1 - s.gamma)
        return [Estimate(*pair) for pair in estimates.tolist()]

    def _standardised(self, observations: Tensor) -> Tensor:
        return (observations.to(self.dtype) - self._mean) / self._std

    def _actions(self, candidate: Candidate, observations: Tensor, purpose: str) -> Tensor:
        """What a policy does, in single precision as in roll-outs, at observations (n, dim): (n, action_size).

        The noise of a stochastic policy is drawn for each row from a seed of its own.
        """
        generator = np.random.default_rng(candidate.replica.entropy(f"fqe {purpose} actions"))
        seeds = generator.integers(2**31, size=len(observations)).tolist()
        policy, actions = candidate.policy.float().eval(), []
        with torch.no_grad(), undisturbed_randomness():
            for start in range(0, len(seeds), CHUNK):
                policy.reset(seeds[start : start + CHUNK], candidate.cost_limit)
                here = observations[start : start + CHUNK].clone()
                actions.append(acted(policy, here, self._action_size))
        return torch.cat(actions)
