"""Trained policies, as a results folder keeps them: found by their cell, brought back, and acting on arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from harness import registry
from harness.algorithm import Policy, acted
from harness.errors import UserError, nearest
from harness.guard import guard
from harness.plan import Cell, Plan, PlannedCell
from harness.store import Store


def restore_policy(store: Store, cell: Cell, name: str) -> Policy:
    """A policy of a finished cell, as its last checkpoint left it.

    Raises:
        KeyError: the cell has no such policy.
    """
    replica = replace(cell.replica, statistics=store.statistics(cell))
    algorithm, state = registry.load(cell.algorithm), store.policies(cell)[name]
    with guard(registry.named(cell.algorithm), "policies"):
        policy = algorithm(cell.config, cell.definition, [replica]).policies(0)[name]
        policy.load_state_dict(state)
    return policy


def find_cell(plans: Sequence[Plan], beginning: str) -> PlannedCell:
    """The cell whose hash begins so; several suites may have it.

    Raises:
        UserError: there is none, or there are several.
    """
    found = {one.cell.hash: one for plan in plans for one in plan.cells if one.cell.hash.startswith(beginning.lower())}
    if not found:
        raise UserError(f"no cell {beginning!r} there; 'lspc-bench policy RESULTS' lists those that have policies")
    if len(found) > 1:
        some = ", ".join(f"{one.cell.hash} ({one.cell.describe(one.label)})" for one in [*found.values()][:3])
        raise UserError(f"{len(found)} cells begin with {beginning!r}: {some}, ...")
    (cell,) = found.values()
    return cell


@dataclass(frozen=True, repr=False)
class TrainedPolicy:
    """A policy with the cell that trained it, acting on arrays.

    ::

        policy.reset(cost_limit=20)
        action = policy.act(observation)
        policy.observe(reward, cost)  # of the step; before the next action

    Args:
        cell: what was trained: task, hyperparameters, seed, cost limit.
        name: the policy's own, of those that the algorithm offers.
        policy: itself, on the CPU.
    """

    cell: Cell
    name: str
    policy: Policy

    def __repr__(self) -> str:
        return f"<{self.name} of {self.cell.describe()} ({self.cell.hash})>"

    def told(self, cost_limit: float | None) -> float | None:
        """The limit, where the policy acts on the one that it is told.

        Raises:
            UserError: it acts on a limit and is told none, or the other way round.
        """
        if self.cell.told_limit and cost_limit is None:
            limits = ", ".join(f"{limit:g}" for limit in self.cell.evaluation_limits)
            raise UserError(f"{self.name} acts on a cost limit: give one (it was evaluated at {limits})")
        if cost_limit is not None and not self.cell.told_limit:
            raise UserError(f"{self.name} does not act on a cost limit, and cannot be told one")
        return cost_limit

    def reset(self, seeds: int | Sequence[int] = 0, cost_limit: float | None = None) -> None:
        """Begin an episode, or n side by side.

        Args:
            seeds: of the policy's own random numbers, one an episode.
            cost_limit: what an episode may cost in all, for a policy that acts on it.

        Raises:
            UserError: the policy acts on a limit and is told none, or the other way round.
        """
        limit = self.told(cost_limit)
        with torch.inference_mode():
            self.policy.eval()
            self.policy.reset([seeds] if isinstance(seeds, int) else list(seeds), limit)

    def act(self, observations: ArrayLike) -> NDArray[np.float32]:
        """Actions in [-1, 1].

        Args:
            observations: (observation_size,) of one episode, or (n, observation_size).

        Returns:
            (action_size,), or (n, action_size).

        Raises:
            ValueError: the shape is another.
        """
        given = np.array(observations, dtype=np.float32)  # a copy: a policy may keep what it has seen
        task = self.cell.definition
        if given.ndim not in (1, 2) or given.shape[-1] != task.observation_size:
            raise ValueError(f"observations of {task.name} are (n, {task.observation_size}), not {given.shape}")
        with torch.inference_mode():
            actions = acted(self.policy, torch.from_numpy(np.atleast_2d(given)), task.action_size).float().numpy()
        return actions[0] if given.ndim == 1 else actions

    def observe(self, rewards: ArrayLike, costs: ArrayLike) -> None:
        """Tell the policy what its last actions brought, a number each or (n,); some act on what is left to spend."""
        brought = [torch.from_numpy(np.atleast_1d(np.array(values, dtype=np.float32))) for values in (rewards, costs)]
        with torch.inference_mode():
            self.policy.observe(*brought)


def load_trained(store: Store, planned: PlannedCell, name: str | None = None) -> TrainedPolicy:
    """A policy of a cell.

    Args:
        store: the results.
        planned: the cell, with how its rows are called.
        name: the policy's own, or its row's in tables; ``None``: the only one.

    Raises:
        UserError: there is no such policy, several and none is named, or the cell was imported or is not done.
    """
    cell, rows = planned.cell, planned.rows
    if cell.imported is not None:
        raise UserError(f"cell {cell.hash} was imported: its policies are not here")
    if name is None and len(rows) > 1:
        raise UserError(f"cell {cell.hash} has several policies: choose one of {', '.join(rows)}")
    chosen = [own for own, row in rows.items() if name in (None, own, row)]
    if not chosen:
        raise UserError(f"cell {cell.hash} has no policy {name!r}, only {', '.join(rows)}.{nearest(str(name), rows)}")
    status = store.status(cell)
    if status.state != "done":
        why = f" ({status.brief})" if status.brief else ""
        raise UserError(f"{cell.describe(planned.label)} ({cell.hash}) is {status.state}{why}: it has no policy yet")
    return TrainedPolicy(cell, chosen[0], restore_policy(store, cell, chosen[0]))
