"""What is measured on held-out data at the points of the learning curve: what algorithms offer, and the actions' error.

Nothing of it touches training: it reads networks, and its noise comes from generators of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.algorithm import Algorithm, Batch, Hyperparameters, Policy, Replica, Selection
from harness.capacity import undisturbed_randomness
from harness.data.dataset import Dataset
from harness.data.sampling import make_sampler

MOST_ROWS = 10_000
"""Steps of the held-out trajectories that are looked at; of more, whole trajectories at even distances."""

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
        self._data = evenly(held_out, MOST_ROWS)
        self.batch = held_out_batch(algorithm, config, self._data, len(replicas), device, dtype)

    def of_agents(self) -> dict[str, Tensor]:
        """What the algorithm offers: metrics (R,).

        Raises:
            DiagnosticError: one of them has another shape.
        """
        with torch.no_grad(), undisturbed_randomness():
            metrics = self._algorithm.diagnose(self.batch)
        for name, value in metrics.items():
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
        arrays, trajectories = self._data.arrays, self._data.trajectories
        if self._told:
            parts = list(zip(trajectories.starts, trajectories.lengths, trajectories.cost_returns(), strict=True))
        else:
            parts = [(0, len(self._data), None)]
        total = 0.0
        for start, length, cost in parts:
            rows = slice(int(start), int(start + length))
            policy.reset([seed + row for row in range(rows.start, rows.stop)], None if cost is None else float(cost))
            actions = policy.act(torch.from_numpy(arrays["observations"][rows]))
            total += float((actions - torch.from_numpy(arrays["actions"][rows])).double().square().sum())
        return total / arrays["actions"].size


def evenly(dataset: Dataset, most_rows: int) -> Dataset:
    """As many whole trajectories, at even distances, as have at most so many steps; at least one."""
    lengths = dataset.trajectories.lengths
    count = len(lengths)
    chosen = np.arange(count)
    while lengths[chosen].sum() > most_rows and count > 1:
        count -= 1
        chosen = np.linspace(0, len(lengths) - 1, count).round().astype(np.int64)
    return dataset.subset(np.isin(np.arange(len(lengths)), chosen))


def held_out_batch(
    algorithm: Algorithm[Any],
    config: Hyperparameters,
    data: Dataset,
    replicas: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """All of a dataset as :meth:`harness.algorithm.Algorithm.diagnose` takes it."""
    columns = tuple(dict.fromkeys((*algorithm.columns(config), *algorithm.diagnostic_columns(config))))
    length = algorithm.sequence_length(config)
    sampler = make_sampler(data, columns, [Selection()], length, device, dtype)
    if length is None:
        everything = torch.arange(len(data), device=device)
    else:
        windows = [
            (index, first) for index, steps in enumerate(data.trajectories.lengths) for first in range(0, steps, length)
        ]
        everything = torch.tensor(windows, device=device)
    batch = sampler.batch(everything.unsqueeze(0))
    return {name: values.expand(replicas, *values.shape[1:]) for name, values in batch.items()}
