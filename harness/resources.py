"""What algorithms take, on one task: parameters, operations and memory, and the time to train and to act here.

All is of one agent, trained alone on the CPU on made-up data with the sizes of the task (as for forecasts, see
:mod:`harness.forecast`): no dataset and no simulator is needed, and counts are the same everywhere. Times are of this
machine; ``benchmarks/throughput.py`` measures groups of agents, other engines and GPUs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness import capacity, registry
from harness.algorithm import Algorithm, Policy, Replica, kinds_of_update
from harness.data.draws import UNIT, Draws, prepare
from harness.errors import UserError, nearest
from harness.forecast import made_up, one_thread, update_flops
from harness.guard import guard
from harness.plan import Cell, Plan, PlannedCell
from harness.tasks import Task, all_names
from harness.timing import BATCHES, milliseconds_an_action

LIMIT = 20.0
"""What policies that act on a cost limit are told."""
WARM_UP, SECONDS = 2, 2.0
"""Updates of a kind that are not timed, and how long others are timed behind them; one is in any case."""


@dataclass(frozen=True)
class Resources:
    """What one policy of a suite takes.

    Args:
        row: its name in tables.
        batch_size: of its training: transitions, or segments where it draws those.
        parameters: that are trained, of one agent; targets and other copies are not.
        policy_parameters: of what acts.
        flops: floating point operations in the matrix products of a mean update.
        seconds: of 1000 updates, with the threads that this process has.
        memory: bytes of one agent at the peak of an update, see :class:`harness.capacity.Need`.
        milliseconds: an action takes, on one thread: by how many environments one call acts for.
    """

    row: str
    batch_size: int
    parameters: int
    policy_parameters: int
    flops: float
    seconds: float
    memory: int
    milliseconds: dict[int, float]


def task_of(plan: Plan, name: str | None) -> Task:
    """A task of a suite by id or name; its first for ``None``.

    Raises:
        UserError: it has no such task.
    """
    for task in plan.tasks.values():
        if name is None or name in task.names:
            return task
    raise UserError(f"the suite {plan.suite} has no task {name!r}.{nearest(str(name), all_names(plan.tasks.values()))}")


def measure(plan: Plan, task: Task) -> Iterator[Resources]:
    """What every experiment of a suite takes on one of its tasks, a policy at a time.

    Raises:
        UserCodeError: an algorithm fails.
    """
    for planned in experiments(plan, task):
        with guard(registry.named(planned.cell.algorithm), "update"):
            found = _measure(planned, task)
        yield from found


def experiments(plan: Plan, task: Task) -> list[PlannedCell]:
    """The first cell of each of a suite's experiments on a task."""
    firsts: dict[str, PlannedCell] = {}
    for planned in plan.cells:
        if planned.cell.task == task.id:
            firsts.setdefault(planned.label, planned)
    return list(firsts.values())


def agent_of(cell: Cell, task: Task) -> tuple[Algorithm[Any], Draws]:
    """A cell's agent, untrained, and what it trains on: made-up data with the task's sizes."""
    algorithm, config, data = registry.load(cell.algorithm), cell.config, made_up(task)
    replica = Replica(cell.seed, cell.cost_limit)
    selection = algorithm.select(data, config, replica)
    replicas, draws = prepare(algorithm, config, data, [replica], [selection], steps=UNIT)
    return algorithm(config, task, replicas), draws


def _measure(planned: PlannedCell, task: Task) -> list[Resources]:
    cell, config = planned.cell, planned.cell.config
    algorithm = registry.load(cell.algorithm)
    replica = Replica(cell.seed, cell.cost_limit)
    memory = capacity.measure(algorithm, config, made_up(task), replica=replica).replica
    flops = update_flops(algorithm, config, task)
    agent, draws = agent_of(cell, task)
    done, seconds = 0, 0.0
    for step, share in kinds_of_update(agent, config.steps).values():
        agent.step = step
        begun, timed = 0.0, -WARM_UP
        while timed < 1 or time.perf_counter() - begun < SECONDS:
            if timed == 0:
                begun = time.perf_counter()
            agent.update(*draws.at(done))
            done, timed = done + 1, timed + 1
        seconds += share * (time.perf_counter() - begun) / timed
    return [
        Resources(
            planned.rows[name],
            config.batch_size,
            trained_parameters(agent),
            sum(one.numel() for one in policy.parameters()),
            flops,
            1000 * seconds,
            memory,
            act_milliseconds(policy, task),
        )
        for name, policy in agent.policies(0).items()
    ]


def trained_parameters(agent: Algorithm[Any]) -> int:
    """Numbers that gradients train, of all replicas together; each counts once, in however many parts it stands."""
    modules = [part for part in agent.parts().values() if isinstance(part, nn.Module)]
    trained: dict[int, Tensor] = {
        id(one): one for module in modules for one in module.parameters() if one.requires_grad
    }
    return sum(one.numel() for one in trained.values())


def act_milliseconds(policy: Policy, task: Task) -> dict[int, float]:
    """How long an action takes on one thread, by how many environments one call acts for."""
    with one_thread():
        return {
            count: milliseconds_an_action(policy, torch.randn(count, task.observation_size), task.action_size, LIMIT)
            for count in BATCHES
        }
