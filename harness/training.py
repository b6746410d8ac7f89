"""The loop of one job: blocks of update steps, learning curves, checkpoints."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from harness import registry
from harness.algorithm import Algorithm, Hyperparameters, Policy, Selection
from harness.data.dataset import Dataset
from harness.data.draws import BLOCK, prepare
from harness.diagnostics import Diagnostics
from harness.engine import make_engine, silent
from harness.errors import UserError
from harness.evaluation import Episode, Evaluator, episode_seeds
from harness.fqe import METRICS, Candidate, Estimate, FittedQ
from harness.guard import TookTooLong, UserCodeError, guard, line, within
from harness.plan import Cell, Job
from harness.pool import WorkerDied
from harness.store import DIAGNOSTICS, Status, Store

if TYPE_CHECKING:
    import pandas as pd

LOG_POINTS = 200
"""Rows of training.parquet, and how often replicas are checked for divergence, over a whole training run."""
LASTING = 0.05
"""Share of training for which an algorithm must say the same of an agent before anyone is told."""
MOMENT = 0.05
"""Seconds between looks at the world: roll-outs that are back, a checkpoint that is due, a user who wants to stop."""

Row = dict[str, Any]


@dataclass
class PendingEvaluation:
    """A policy whose roll-outs are not all back yet; it is part of the checkpoint."""

    replica: int
    step: int
    name: str
    cost_limit: float | None
    policy: Policy
    state: dict[str, Tensor] = field(default_factory=dict)
    """The policy's, as it was before it was rolled out."""
    futures: list[Future[list[Episode]]] = field(default_factory=list)


@dataclass
class _Rested:
    """What is left of a job's training on the device once it is over: its state, on the host, and its policies'."""

    state: dict[str, Any]
    policies: dict[int, dict[str, dict[str, Any]]]
    engine: str


class Training:
    """One job from its first step, or its last checkpoint, to its cells' results.

    Args:
        job: the cells, one a replica.
        dataset: of the job's task.
        selections: what of the dataset each replica trains on.
        store: where results and checkpoints go.
        evaluator: rolls the policies out.
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
        evaluator: Evaluator,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        engine: str = "auto",
        ahead: int = BLOCK,
        on_host: bool = False,
        held_out: Dataset | None = None,
        note: Callable[[str], None] = silent,
        most_seconds: float = float("inf"),
    ) -> None:
        algorithm, config = registry.load(job.algorithm), job.cells[0].config
        self.job, self.dataset, self.store, self.evaluator, self.note = job, dataset, store, evaluator, note
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
        self.episodes: list[Row] = []
        self.diagnosed: list[Row] = []
        self.pending: list[PendingEvaluation] = []
        self.stopped: dict[int, str] = {}  # diverged replicas
        self.failed_evaluations: dict[int, str] = {}
        self._said: set[tuple[int, str]] = set()  # warnings
        self._rested: _Rested | None = None
        self._restore()

    # Training

    @property
    def step(self) -> int:
        """Updates made so far."""
        return self.steps if self._rested is not None else self.engine.step

    @property
    def spent(self) -> float:
        """Seconds of training so far, evaluation not counted."""
        return self.seconds + (0.0 if self._since is None else time.monotonic() - self._since)

    @contextmanager
    def _theirs(self, doing: str) -> Iterator[None]:
        """Around the algorithm's own code: what it raises names it, and it ends when the job's time is up."""
        limit = f"the {self.most_seconds:g} s that a job may train (time_limits.job)"
        with within(self.most_seconds - self.spent, limit), guard(registry.named(self.job.algorithm), doing):
            yield

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
        means = {name: (total / stretch).tolist() for name, total in self.engine.take().items()}
        self.curve.append({"step": self.step, **means})
        for index in range(len(self.job.cells)):
            wrong = [name for name, values in means.items() if not np.isfinite(values[index])]
            if wrong and index not in self.stopped:
                first = self.step - stretch + 1
                self.stopped[index] = f"{', '.join(wrong)} not finite in steps {first} to {self.step}"
                self.pending = [pending for pending in self.pending if pending.replica != index]
        self._warn()

    def _warnings(self, index: int) -> dict[str, int]:
        """What a replica's algorithm has been saying of it for a while, and the step since which it has."""
        backwards = (
            {name: value if name == "step" else value[index] for name, value in row.items()}
            for row in reversed(self.curve)
        )
        return lasting_warnings(registry.load(self.job.algorithm), self.job.cells[index].config, backwards)

    def _warn(self) -> None:
        """Say what the last row of the curve is the first to show, once for all replicas that it is true of."""
        fresh: dict[str, list[str]] = {}
        for index, cell in enumerate(self.job.cells):
            if index in self.stopped:
                continue
            for text in self._warnings(index):
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
        if self.diagnostics is not None:
            with self._theirs("diagnose"):
                self.diagnosed += self.diagnostics.rows(self.step, going)
        for index in going:
            for name, policy in self._policies(index).items():
                for limit in self._told(index):
                    pending = PendingEvaluation(index, self.step, name, limit, policy)
                    self.pending.append(pending)
                    self._submit(pending)
        if self.fitted is not None:  # while the workers roll out
            with self._theirs("act"):
                self.diagnosed += self._fitted(self.fitted, going)

    def _told(self, index: int) -> tuple[float | None, ...]:
        """The limits that a replica's policies are told, one after the other."""
        cell = self.job.cells[index]
        return cell.evaluation_limits if cell.told_limit else (None,)

    def _fitted(self, fitted: FittedQ, going: Sequence[int]) -> list[Row]:
        """What the policies of some replicas earn and cost as their data tells; NaN of those of which it cannot."""
        # Copies of their own: those that are rolled out may be on their way to a worker.
        judged = [
            (index, name, Candidate(policy, self.job.cells[index].replica, limit))
            for index in going
            for limit in self._told(index)
            for name, policy in self.algorithm.policies(index).items()
        ]
        estimates = iter(fitted.estimates([one for _, _, one in judged if one.policy.markov]))
        rows = []
        for index, name, one in judged:
            estimate = next(estimates) if one.policy.markov else Estimate(np.nan, np.nan)
            row = {"replica": index, "step": self.step, "policy": name, "cost_limit": one.cost_limit}
            for metric, value in zip(METRICS, (estimate.episode_return, estimate.cost), strict=True):
                rows.append({**row, "metric": metric, "value": value})
        return rows

    def _submit(self, pending: PendingEvaluation) -> None:
        count = self.evaluation.final if pending.step == self.steps else self.evaluation.episodes
        seeds = episode_seeds(self.job.task, self.job.cells[pending.replica].seed, count)
        with self._theirs("policies"):
            policy = pending.policy.float()
            pending.state = stored(policy.state_dict())
        pending.futures = self.evaluator.submit(self.job.task, policy, seeds, pending.cost_limit)

    def collect(self) -> int:
        """Take in the roll-outs that are back.

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
                reason = _evaluation_failure(self.job.algorithm, pending, error)
                self.failed_evaluations.setdefault(pending.replica, reason)
                pending.futures = []
                remaining.append(pending)  # stays in the checkpoint: the next run tries it again
                continue
            count += len(episodes)
            for index, episode in enumerate(episodes):
                row = {"replica": pending.replica, "step": pending.step, "policy": pending.name}
                self.episodes.append({**row, "cost_limit": pending.cost_limit, "episode": index, **asdict(episode)})
        self.pending = remaining
        return count

    def cancel(self) -> None:
        """Nobody waits for the roll-outs any more."""
        for pending in self.pending:
            for future in pending.futures:
                future.cancel()

    @property
    def waiting(self) -> bool:
        """Whether roll-outs are still under way."""
        return any(pending.futures for pending in self.pending)

    # Checkpoints

    def rest(self) -> None:
        """Give the device's memory back: nothing is trained any more, only evaluated."""
        policies = {index: self._kept_policies(index) for index in range(len(self.job.cells))}
        self._rested = _Rested(tree_map(_on_host, self._state()), policies, self.engine.name)
        del self.engine, self.algorithm, self.draws, self.diagnostics, self.fitted

    def _kept_policies(self, index: int) -> dict[str, dict[str, Any]]:
        """The states of a replica's policies, as results hold them."""
        policies = self._policies(index)
        with self._theirs("policies"):
            return {name: stored(policy.state_dict()) for name, policy in policies.items()}

    def _state(self) -> dict[str, Any]:
        """Of what trains."""
        if self._rested is not None:
            return self._rested.state
        with self._theirs("state_dict"):
            trained = self.algorithm.state_dict()
            require_readable(trained)
        return {
            "algorithm": trained,
            "draws": self.draws.state_dict(),
            "sums": self.engine.sums,
        }

    def checkpoint(self) -> None:
        """Keep everything: what is trained, what came back, and the policies whose roll-outs did not."""
        self.store.write_checkpoint(
            self.job,
            {
                "dataset": self.dataset.sha256,
                "step": self.step,
                "seconds": self.spent,
                **self._state(),
                "curve": self.curve,
                "episodes": self.episodes,
                "diagnosed": self.diagnosed,
                "stopped": self.stopped,
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
            },
        )

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
        self.curve, self.episodes, self.stopped = state["curve"], state["episodes"], state["stopped"]
        self.diagnosed = state.get("diagnosed", [])  # not in checkpoints from before there were diagnostics
        self.engine.sums = {name: total.to(self.device) for name, total in state["sums"].items()}
        for kept in state["pending"]:
            policy = self._policies(kept["replica"])[kept["name"]]
            with self._theirs("policies"):
                policy.load_state_dict(kept["policy"])
            pending = PendingEvaluation(kept["replica"], kept["step"], kept["name"], kept["cost_limit"], policy)
            self.pending.append(pending)
            self._submit(pending)

    # Results

    def finish(self, record: Mapping[str, Any]) -> dict[int, Status]:
        """Write the results of every cell that is not done yet; nothing may be under way.

        The checkpoint stays where an evaluation failed: the next run needs only that.

        Returns:
            How each replica's cell ended, by its index; cells that were done before are left out.
        """
        if self.failed_evaluations:
            self.checkpoint()
        ended = {}
        for index, cell in enumerate(self.job.cells):
            if index in self.stopped:
                status = Status("diverged", self.stopped[index])
            elif index in self.failed_evaluations:
                status = Status("failed", self.failed_evaluations[index])
            else:
                status = self._done(index)
            if self.store.status(cell).state == "done":  # before the job was interrupted
                continue
            ended[index] = status
            if status.state == "done":
                self._write(index, cell, record, status.warnings)
            else:
                self.store.set_status(cell, status)
        if not self.failed_evaluations:
            self.store.remove_checkpoint(self.job)
        return ended

    def _done(self, index: int) -> Status:
        try:
            return Status("done", warnings=self._warnings(index))
        except UserCodeError as error:
            return Status("failed", error.report)

    def _write(self, index: int, cell: Cell, record: Mapping[str, Any], warnings: Mapping[str, int]) -> None:
        import pandas as pd

        columns = ["step", "policy", "cost_limit", "episode", "seed", "episode_return", "cost", "length"]
        mine = [{key: row[key] for key in columns} for row in self.episodes if row["replica"] == index]
        episodes = pd.DataFrame(mine, columns=columns).astype({"cost_limit": "float64"})
        curve = [{name: value if name == "step" else value[index] for name, value in row.items()} for row in self.curve]
        if self._rested is None:
            self.rest()
        assert self._rested is not None
        self.store.write_results(
            cell,
            {
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
                "engine": self._rested.engine,
                "group": [other.hash for other in self.job.cells],
                "training_seconds": round(self.seconds, 3),
            },
            episodes.sort_values(["step", "policy", "cost_limit", "episode"], ignore_index=True),
            pd.DataFrame(curve),
            self._rested.policies[index],
            self.selections[index].statistics,
            self._diagnosis(index),
            warnings,
        )

    def _diagnosis(self, index: int) -> pd.DataFrame | None:
        """What was measured of a replica by data alone, if the suite asks for it."""
        import pandas as pd

        if self.held_out is None and self.evaluation.fqe is None:
            return None
        mine = [row for row in self.diagnosed if row["replica"] == index]
        return pd.DataFrame(mine, columns=list(DIAGNOSTICS)).astype({"cost_limit": "float64"})


def lasting_warnings(
    algorithm: type[Algorithm[Any]], config: Hyperparameters, backwards: Iterable[Mapping[str, Any]]
) -> dict[str, int]:
    """What an algorithm says of an agent at the end of its curve, if it has for :data:`LASTING` of training's steps.

    Args:
        algorithm: of the agent.
        config: of the agent.
        backwards: step and metrics of each stretch of steps, the last one first; only as many are read as it takes.

    Returns:
        The step since which, by what it says.
    """
    since: dict[str, int] = {}
    lasting: set[str] = set()
    last, first = 0, True
    for row in backwards:
        said = set(algorithm.warnings(config, {name: value for name, value in row.items() if name != "step"}))
        lasting = said if first else lasting & said
        if first:
            last, first = int(row["step"]), False
        if not lasting:
            break
        since |= dict.fromkeys(lasting, int(row["step"]))
    # Whatever still lasts has been there from the first step on.
    return {text: step for text, step in since.items() if text in lasting or last - step >= LASTING * config.steps}


def _on_host(value: Any) -> Any:
    return value.cpu() if isinstance(value, torch.Tensor) else value


def require_readable(state: Any) -> None:
    """Refuse a state that could not be read back from a checkpoint, where no code is run.

    Raises:
        Exception: whatever pickle and torch say of it.
    """
    kept = (Tensor, nn.Parameter)  # always readable, and large
    file = io.BytesIO()
    torch.save(tree_map(lambda leaf: None if type(leaf) in kept else leaf, state), file)
    file.seek(0)
    torch.load(file, weights_only=True)


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


def _evaluation_failure(algorithm: str, pending: PendingEvaluation, error: Exception) -> str:
    what = f"{registry.named(algorithm)}: evaluation of {pending.name} at step {pending.step}"
    if isinstance(error, UserCodeError):
        return f"{error.trace}\n{what}: {error}".strip()
    if isinstance(error, TookTooLong):
        return f"{what}: {error}; time_limits.episode in the suite says how long an episode may take"
    return f"{what}: {error if isinstance(error, WorkerDied) else line(error)}"
