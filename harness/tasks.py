"""The 38 tasks of DSRL as data: families, cost limits, reference returns, score normalisation.

The table beside this file (``tasks.csv``) carries the values of DSRL's ``infos.py``, and the sizes of observations
and actions as the simulators have them; tests hold it to both.
"""

from __future__ import annotations

import csv
import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast, overload

from harness.errors import UserError, nearest

FAMILIES = ("bullet", "navigation", "velocity", "metadrive")
"""Bullet-Safety-Gym; Safety-Gymnasium's navigation and velocity tasks; MetaDrive."""

ROUNDING = 1e-12
"""What a sum of floats may be off, relative to itself: far above what 10^6 additions do, far below one step's cost."""

Values = TypeVar("Values")
"""A float in, a float out; an array in, an array out."""


@dataclass(frozen=True)
class Task:
    """One environment with its dataset. Returns and costs are undiscounted sums over an episode.

    Actions lie in [-1, 1] in every task. The family ``own`` is for what is not DSRL's: ``environment`` and
    ``arguments`` are then what gymnasium makes it by, ``folder`` is where its code may lie, ``code`` says which code
    that is (see :mod:`harness.simulators.code`), and a suite names the dataset.
    """

    id: str
    name: str
    family: str
    max_episode_steps: int
    observation_size: int
    action_size: int
    cost_limits: tuple[float, ...]
    min_episode_reward: float
    max_episode_reward: float
    min_episode_cost: float
    max_episode_cost: float
    dataset_file: str
    environment: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    folder: str = ""
    code: str = ""

    @property
    def names(self) -> tuple[str, str]:
        """What it is called: its id and its name."""
        return self.id, self.name

    @property
    def middle_limit(self) -> float:
        """The middle one of its cost limits, of an even number the upper one."""
        return sorted(self.cost_limits)[len(self.cost_limits) // 2]

    def normalize_reward(self, episode_return: Values) -> Values:
        """(R - min) / (max - min), as ``OfflineEnv.get_normalized_score`` of DSRL has it; not clipped."""
        span = self.max_episode_reward - self.min_episode_reward
        return cast(Values, (episode_return - self.min_episode_reward) / span)  # type: ignore[operator]


def normalize_cost(cost: Values, cost_limit: Values) -> Values:
    """(C + e) / (limit + e) with e = 1 where the limit is 0 and 0 elsewhere, as DSRL has it. Safe means at most 1."""
    epsilon = (cost_limit == 0) * 1.0
    return cast(Values, (cost + epsilon) / (cost_limit + epsilon))  # type: ignore[operator]


@overload
def within(cost: float, limit: float) -> bool: ...
@overload
def within(cost: Any, limit: Any) -> Any: ...
def within(cost: Any, limit: Any) -> Any:
    """Whether a cost is at most the limit: the one rule by which a table calls an episode or a mean safe.

    Equal is safe, up to :data:`ROUNDING` of the limit: sums and means of floats differ in their last digits with the
    order of additions, and an exact tie would be safe in one order and not in another.

    Args:
        cost: of an episode, or a mean; normalised or not, as the limit is.
        limit: the most that is safe; of normalised costs 1. Arrays are held against each other as numpy has it.
    """
    return cost <= limit * (1 + ROUNDING)


@cache
def all_tasks() -> dict[str, Task]:
    """Every task by its id, in the table's order."""
    with (Path(__file__).parent / "tasks.csv").open(newline="") as file:
        tasks = [
            Task(
                id=row["task_id"],
                name=row["name"],
                family=row["family"],
                max_episode_steps=int(row["max_episode_steps"]),
                observation_size=int(row["observation_size"]),
                action_size=int(row["action_size"]),
                cost_limits=tuple(float(limit) for limit in row["cost_limits"].split()),
                min_episode_reward=float(row["min_episode_reward"]),
                max_episode_reward=float(row["max_episode_reward"]),
                min_episode_cost=float(row["min_episode_cost"]),
                max_episode_cost=float(row["max_episode_cost"]),
                dataset_file=row["dataset_file"],
            )
            for row in csv.DictReader(file)
        ]
    return {task.id: task for task in tasks}


@cache
def _by_name() -> dict[str, Task]:
    return {name: task for task in all_tasks().values() for name in task.names}


def find_task(name: str) -> Task:
    """The task with this id (``OfflineCarCircle-v0``) or name (``CarCircle``).

    Raises:
        UserError: there is none.
    """
    if (task := _by_name().get(name)) is not None:
        return task
    raise UserError(
        f"unknown task {name!r}.{nearest(name, all_names(all_tasks().values()))} 'lspc-bench tasks' lists them."
    )


def all_names(tasks: Iterable[Task]) -> list[str]:
    """What the tasks are called."""
    return [name for task in tasks for name in task.names]


def select_tasks(patterns: Iterable[str], own: Iterable[Task] = ()) -> list[Task]:
    """The tasks that the patterns name, without repeats, in the table's order.

    A pattern is a task's id or name, a family, ``all`` (DSRL's 38), or a glob over ids and names (``Car*``,
    ``*Circle*``).

    Args:
        patterns: what to look for.
        own: tasks beside DSRL's.

    Raises:
        UserError: a pattern matches nothing.
    """
    tasks = [*all_tasks().values(), *own]
    chosen: set[str] = set()
    for pattern in patterns:
        matched = {task.id for task in tasks if matches(task, pattern)}
        if not matched:
            raise UserError(
                f"no task matches {pattern!r}.{nearest(pattern, [*all_names(tasks), *FAMILIES, 'all'])} "
                "'lspc-bench tasks' lists them."
            )
        chosen |= matched
    return [task for task in tasks if task.id in chosen]


def matches(task: Task, pattern: str) -> bool:
    """Whether the pattern (see :func:`select_tasks`) names this task."""
    return (
        pattern == task.family
        or (pattern == "all" and task.family != "own")
        or fnmatch.fnmatchcase(task.id, pattern)
        or fnmatch.fnmatchcase(task.name, pattern)
    )
