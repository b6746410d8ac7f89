"""The tasks that a suite means: DSRL's, and its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from harness.data.dataset import sizes
from harness.errors import SuiteError, at, nearest
from harness.guard import TookTooLong, within
from harness.simulators import require_simulator
from harness.suite import FILES, Suite, TimeLimits
from harness.tasks import FAMILIES, Task, all_names, all_tasks, select_tasks

OWN_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
"""What an own task may be called."""


def own_task(suite: Suite, name: str, folder: Path) -> Task:
    """An own task of a suite, with the sizes that its file has.

    Raises:
        SuiteError: its name or its file is wrong.
    """
    _require_own_name(suite, name)
    with at(*FILES, name):
        return _as_task(suite, name, folder, *sizes(Path(suite.data.files[name])))


def chosen_tasks(suite: Suite, own: Sequence[Task]) -> list[Task]:
    """The suite's tasks, its own behind DSRL's.

    Raises:
        UserError: a pattern names none, or an own task is wrong.
    """
    everything = (*all_tasks().values(), *own)
    known = all_names(everything)
    named: dict[str, str] = {}
    for key in suite.data.files:
        if key not in known:
            raise SuiteError(
                f"a file goes with one task, and none is called {key!r}.{nearest(key, known)}", *FILES, key
            )
        other = named.setdefault(next(task.id for task in everything if key in task.names), key)
        if other != key:
            raise SuiteError(f"{other!r} and {key!r} are one task, which has one file", *FILES, key)
    chosen: set[str] = set()
    for index, pattern in enumerate(suite.tasks):
        with at("tasks", index):
            chosen |= {task.id for task in select_tasks([pattern], own)}
    return [_with_code(suite, task) if task.family == "own" else task for task in select_tasks(chosen, own)]


def _with_code(suite: Suite, task: Task) -> Task:
    from harness.simulators import own

    with at("own_tasks", task.name, "environment", also=TookTooLong), in_time(suite.time_limits):
        return replace(task, code=own.code(task))


def task_to_collect(suite: Suite, folder: Path, name: str) -> tuple[Task, Path]:
    """An own task of a suite whose dataset may not be there yet, and where the suite looks for it. It is tried.

    Args:
        suite: with whole paths of own files.
        folder: where the code of its own tasks is looked for.
        name: of the task.

    Raises:
        SuiteError: the suite has no such own task, or its environment cannot serve.
    """
    from harness.simulators.own import fill_in

    own = suite.own_tasks
    if name not in own:
        raise SuiteError(f"own_tasks has no {name!r}.{nearest(name, own)}", "own_tasks")
    _require_own_name(suite, name)
    with at("own_tasks", name, "environment", also=TookTooLong), in_time(suite.time_limits):
        filled = fill_in(_as_task(suite, name, folder, 0, 0))
        require_simulator(filled)
    return filled, Path(suite.data.files[name])


def tasks_to_check(suite: Suite, folder: Path, patterns: Sequence[str]) -> list[tuple[Task, Path | None]]:
    """The tasks that the patterns name, a suite's own beside DSRL's, and the file that the suite names for each.

    An own task has no sizes yet (0): its file, which may be wrong, says them.

    Raises:
        UserError: a pattern names no task, or an own task is wrong.
    """
    for name in suite.own_tasks:
        _require_own_name(suite, name)
    own = [_as_task(suite, name, folder, 0, 0) for name in suite.own_tasks]
    files = suite.data.files
    return [
        (task, next((Path(files[key]) for key in task.names if key in files), None))
        for task in select_tasks(patterns, own)
    ]


def in_time(limits: TimeLimits) -> AbstractContextManager[None]:
    """Around what an own environment does before anything is trained: making it, or a trial episode.

    Raises:
        TookTooLong: it does not end in the time that the suite gives an episode.
    """
    limit = limits.episode
    return within(limit, f"the {limit:g} s that an episode may take (time_limits.episode)")


def _require_own_name(suite: Suite, name: str) -> None:
    if not OWN_NAME.fullmatch(name) or name in ("all", "own", *FAMILIES):
        raise SuiteError(f"{name!r} cannot be a task's name: letters, digits, '_', '.', '-'", "own_tasks", name)
    if name in all_names(all_tasks().values()):
        raise SuiteError(f"{name!r} is a task of DSRL: call yours something else", "own_tasks", name)
    if name not in suite.data.files:
        raise SuiteError(f"which file holds the dataset of {name}? Say so under data.files", "own_tasks", name)


def _as_task(suite: Suite, name: str, folder: Path, observation_size: int, action_size: int) -> Task:
    given = suite.own_tasks[name]
    return Task(
        id=name,
        name=name,
        family="own",
        max_episode_steps=given.episode_length,
        observation_size=observation_size,
        action_size=action_size,
        cost_limits=tuple(given.cost_limits),
        min_episode_reward=given.reference_returns[0],
        max_episode_reward=given.reference_returns[1],
        min_episode_cost=0.0,
        max_episode_cost=max(given.cost_limits),
        dataset_file="",
        environment=given.environment,
        arguments=given.arguments,
        folder=str(folder),
    )
