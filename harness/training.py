"""The loop of one job: blocks of update steps, learning curves, checkpoints. What follows is :mod:`harness.trained`."""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from harness import registry
from harness.algorithm import Policy, Selection
from harness.data.dataset import Dataset
from harness.data.draws import BLOCK, prepare
from harness.diagnostics import Diagnostics
from harness.engine import make_engine
from harness.errors import UserError
from harness.evaluation import Evaluator
from harness.fqe import Candidate, Estimate, FittedQ
from harness.guard import line
from harness.memory import forget_peak, peak
from harness.notes import Note, silent
from harness.pending import Evaluations, Row, stored
from harness.plan import Job
from harness.store import Store
from harness.suite import FQE_METRICS
from harness.tracking import NOWHERE, Tracking
from harness.trained import Trained, begin_tracking, of_replica, replica_warnings

LOG_POINTS = 200
"""Rows of training.parquet, and how often replicas are checked for divergence, over a whole training run."""
MOMENT = 0.05
"""Seconds between looks at the world: roll-outs that are back, a checkpoint that is due, a user who wants to stop."""


class Training:
    """One job from its first step, or its last checkpoint, to its last step.

    Args:
        job: the cells, one a replica.
        dataset: of the job's task.
        selections: what of the dataset each replica trains on.
        store: where results and checkpoints go.
        evaluator: rolls the policies out; ``None`` keeps them, for a process that does.
        device: where to train.
        dtype: of parameters and data.
        engine: how updates are run, see :func:`harness.engine.make_engine`.
        ahead: steps drawn ahead.
        on_host: leave the dataset in the host's memory.
        held_out: of the task's data, what nothing is trained on; diagnostics look at it.
        note: is told what the user should know.
        most_seconds: that it may train.

    Raises:
        UserCodeError: the algorithm does not do what its interface asks. So do most methods.
        TookTooLong: its time is up. So do most methods.
    """

    def __init__(
        self,
        job: Job,
        dataset: Dataset,
        selections: Sequence[Selection],
        store: Store,
        evaluator: Evaluator | None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        engine: str = "auto",
        ahead: int = BLOCK,
        on_host: bool = False,
        held_out: Dataset | None = None,
        note: Note = silent,
        most_seconds: float = float("inf"),
        tracking: Tracking = NOWHERE,
    ) -> None:
        algorithm, config = registry.load(job.algorithm), job.cells[0].config
        self.job, self.dataset, self.store, self.note = job, dataset, store, note
        self.evaluations = Evaluations(job, evaluator, note, tracking)
        self.held_out, self.selections = held_out, selections
        self.device = torch.device(device)
        self.evaluation = job.cells[0].evaluation
        self.steps = config.steps
        self.log_every = max(1, self.steps // LOG_POINTS)
        self.seconds, self.most_seconds = 0.0, most_seconds
        self._since: float | None = None
        replicas = [cell.replica for cell in job.cells]
        with self._theirs("select"):
            replicas, self.draws = prepare(
                algorithm, config, dataset, replicas, selections, device, dtype, ahead, on_host
            )
        with self._theirs("__init__"):
            self.algorithm = algorithm(config, job.task, replicas, device, dtype)
            self.engine = make_engine(engine, self.algorithm, self.draws, note)
        self.diagnostics = None
        if held_out is not None:
            with self._theirs("diagnostic_columns"):
                self.diagnostics = Diagnostics(self.algorithm, config, held_out, replicas, device, dtype)
        self.fitted = None
        if self.evaluation.fqe is not None:
            self.fitted = FittedQ(dataset, self.evaluation.fqe, device, dtype, on_host)
            beyond = [name for name, policy in self._policies(0).items() if not policy.markov]
            if beyond:
                note(f"no fitted Q-evaluation of {', '.join(beyond)}, which acts on more than the last observation")
        self.curve: list[Row] = []
        self.diagnosed: list[Row] = []
        self.stopped: dict[int, str] = {}  # diverged replicas
        self.memory = 0
        """The most bytes so far, see :func:`harness.memory.peak`."""
        self._said: set[tuple[int, str]] = set()  # warnings
        self._restore()
        begin_tracking(store, self.evaluations, self.curve, self.diagnosed)

    # Training

    @property
    def step(self) -> int:
        """Updates made so far."""
        return self.engine.step

    @property
    def spent(self) -> float:
        """Seconds of training so far, evaluation not counted."""
        return self.seconds + (0.0 if self._since is None else time.monotonic() - self._since)

    def _theirs(self, doing: str) -> AbstractContextManager[None]:
        """Around the algorithm's own code."""
        return registry.own_code(self.job.algorithm, doing, self.most_seconds, self.spent)

    def _policies(self, index: int) -> dict[str, Policy]:
        """A replica's policies as they are now, under the names that were announced."""
        with self._theirs("policies"):
            policies = self.algorithm.policies(index)
            announced = registry.load(self.job.algorithm).policy_names(self.job.cells[index].config)
            if not isinstance(policies, Mapping) or set(policies) != set(announced):
                given = list(policies) if isinstance(policies, Mapping) else policies
                raise TypeError(f"gives {given!r} and announced {list(announced)!r}")
            if not all(isinstance(policy, Policy) for policy in policies.values()):
                raise TypeError(f"gives what is no harness.algorithm.Policy: {policies!r}")
            return dict(policies)

    def advance(self, stop: Callable[[], bool]) -> None:
        """Train until the last step, or until ``stop()``, which is asked every moment, says so."""
        self._since = time.monotonic()
        forget_peak(self.device)
        while self.step < self.steps and not stop():
            with self._theirs("update"):
                self._train(self._next_pause(), time.monotonic() + MOMENT)
            if self.step % self.log_every == 0 or self.step == self.steps:
                self._log()
            if len(self.stopped) == len(self.job.cells):
                self.engine.step = self.steps
            elif self._evaluation_due():
                paused = time.monotonic()
                self._evaluate()
                self._since += time.monotonic() - paused
        self.memory = max(self.memory, peak(self.device))
        self.seconds, self._since = self.spent, None

    def _train(self, target: int, until: float) -> None:
        """Train until a step or a time, whichever is first, but for one update."""
        self.engine.run(1)
        while self.step < target and time.monotonic() < until:
            self.engine.run(1)

    def _next_pause(self) -> int:
        """The next step at which something is to be done."""
        pauses = [self.steps, (self.step // self.log_every + 1) * self.log_every]
        if self.evaluation.every:
            pauses.append((self.step // self.evaluation.every + 1) * self.evaluation.every)
        return min(pauses)

    def _log(self) -> None:
        """Bring the mean metrics since the last time to the host; stop replicas whose metrics are not finite."""
        stretch = self.step - (self.curve[-1]["step"] if self.curve else 0)
        with self._theirs("update"):  # on another device its faults may show only here
            means = {name: (total / stretch).tolist() for name, total in self.engine.take().items()}
        self.curve.append({"step": self.step, **means})
        for index, cell in enumerate(self.job.cells):
            if index not in self.stopped:
                self.evaluations.tracking.trained(cell, of_replica(self.curve[-1], index))
            wrong = [name for name, values in means.items() if not np.isfinite(values[index])]
            if wrong and index not in self.stopped:
                first = self.step - stretch + 1
                self.stopped[index] = f"{', '.join(wrong)} not finite in steps {first} to {self.step}"
                self.evaluations.drop(index)
        self._warn()

    def _warn(self) -> None:
        """Say what the last row of the curve is the first to show, once for all replicas that it is true of."""
        fresh: dict[str, list[str]] = {}
        for index, cell in enumerate(self.job.cells):
            if index in self.stopped:
                continue
            for text in replica_warnings(self.job, index, self.curve):
                if (index, text) not in self._said:
                    self._said.add((index, text))
                    limit = "" if cell.cost_limit is None else f" limit {cell.cost_limit:g}"
                    fresh.setdefault(text, []).append(f"seed {cell.seed}{limit}")
        for text, agents in fresh.items():
            self.note(f"{', '.join(agents)}: {text} (step {self.step})")

    # Evaluation

    def _evaluation_due(self) -> bool:
        every = self.evaluation.every
        return self.step == self.steps or bool(every and self.step % every == 0)

    def _evaluate(self) -> None:
        going = [index for index in range(len(self.job.cells)) if index not in self.stopped]
        before = len(self.diagnosed)
        if self.diagnostics is not None:
            with self._theirs("diagnose"):
                self.diagnosed += self.diagnostics.rows(self.step, going)
        for index in going:
            policies = self._policies(index)
            self.evaluations.submit(index, self.step, policies, self._states(policies))
        if self.fitted is not None:  # while the workers roll out
            with self._theirs("act"):
                self.diagnosed += self._fitted(self.fitted, going)
        for index in going:
            fresh = [row for row in self.diagnosed[before:] if row["replica"] == index]
            self.evaluations.tracking.diagnosed(self.job.cells[index], fresh)

    def _fitted(self, fitted: FittedQ, going: Sequence[int]) -> list[Row]:
        """What the policies of some replicas earn and cost as their data tells; NaN of those of which it cannot."""
        # Copies of their own: those that are rolled out may be on their way to a worker.
        judged = [
            (index, name, Candidate(policy, self.job.cells[index].replica, limit))
            for index in going
            for limit in self.evaluations.limits(index)
            for name, policy in self.algorithm.policies(index).items()
        ]
        estimates = iter(fitted.estimates([one for _, _, one in judged if one.policy.markov]))
        rows = []
        for index, name, one in judged:
            estimate = next(estimates) if one.policy.markov else Estimate(np.nan, np.nan)
            row = {"replica": index, "step": self.step, "policy": name, "cost_limit": one.cost_limit}
            for metric, value in zip(FQE_METRICS, (estimate.episode_return, estimate.cost), strict=True):
                rows.append({**row, "metric": metric, "value": value})
        return rows

    def _states(self, policies: Mapping[str, Policy]) -> dict[str, dict[str, Tensor]]:
        """What results and checkpoints hold of policies."""
        with self._theirs("policies"):
            return {name: stored(policy.float().state_dict()) for name, policy in policies.items()}

    def collect(self) -> int:
        """Take in the roll-outs that are back; how many episodes."""
        return self.evaluations.collect()

    def cancel(self) -> None:
        """Nobody waits for the roll-outs any more."""
        self.evaluations.cancel()

    # Checkpoints

    def checkpoint(self) -> None:
        """Keep everything: what is trained, what came back, and the policies whose roll-outs did not."""
        trained = self._state()
        self.store.write_checkpoint(
            self.job,
            {
                **self._measured(),
                **self.evaluations.state_dict(),
                "algorithm": trained,
                "draws": self.draws.state_dict(),
                "sums": self.engine.sums,
            },
        )

    def _state(self) -> dict[str, Any]:
        """The algorithm's, of a kind that can be read again."""
        with self._theirs("state_dict"):
            state = self.algorithm.state_dict()
            require_readable(state)
        return state

    def _measured(self) -> dict[str, Any]:
        """What a checkpoint holds that results do, too."""
        return {
            "dataset": self.dataset.sha256,
            "step": self.step,
            "seconds": self.spent,
            "memory": max(self.memory, peak(self.device)),
            "curve": self.curve,
            "diagnosed": self.diagnosed,
            "stopped": self.stopped,
        }

    def _restore(self) -> None:
        state = self.store.read_checkpoint(self.job)
        if state is None:
            return
        if state["dataset"] != self.dataset.sha256:
            raise UserError(
                f"{self.dataset.path} has changed since this job's checkpoint was written; put the old file back, or "
                "start afresh with --overwrite always"
            )
        with self._theirs("load_state_dict"):
            self.algorithm.load_state_dict(state["algorithm"])
        self.draws.load_state_dict(state["draws"])
        self.engine.step, self.seconds = state["step"], state["seconds"]
        self.curve, self.stopped = state["curve"], state["stopped"]
        self.diagnosed = state.get("diagnosed", [])  # not in checkpoints from before there were diagnostics
        self.memory = state.get("memory", 0)  # likewise
        self.engine.sums = {name: total.to(self.device) for name, total in state["sums"].items()}
        self.evaluations.load_state_dict(state, self._remade)

    def _remade(self, index: int, name: str, state: Mapping[str, Tensor]) -> Policy:
        policy = self._policies(index)[name]
        with self._theirs("policies"):
            policy = policy.float()
            policy.load_state_dict(state)
        return policy

    # The end

    def rest(self, record: Mapping[str, Any]) -> Trained:
        """Give the device's memory back, after the last step: nothing is trained any more, only evaluated.

        Args:
            record: what the job ran with: versions, machine.
        """
        self._state()  # an algorithm that cannot be resumed fails however short its training was
        policies = [self._policies(index) for index in range(len(self.job.cells))]
        trained = {
            "policies": [self._states(one) for one in policies],
            "statistics": [
                {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in one.statistics.items()}
                for one in self.selections
            ],
            "diagnoses": self.held_out is not None or self.fitted is not None,
            "record": {
                **record,
                "dataset": {
                    "file": self.dataset.path.name,
                    "source": self.dataset.source,
                    "sha256": self.dataset.sha256,
                    "trajectories": len(self.dataset.trajectories),
                    "transitions": len(self.dataset),
                    "held_out_trajectories": len(self.held_out.trajectories) if self.held_out else 0,
                    "held_out_transitions": len(self.held_out) if self.held_out else 0,
                },
                "device": str(self.device),
                "engine": self.engine.name,
            },
        }
        content = {**self._measured(), "trained": trained}
        del self.engine, self.algorithm, self.draws, self.diagnostics, self.fitted
        return Trained(self.job, self.store, self.evaluations, content, dict(enumerate(policies)))


def require_readable(state: Any) -> None:
    """Refuse a state that could not be read back from a checkpoint, where no code is run.

    Raises:
        TypeError: it holds something else than a checkpoint can.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"an algorithm's state must be a mapping, not {type(state).__name__}")
    kept = (Tensor, nn.Parameter)  # always readable, and large
    file = io.BytesIO()
    try:
        torch.save(tree_map(lambda leaf: None if type(leaf) in kept else leaf, state), file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError) as error:
        plain = (*kept, bool, int, float, str, bytes, type(None))
        odd = sorted({type(leaf).__name__ for leaf in tree_leaves(state) if type(leaf) not in plain})
        raise TypeError(
            f"a checkpoint cannot hold its state ({', '.join(odd) or line(error)}): tensors, numbers, strings, lists "
            "and dicts alone can be read back without running code"
        ) from error
