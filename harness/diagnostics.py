"""What is measured on held-out data at the points of the learning curve: what algorithms offer, and the actions' error.

Nothing of it touches training: it reads networks, and its noise comes from generators of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.algorithm import Algorithm, Batch, Hyperparameters, Policy, Replica, acted
from harness.capacity import undisturbed_randomness
from harness.data.dataset import Dataset
from harness.data.sampling import Columns, Sampler, TransitionSampler, WindowSampler, all_segments

MOST_STEPS = 5_000
"""Steps of the held-out trajectories that are looked at; of more, so many at even distances."""
DISCOUNTED = {"discounted_rewards_to_go": "rewards", "discounted_costs_to_go": "costs"}
"""What a batch of diagnostics may hold beside :data:`harness.data.dataset.COLUMNS`."""

Row = dict[str, Any]


class DiagnosticError(Exception):
    """An algorithm's diagnostics are not what the interface asks for; says what."""


class Diagnostics:
    """The held-out data of a job, laid out for its replicas.

    Args:
        algorithm: in training.
        config: its hyperparameters.
        held_out: what nothing is trained on.
        replicas: the R agents.
        device: where the algorithm lies.
        dtype: of its parameters.
    """

    def __init__(
        self,
        algorithm: Algorithm[Any],
        config: Hyperparameters,
        held_out: Dataset,
        replicas: Sequence[Replica],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._algorithm, self._replicas = algorithm, replicas
        self._told = algorithm.acts_on_cost_limit(config)
        self.batch = held_out_batch(algorithm, config, held_out, len(replicas), device, dtype)
        rows = evenly(len(held_out), MOST_STEPS)
        self._observations, self._actions = (
            torch.from_numpy(held_out.arrays[name][rows]) for name in ("observations", "actions")
        )
        self._costs = torch.from_numpy(held_out.column("cost_returns")[rows])

    def of_agents(self) -> dict[str, Tensor]:
        """What the algorithm offers: metrics (R,).

        Raises:
            DiagnosticError: one of them has another shape, or is no tensor of real numbers.
        """
        with torch.no_grad(), undisturbed_randomness():
            metrics = self._algorithm.diagnose(self.batch)
        if not isinstance(metrics, Mapping):
            raise DiagnosticError(f"diagnose must give metrics by name, not {type(metrics).__name__}")
        for name, value in metrics.items():
            named = isinstance(name, str) and name.isprintable()
            if not named or not isinstance(value, Tensor) or value.is_complex():
                raise DiagnosticError(f"the diagnostic {name!r} is no tensor of real numbers")
            if value.shape != (len(self._replicas),):
                raise DiagnosticError(f"the diagnostic {name} has shape {tuple(value.shape)}, not one number a replica")
        return metrics

    def rows(self, step: int, replicas: Sequence[int]) -> list[Row]:
        """Everything that is measured of some replicas at a step: replica, step, policy, metric and value.

        The policy is empty where a metric is of the agent as a whole.
        """
        rows = []
        measured = {name: value.tolist() for name, value in self.of_agents().items()}
        for replica in replicas:
            found = {(policy, "action_error"): error for policy, error in self.action_errors(replica).items()}
            for name, values in measured.items():
                policy, _, metric = name.rpartition("/")
                found[policy, metric] = values[replica]
            rows += [
                {"replica": replica, "step": step, "policy": policy, "metric": metric, "value": value}
                for (policy, metric), value in found.items()
            ]
        return rows

    def action_errors(self, replica: int) -> dict[str, float]:
        """Mean squared difference of a replica's actions from the data's, by policy; only of those that are markov."""
        seed = self._replicas[replica].entropy("diagnostics")
        with torch.inference_mode(), undisturbed_randomness():
            return {
                name: self._action_error(policy.float(), seed)
                for name, policy in self._algorithm.policies(replica).items()
                if policy.markov
            }

    def _action_error(self, policy: Policy, seed: int) -> float:
        """Each step is an episode of its own. Who acts on a cost limit is told what the step's trajectory costs."""
        policy.eval()
        seeds, size = range(seed, seed + len(self._actions)), self._actions.shape[1]
        if not self._told:
            policy.reset(seeds, None)
            actions = acted(policy, self._observations, size)
        else:
            actions = torch.empty_like(self._actions)
            for cost in self._costs.unique().tolist():
                here = self._costs == cost
                policy.reset([seeds[row] for row in here.nonzero().flatten().tolist()], cost)
                actions[here] = acted(policy, self._observations[here], size)
        return float((actions - self._actions).double().square().mean())


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """Of so many things, in order, the places of at most ``most`` at even distances."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def held_out_batch(
    algorithm: Algorithm[Any],
    config: Hyperparameters,
    data: Dataset,
    replicas: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """What :meth:`harness.algorithm.Algorithm.diagnose` takes of a dataset."""
    trajectories, gamma = data.trajectories, algorithm.diagnostic_discount(config)
    wanted = dict.fromkeys((*algorithm.columns(config), *algorithm.diagnostic_columns(config)))
    arrays = {
        name: trajectories.to_go(data.arrays[DISCOUNTED[name]], gamma) if name in DISCOUNTED else data.column(name)
        for name in wanted
    }
    columns = Columns({name: torch.as_tensor(values, dtype=dtype) for name, values in arrays.items()}, "cpu")
    length = algorithm.sequence_length(config)
    sampler: Sampler
    if length is None:
        sampler = TransitionSampler(columns, len(data), [None])
        places = torch.as_tensor(evenly(len(data), MOST_STEPS))
    else:
        starts, lengths = torch.as_tensor(trajectories.starts), torch.as_tensor(trajectories.lengths)
        sampler = WindowSampler(columns, starts, lengths, [all_segments(data)], length)
        windows = [(index, first) for index, steps in enumerate(lengths.tolist()) for first in range(0, steps, length)]
        places = torch.tensor(windows)[evenly(len(windows), -(-MOST_STEPS // length))]
    batch = sampler.batch(places.unsqueeze(0))
    return {name: values.to(device).expand(replicas, *values.shape[1:]) for name, values in batch.items()}
