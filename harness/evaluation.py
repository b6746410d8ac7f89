"""Roll-outs: in worker processes, several environments in lockstep, one batched forward pass a step.

How the episodes of an evaluation are cut into chunks does not depend on the number of workers, and an episode's initial
state and noise depend on its seed alone, so results do not depend on the workers either.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness import simulators
from harness.algorithm import Policy
from harness.tasks import Task

if TYPE_CHECKING:
    from harness.simulators import Environment

Floats = NDArray[np.float64]

TASKS_A_WORKER = 200
"""Chunks after which a worker is replaced: MetaDrive keeps some memory of every episode."""
NICENESS = 10
"""Of the workers: training goes first. Its threads wait for each other, so one that loses its core stops them all."""
CHUNK = 10
"""Environments that are stepped in lockstep. Results depend on it in the last digits (batched matrix products)."""


@dataclass(frozen=True)
class Episode:
    """One evaluation episode, raw: undiscounted sums of reward and cost, and its number of steps."""

    seed: int
    episode_return: float
    cost: float
    length: int


def episode_seeds(task: Task, seed: int, count: int) -> list[int]:
    """Seeds (below 2**31) of ``count`` evaluation episodes, from the task and the cell's seed.

    Every algorithm, and every point of a learning curve, meets the same initial states.
    """
    digests = (hashlib.sha256(f"{task.id}|{seed}|{index}".encode()).digest() for index in range(count))
    return [int.from_bytes(digest[:4], "big") >> 1 for digest in digests]


def roll_out(task: Task, policy: Policy, seeds: Sequence[int], cost_limit: float | None) -> list[Episode]:
    """Run one episode for every seed: in lockstep, or one after the other where a process holds one environment only.

    Args:
        task: where.
        policy: on the CPU.
        seeds: of the episodes.
        cost_limit: what a policy that conditions on the limit acts on.

    Raises:
        RuntimeError: the policy's actions have a wrong shape or are not finite.
        SimulatorError: what the environment gave is not finite, or its cost is negative.
    """
    together = 1 if simulators.lives_alone(task) else len(seeds)
    environments = _environments(task, together)
    episodes: list[Episode] = []
    for start in range(0, len(seeds), together):
        episodes += lockstep(task, environments, policy, seeds[start : start + together], cost_limit)
    return episodes


def lockstep(
    task: Task,
    environments: Sequence[Environment],
    policy: Policy,
    seeds: Sequence[int],
    cost_limit: float | None,
    watch: Callable[[int, Floats, Floats], None] = lambda *_: None,
) -> list[Episode]:
    """Run one episode in each environment, as :func:`roll_out` does.

    Args:
        task: whose environments these are.
        environments: as many as seeds.
        policy: on the CPU.
        seeds: of the episodes.
        cost_limit: what a policy that conditions on the limit acts on.
        watch: called after the resets and after every step, with the number of steps so far and the episodes' returns
            and costs (n,) so far.
    """
    observations = np.stack([environment.reset(seed) for environment, seed in zip(environments, seeds, strict=True)])
    for observation in observations:
        simulators.require_sound(task.name, 0, observation)
    count = len(seeds)
    returns, costs, lengths = np.zeros(count), np.zeros(count), np.zeros(count, dtype=int)
    live = np.ones(count, dtype=bool)
    watch(0, returns, costs)
    policy.eval()
    with torch.inference_mode():
        policy.reset(seeds, cost_limit)
        while live.any():
            # Finished episodes keep their last observation: the batch's shape, and so each row's result, stays.
            # A copy: a policy may keep what it has seen.
            actions = policy.act(torch.from_numpy(observations.copy())).numpy()
            if actions.shape != (count, task.action_size) or not np.isfinite(actions[live]).all():
                raise RuntimeError(
                    f"the policy's actions must be finite and of shape {(count, task.action_size)}; at step "
                    f"{lengths.max()} they have shape {actions.shape}, {int((~np.isfinite(actions)).sum())} not finite"
                )
            step_rewards, step_costs = np.zeros(count), np.zeros(count)
            for index in np.flatnonzero(live):
                observation, reward, cost, terminated, truncated = environments[index].step(actions[index])
                simulators.require_sound(task.name, int(lengths[index]) + 1, observation, reward, cost)
                observations[index] = observation
                step_rewards[index], step_costs[index] = reward, cost
                lengths[index] += 1
                live[index] = not (terminated or truncated)
            returns += step_rewards
            costs += step_costs
            watch(int(lengths.max()), returns, costs)
            policy.observe(torch.from_numpy(step_rewards).float(), torch.from_numpy(step_costs).float())
    columns = (seeds, returns.tolist(), costs.tolist(), lengths.tolist())
    return [Episode(*values) for values in zip(*columns, strict=True)]


_OPEN: dict[str, list[Environment]] = {}


def _environments(task: Task, count: int) -> list[Environment]:
    """Environments of this process, made once; only one task's are kept open."""
    _close_environments(but=task.id)
    environments = _OPEN.setdefault(task.id, [])
    while len(environments) < count:
        environments.append(simulators.make(task))
    return environments[:count]


def _close_environments(but: str | None = None) -> None:
    """Close this process's environments, except those of one task."""
    for other in [key for key in _OPEN if key != but]:
        for environment in _OPEN.pop(other):
            environment.close()


class Evaluator:
    """A pool of worker processes for roll-outs. A worker that dies takes only its own chunk with it.

    Args:
        workers: processes; 0 rolls out in this process, when asked.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: Any = None

    def submit(
        self, task: Task, policy: Policy, seeds: Sequence[int], cost_limit: float | None
    ) -> list[Future[list[Episode]]]:
        """Roll out one episode a seed; the futures' lists, one after the other, are in the seeds' order."""
        chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
        return [self._schedule(task, policy, chunk, cost_limit) for chunk in chunks]

    def _schedule(
        self, task: Task, policy: Policy, seeds: Sequence[int], cost_limit: float | None
    ) -> Future[list[Episode]]:
        if self.workers == 0:
            future: Future[list[Episode]] = Future()
            try:
                future.set_result(roll_out(task, policy, seeds, cost_limit))
            except Exception as error:  # the future carries it, as a worker's would
                future.set_exception(error)
            return future
        if self._pool is None:
            from pebble import ProcessPool

            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPool(self.workers, TASKS_A_WORKER, initializer=_start_worker, context=context)
        scheduled: Future[list[Episode]] = self._pool.schedule(roll_out, args=(task, policy, list(seeds), cost_limit))
        return scheduled

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers: by asking when all is well, at once when not."""
        _close_environments()  # of this process, where it is the only worker
        if self._pool is not None:
            if kind is None:
                self._pool.close()
            else:
                self._pool.stop()
            self._pool.join()


def _start_worker() -> None:
    torch.set_num_threads(1)
    os.nice(NICENESS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle
    end_with_parent()


def end_with_parent() -> None:
    """Let this worker process end when its parent does: one that was killed cannot stop its workers."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
