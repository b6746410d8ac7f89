"""Roll-outs: in worker processes, several environments in lockstep, one batched forward pass a step.

How the episodes of an evaluation are cut into chunks does not depend on the number of workers, and an episode's initial
state and noise depend on its seed alone, so results do not depend on the workers either.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from harness import simulators
from harness.algorithm import Policy, acted
from harness.guard import UserCodeError, guard, line, restored, within
from harness.pool import Pool, Submitting
from harness.tasks import Task
from harness.timing import BATCHES, milliseconds_an_action

if TYPE_CHECKING:
    from harness.simulators import Environment

Floats = NDArray[np.float64]
Result = TypeVar("Result")

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
        UserCodeError: whatever policy or environment raise.
        RuntimeError: the policy's actions are not finite.
        SimulatorError: what the environment gave is not finite, or its cost is negative.
    """
    together = 1 if simulators.lives_alone(task) else len(seeds)
    episodes: list[Episode] = []
    with restored():
        environments = _environments(task, together)
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
    count, theirs = len(seeds), f"the environment {task.environment!r}"
    resetting, stepping = guard(theirs, "reset"), guard(theirs, "step")
    acting, observing = guard("the policy", "act"), guard("the policy", "observe")
    with resetting:
        pairs = zip(environments, seeds, strict=True)
        observations = np.stack([environment.reset(seed) for environment, seed in pairs])
    for observation in observations:
        simulators.require_sound(task.name, 0, observation)
    returns, costs, lengths = np.zeros(count), np.zeros(count), np.zeros(count, dtype=int)
    live = np.ones(count, dtype=bool)
    watch(0, returns, costs)
    with torch.inference_mode():
        with guard("the policy", "reset"):
            policy.eval()
            policy.reset(seeds, cost_limit)
        while live.any():
            # Finished episodes keep their last observation: the batch's shape, and so each row's result, stays.
            # A copy: a policy may keep what it has seen.
            with acting:
                actions = acted(policy, torch.from_numpy(observations.copy()), task.action_size).numpy()
            if not np.isfinite(actions[live]).all():
                wrong = int((~np.isfinite(actions)).sum())
                raise RuntimeError(f"the policy's actions must be finite; at step {lengths.max()} {wrong} are not")
            step_rewards, step_costs = np.zeros(count), np.zeros(count)
            for index in np.flatnonzero(live):
                with stepping:
                    observation, reward, cost, terminated, truncated = environments[index].step(actions[index])
                simulators.require_sound(task.name, int(lengths[index]) + 1, observation, reward, cost)
                observations[index] = observation
                step_rewards[index], step_costs[index] = reward, cost
                lengths[index] += 1
                live[index] = not (terminated or truncated)
            returns += step_rewards
            costs += step_costs
            watch(int(lengths.max()), returns, costs)
            with observing:
                policy.observe(torch.from_numpy(step_rewards).float(), torch.from_numpy(step_costs).float())
    columns = (seeds, returns.tolist(), costs.tolist(), lengths.tolist())
    return [Episode(*values) for values in zip(*columns, strict=True)]


_OPEN: dict[str, list[Environment]] = {}


def _environments(task: Task, count: int) -> list[Environment]:
    """Environments of this process, made once; only one task's are kept open."""
    _close_environments(but=task.id)
    environments = _OPEN.setdefault(task.id, [])
    while len(environments) < count:
        with guard(f"the environment {task.environment!r}", "make"):
            environments.append(simulators.make(task))
    return environments[:count]


def _close_environments(but: str | None = None) -> None:
    """Close this process's environments, except those of one task."""
    for other in [key for key in _OPEN if key != but]:
        for environment in _OPEN.pop(other):
            try:
                environment.close()
            except BaseException as error:  # another task's, or nobody's any more: no episode depends on it
                logging.getLogger(__name__).warning("the environment of %s does not close: %s", other, line(error))


def evaluation_pool(workers: int) -> Pool:
    """So many processes for roll-outs."""
    return Pool(workers, _start_worker, TASKS_A_WORKER)


class Evaluator:
    """A pool of worker processes for roll-outs. A chunk whose worker dies is rolled out by another.

    Args:
        workers: processes; 0 rolls out in this process, when asked.
        episode_seconds: that an episode may take. Episodes in lockstep share their times.
        pool: of such processes, shared with others; ``None``: its own.
    """

    def __init__(self, workers: int, episode_seconds: float = float("inf"), pool: Submitting | None = None) -> None:
        self.workers, self.episode_seconds = workers, episode_seconds
        self._pool = evaluation_pool(workers) if pool is None else pool

    def submit(
        self, task: Task, policy: Policy, seeds: Sequence[int], cost_limit: float | None
    ) -> list[Future[list[Episode]]]:
        """Roll out one episode a seed.

        Returns:
            The futures' lists, one after the other, are in the seeds' order. See :meth:`harness.pool.Pool.submit` for
            what they raise.

        """
        chunks = [list(seeds[start : start + CHUNK]) for start in range(0, len(seeds), CHUNK)]
        if self.workers == 0:
            seconds = self.episode_seconds
            return [self._here(seconds * len(chunk), roll_out, task, policy, chunk, cost_limit) for chunk in chunks]
        try:
            pickled = _pickled(policy)
        except UserCodeError as error:
            return [_failed(error)]
        return [
            self._pool.submit(_roll_out, task, pickled, chunk, cost_limit, seconds=self.episode_seconds * len(chunk))
            for chunk in chunks
        ]

    def time(self, task: Task, policy: Policy, cost_limit: float | None) -> Future[dict[str, float]]:
        """Find out how long a policy takes to act; see :func:`act_milliseconds` and :meth:`submit`."""
        if self.workers == 0:
            return self._here(self.episode_seconds, act_milliseconds, task, policy, cost_limit)
        try:
            pickled = _pickled(policy)
        except UserCodeError as error:
            return _failed(error)
        return self._pool.submit(_act_milliseconds, task, pickled, cost_limit, seconds=self.episode_seconds)

    def _here(self, seconds: float, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """In this process; the future carries an exception, as a worker's would."""
        future: Future[Result] = Future()
        try:
            with within(seconds, f"its {seconds:g} s"):
                future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers: by asking when all is well, at once when not."""
        _close_environments()  # of this process, where it is the only worker
        self._pool.close(at_once=kind is not None)


def act_milliseconds(task: Task, policy: Policy, cost_limit: float | None) -> dict[str, float]:
    """Milliseconds that a policy takes for an action, by how many environments it acts for at once: :data:`BATCHES`.

    Args:
        task: whose observations it acts on; they are made up.
        policy: on the CPU.
        cost_limit: that it is told.

    Raises:
        UserCodeError: whatever the policy raises.
    """
    observations = torch.randn(max(BATCHES), task.observation_size, generator=torch.Generator().manual_seed(0))
    with restored(), guard("the policy", "act"):
        return {
            str(count): round(milliseconds_an_action(policy, observations[:count], task.action_size, cost_limit), 6)
            for count in BATCHES
        }


def _pickled(policy: Policy) -> bytes:
    with guard("the policy", "pickling"):
        return pickle.dumps(policy)


def _failed(error: Exception) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def _unpickled(pickled: bytes) -> Policy:
    with guard("the policy", "unpickling"):
        policy: Policy = pickle.loads(pickled)  # noqa: S301 - of our own parent
        return policy


def _roll_out(task: Task, pickled: bytes, seeds: Sequence[int], cost_limit: float | None) -> list[Episode]:
    """:func:`roll_out` in a worker."""
    return roll_out(task, _unpickled(pickled), seeds, cost_limit)


def _act_milliseconds(task: Task, pickled: bytes, cost_limit: float | None) -> dict[str, float]:
    """:func:`act_milliseconds` in a worker."""
    return act_milliseconds(task, _unpickled(pickled), cost_limit)


def _start_worker() -> None:
    torch.set_num_threads(1)
    os.nice(NICENESS)
    end_with_parent()


def end_with_parent() -> None:
    """Let this worker process end when its parent does: one that was killed cannot stop its workers."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
