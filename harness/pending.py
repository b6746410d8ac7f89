"""The evaluations of one job: policies that are to be rolled out, and episodes that are back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from harness import registry
from harness.algorithm import Policy
from harness.evaluation import Episode, Evaluator, episode_seeds
from harness.guard import TookTooLong, UserCodeError, line
from harness.notes import Note, silent
from harness.plan import Job
from harness.pool import WorkerDied
from harness.tracking import NOWHERE, Tracking

Row = dict[str, Any]
Remade = Callable[[int, str, Mapping[str, Tensor]], Policy]
"""A replica's policy by its name, with this state."""


@dataclass
class PendingEvaluation:
    """A policy whose roll-outs are not all back yet; it is part of the checkpoint.

    Args:
        replica: whose it is.
        step: after which it was taken.
        name: of the policy.
        cost_limit: that it is told.
        state: of the policy, as it was before it was rolled out.
        futures: of its roll-outs; none where they failed, or are left to another process.
    """

    replica: int
    step: int
    name: str
    cost_limit: float | None
    state: dict[str, Tensor]
    futures: list[Future[list[Episode]]] = field(default_factory=list)


class Evaluations:
    """What a job's policies are evaluated with.

    Args:
        job: whose.
        evaluator: rolls the policies out; ``None`` keeps them, for a process that does.
        note: is told what the user should know.
        tracking: is told what is back.

    Attributes:
        pending: what is not back.
        episodes: what is: a row an episode.
        failed: why a replica's evaluation failed, by its index.
        milliseconds: that each policy takes to act: by its name and by how many environments it acts for at once.
    """

    def __init__(
        self,
        job: Job,
        evaluator: Evaluator | None,
        note: Note = silent,
        tracking: Tracking = NOWHERE,
    ) -> None:
        self.job, self.evaluator, self.note, self.tracking = job, evaluator, note, tracking
        self.evaluation, self.steps = job.cells[0].evaluation, job.cells[0].config.steps
        self.pending: list[PendingEvaluation] = []
        self.episodes: list[Row] = []
        self.failed: dict[int, str] = {}
        self.milliseconds: dict[str, dict[str, float]] = {}
        self._timed: dict[str, Future[dict[str, float]]] = {}

    def limits(self, index: int) -> tuple[float | None, ...]:
        """Those that a replica's policies are told, one after the other."""
        cell = self.job.cells[index]
        return cell.evaluation_limits if cell.told_limit else (None,)

    def submit(self, index: int, step: int, policies: Mapping[str, Policy], states: Mapping[str, Any]) -> None:
        """Evaluate a replica's policies as they are after a step.

        Args:
            index: of the replica.
            step: the number of updates so far.
            policies: on the CPU, by name.
            states: theirs, by name; see :func:`stored`.
        """
        for name, policy in policies.items():
            for limit in self.limits(index):
                pending = PendingEvaluation(index, step, name, limit, states[name])
                self.pending.append(pending)
                self._roll_out(pending, policy)

    def _roll_out(self, pending: PendingEvaluation, policy: Policy) -> None:
        if self.evaluator is not None:
            count = self.evaluation.final if pending.step == self.steps else self.evaluation.episodes
            seeds = episode_seeds(self.job.task, self.job.cells[pending.replica].seed, count)
            pending.futures = self.evaluator.submit(self.job.task, policy, seeds, pending.cost_limit)

    def time(self, policies: Mapping[str, Policy], limit: float | None) -> None:
        """Find out how long policies take to act.

        Args:
            policies: of one replica, as the others' are built alike; that nobody rolls out meanwhile.
            limit: that they are told.
        """
        for name, policy in policies.items():
            if self.evaluator is not None and name not in self.milliseconds:
                self._timed[name] = self.evaluator.time(self.job.task, policy, limit)

    def collect(self) -> int:
        """Take in what is back.

        Returns:
            How many episodes came back.
        """
        count = 0
        remaining = []
        for pending in self.pending:
            if not pending.futures or not all(future.done() for future in pending.futures):
                remaining.append(pending)
                continue
            episodes: list[Episode] = []
            try:
                for future in pending.futures:
                    episodes += future.result()
            except Exception as error:  # a policy's or an environment's own, a worker's death, or no end
                reason = _failure(self.job.algorithm, pending, error)
                self.failed.setdefault(pending.replica, reason)
                pending.futures = []
                remaining.append(pending)  # stays in the checkpoint: the next run tries it again
                continue
            count += len(episodes)
            about = {"replica": pending.replica, "step": pending.step, "policy": pending.name}
            about["cost_limit"] = pending.cost_limit
            rows = [{**about, "episode": index, **asdict(episode)} for index, episode in enumerate(episodes)]
            self.episodes += rows
            self.tracking.evaluated(self.job.cells[pending.replica], rows)
        self.pending = remaining
        for name in [name for name, future in self._timed.items() if future.done()]:
            try:
                self.milliseconds[name] = self._timed.pop(name).result()
            except Exception as error:  # as above; if it is more than that it failed here, its roll-outs will tell
                self.note(f"how long {name} takes to act is unknown: {line(error)}")
        return count

    def drop(self, index: int) -> None:
        """Nobody wants to know any more what is pending of a replica."""
        self.pending = [pending for pending in self.pending if pending.replica != index]

    def cancel(self) -> None:
        """Nobody waits any more."""
        for pending in self.pending:
            for future in pending.futures:
                future.cancel()
        for timed in self._timed.values():
            timed.cancel()

    @property
    def waiting(self) -> bool:
        """Whether something is still under way."""
        return bool(self._timed) or any(pending.futures for pending in self.pending)

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """What came back, and the policies whose roll-outs did not."""
        return {
            "episodes": self.episodes,
            "milliseconds": self.milliseconds,
            "pending": [
                {
                    "replica": pending.replica,
                    "step": pending.step,
                    "name": pending.name,
                    "cost_limit": pending.cost_limit,
                    "policy": pending.state,
                }
                for pending in self.pending
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any], remade: Remade) -> None:
        """Go on from there: roll the policies out.

        Args:
            state: as :meth:`state_dict` gave it.
            remade: makes the policies again.
        """
        self.episodes = state["episodes"]
        self.milliseconds = state.get("milliseconds", {})  # not in checkpoints from before there were any
        for kept in state["pending"]:
            pending = PendingEvaluation(kept["replica"], kept["step"], kept["name"], kept["cost_limit"], kept["policy"])
            self.pending.append(pending)
            if self.evaluator is not None:
                self._roll_out(pending, remade(pending.replica, pending.name, pending.state))


def stored(state: Any) -> dict[str, Tensor]:
    """A policy's state, copied to the host; no two tensors share their memory.

    Raises:
        Exception: it is no mapping of dense tensors by name, of types that files know.
    """
    from safetensors.torch import save

    if not isinstance(state, Mapping):
        raise TypeError(f"a policy's state must be tensors by name, not {type(state).__name__}")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
            raise TypeError(f"a policy's state must be dense tensors by name; {name!r} is {type(value).__name__}")
        save({name: torch.empty(0, dtype=value.dtype)})
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}


def _failure(algorithm: str, pending: PendingEvaluation, error: Exception) -> str:
    what = f"{registry.named(algorithm)}: evaluation of {pending.name} at step {pending.step}"
    if isinstance(error, UserCodeError):
        return f"{error.trace}\n{what}: {error}".strip()
    if isinstance(error, TookTooLong):
        return f"{what}: {error}; time_limits.episode in the suite says how long an episode may take"
    return f"{what}: {error if isinstance(error, WorkerDied) else line(error)}"
