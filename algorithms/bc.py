"""BC: behaviour cloning and its variants, as OSRL defines them (osrl-lib 0.1.0, ``osrl/algorithms/bc.py``).

A deterministic policy regressed on the actions of the trajectories that a mode selects by their cost return
(``process_bc_dataset`` in ``osrl/common/dataset.py``). Deviations are numbered in docs/algorithms/bc.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from algorithms.parts.losses import per_replica_mean
from algorithms.parts.networks import Builder
from algorithms.parts.optimisers import adam, minimise
from algorithms.parts.policies import ClonedPolicy, told
from harness.algorithm import Algorithm, Batch, Hyperparameters, Policy, Replica, Selection
from harness.bounds import BatchSize, HiddenSizes, Steps
from harness.data.dataset import Dataset
from harness.data.trajectories import frontier_mask
from harness.errors import UserError
from harness.tasks import Task

Mode = Literal["all", "safe", "risky", "frontier", "boundary", "multi-task"]


class BCHyperparameters(Hyperparameters):
    """Defaults are OSRL's (``examples/configs/bc_configs.py``)."""

    steps: Steps = Field(100_000, description="gradient steps of one training run")
    batch_size: BatchSize = Field(512, description="transitions a step draws from the dataset")
    mode: Mode = Field(
        "all", description="which trajectories are cloned; multi-task: all, with the cost return as input"
    )
    hidden_sizes: HiddenSizes = Field((256, 256), description="hidden layers of the policy")
    actor_lr: float = Field(1e-3, gt=0, description="Adam's learning rate")
    gamma: float = Field(1.0, gt=0, le=1, description="discount of the returns by which trajectories are selected")


class BC(Algorithm[BCHyperparameters]):
    """R cloned policies side by side, each on the trajectories that its mode and cost limit select."""

    Hyperparameters = BCHyperparameters
    summary = "behaviour cloning of all, safe, risky, frontier or boundary trajectories, or conditioned on the cost"
    per_task: ClassVar[Mapping[str, Mapping[str, Any]]] = {"metadrive": {"steps": 200_000}}

    @classmethod
    def depends_on_cost_limit(cls, config: BCHyperparameters) -> bool:
        """The limit selects trajectories in three modes."""
        return config.mode in ("safe", "risky", "boundary")

    @classmethod
    def acts_on_cost_limit(cls, config: BCHyperparameters) -> bool:
        """Mode multi-task takes the limit as an input."""
        return config.mode == "multi-task"

    @classmethod
    def policy_names(cls, config: BCHyperparameters) -> tuple[str, ...]:
        """One policy, named after its mode."""
        return (f"bc-{config.mode}",)

    @classmethod
    def columns(cls, config: BCHyperparameters) -> tuple[str, ...]:
        """Observations and actions, and in mode multi-task the trajectory's cost return."""
        return ("observations", "actions", *(["cost_returns"] if config.mode == "multi-task" else []))

    @classmethod
    def select(cls, dataset: Dataset, config: BCHyperparameters, replica: Replica) -> Selection:
        """The transitions of the trajectories that the mode names; a trajectory is taken whole or not at all."""
        if config.mode in ("all", "multi-task"):
            return Selection()
        costs, limit = dataset.trajectories.cost_returns(config.gamma), replica.cost_limit
        if config.mode == "frontier":
            chosen = frontier_mask(costs, dataset.trajectories.reward_returns(config.gamma))
        else:
            assert limit is not None, "the engine gives a limit where training depends on one"
            chosen = {
                "safe": costs <= limit,
                "risky": costs >= 2 * limit,
                "boundary": (0.5 * limit < costs) & (costs <= 1.5 * limit),
            }[config.mode]
        if not chosen.any():
            raise UserError(
                f"bc mode {config.mode!r} selects no trajectory of {dataset.path.name} at cost limit {limit}: "
                f"its {len(costs)} trajectories cost {costs.min():g} to {costs.max():g}"
            )
        return Selection(np.flatnonzero(dataset.trajectories.spread(chosen)))

    def __init__(
        self,
        config: BCHyperparameters,
        task: Task,
        replicas: Sequence[Replica],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config = config
        inputs = task.observation_size + (config.mode == "multi-task")
        self.actor = Builder.of(replicas, device, dtype).mlp(inputs, *config.hidden_sizes, task.action_size)
        self.optimizer = adam([(config.actor_lr, self.actor.parameters())])

    def update(self, batch: Batch, noise: Batch) -> dict[str, Tensor]:
        """Minimise the mean squared error of tanh(actor(s)) to the dataset's actions."""
        inputs = batch["observations"]
        if self.config.mode == "multi-task":
            inputs = torch.cat([inputs, batch["cost_returns"].unsqueeze(-1)], -1)
        loss = per_replica_mean((torch.tanh(self.actor(inputs)) - batch["actions"]).square())
        minimise(self.optimizer, loss)
        return {"actor_loss": loss.detach()}

    def policies(self, replica: int) -> dict[str, Policy]:
        """The cloned policy under its mode's name."""
        cut = ConditionedPolicy if self.config.mode == "multi-task" else ClonedPolicy
        return {f"bc-{self.config.mode}": cut(self.actor.unstacked(replica))}

    def parts(self) -> dict[str, Any]:
        """The actor and its optimiser."""
        return {"actor": self.actor, "optimizer": self.optimizer}


class ConditionedPolicy(ClonedPolicy):
    """tanh(actor(s, cost limit)): the limit stands where training had the trajectory's cost return."""

    def reset(self, seeds: Sequence[int], cost_limit: float | None) -> None:
        """Take the limit to aim at."""
        super().reset(seeds, cost_limit)
        self.cost_limit = told(cost_limit, "bc-multi-task")

    def act(self, observations: Tensor) -> Tensor:
        """Deterministic actions (n, action_size)."""
        limit = observations.new_full((len(observations), 1), self.cost_limit)
        return torch.tanh(self.actor(torch.cat([observations, limit], -1)))
