"""What is left of a job when it is trained: evaluations that are under way or to come, then its cells' results.

It needs neither the data nor the device that the job was trained on, so another machine can do it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from harness import registry
from harness.algorithm import Algorithm, Hyperparameters, Policy
from harness.evaluation import Evaluator
from harness.guard import UserCodeError
from harness.notes import Note, silent
from harness.pending import Evaluations, Row
from harness.plan import Cell, Job
from harness.store import DIAGNOSTICS, Status, Store
from harness.tracking import NOWHERE, Tracking

if TYPE_CHECKING:
    import pandas as pd

LASTING = 0.05
"""Share of training for which an algorithm must say the same of an agent before anyone is told."""


class Trained:
    """One job from its last step to its cells' results.

    Args:
        job: the cells, one a replica.
        store: where results and checkpoints go.
        evaluations: of the job.
        content: what :meth:`checkpoint` keeps beside them.
        policies: of the replicas by their index, on the CPU, as they are at the end.
    """

    def __init__(
        self,
        job: Job,
        store: Store,
        evaluations: Evaluations,
        content: Mapping[str, Any],
        policies: Mapping[int, Mapping[str, Policy]],
    ) -> None:
        self.job, self.store, self.evaluations, self.content = job, store, evaluations, content
        self.step = self.steps = job.cells[0].config.steps
        self.stopped: dict[int, str] = content["stopped"]
        for index in sorted(policies.keys() - self.stopped.keys())[:1]:
            evaluations.time(policies[index], evaluations.limits(index)[0])

    @classmethod
    def resumed(
        cls,
        job: Job,
        store: Store,
        evaluator: Evaluator | None,
        content: dict[str, Any],
        note: Note = silent,
        most_seconds: float = float("inf"),
        tracking: Tracking = NOWHERE,
    ) -> Trained:
        """A job of which :func:`is_trained` holds.

        Args:
            job: the cells.
            store: where its checkpoint lies.
            evaluator: rolls the policies out; ``None`` keeps them, for a process that does.
            content: of the checkpoint.
            note: is told what the user should know.
            most_seconds: that it may take to make its policies.
            tracking: is told what there is, and what comes.

        Raises:
            UserCodeError: the algorithm does not make its policies again.
            TookTooLong: its time is up.
        """
        trained, evaluations = content["trained"], Evaluations(job, evaluator, note, tracking)
        replicas = [
            replace(cell.replica, statistics={name: values.numpy() for name, values in statistics.items()})
            for cell, statistics in zip(job.cells, trained["statistics"], strict=True)
        ]

        made: dict[int, Algorithm[Any]] = {}

        def remade(index: int, name: str, state: Mapping[str, Tensor]) -> Policy:
            with registry.own_code(job.algorithm, "policies", most_seconds):
                if index not in made:
                    made[index] = registry.load(job.algorithm)(job.cells[index].config, job.task, [replicas[index]])
                policy = made[index].policies(0)[name].float()
                policy.load_state_dict(state)
            return policy

        evaluations.load_state_dict(content, remade)
        begin_tracking(store, evaluations, content["curve"], content["diagnosed"])
        going = [index for index in range(len(job.cells)) if index not in content["stopped"]]
        policies = {
            index: {name: remade(index, name, state) for name, state in trained["policies"][index].items()}
            for index in (going[:1] if evaluator is not None else [])
        }
        kept = {name: value for name, value in content.items() if name not in {"job", *evaluations.state_dict()}}
        return cls(job, store, evaluations, kept, policies)

    def collect(self) -> int:
        """Take in the roll-outs that are back; how many episodes."""
        return self.evaluations.collect()

    def cancel(self) -> None:
        """Nobody waits for the roll-outs any more."""
        self.evaluations.cancel()

    @property
    def waiting(self) -> bool:
        """Whether roll-outs are still under way."""
        return self.evaluations.waiting

    @property
    def complete(self) -> bool:
        """Whether all evaluations are back."""
        return not self.evaluations.pending and not self.waiting

    def checkpoint(self) -> None:
        """Keep what is trained, what came back, and the policies whose roll-outs did not."""
        self.store.write_checkpoint(self.job, {**self.content, **self.evaluations.state_dict()})

    def finish(self, record: Mapping[str, Any]) -> dict[int, Status]:
        """Write the results of every cell that is not done yet; nothing may be under way.

        The checkpoint stays where an evaluation failed, or is left to another process: the next run needs only that.

        Args:
            record: what the job was evaluated with: versions, machine.

        Returns:
            How each replica's cell ended, by its index; cells that were done before are left out.
        """
        if self.evaluations.failed:
            self.checkpoint()
        kept = {pending.replica for pending in self.evaluations.pending}
        ended = {}
        for index, cell in enumerate(self.job.cells):
            if index in self.stopped:
                status = Status("diverged", self.stopped[index])
            elif index in self.evaluations.failed:
                status = Status("failed", self.evaluations.failed[index])
            elif index in kept:
                status = Status("trained")
            else:
                status = self._done(index)
            if self.store.status(cell).state == "done":  # before the job was interrupted
                continue
            ended[index] = status
            if status.state == "done":
                self._write(index, cell, record, status.warnings)
            else:
                self.store.set_status(cell, status)
        if not self.evaluations.pending:
            self.store.remove_checkpoint(self.job)
        return ended

    def _done(self, index: int) -> Status:
        try:
            return Status("done", warnings=replica_warnings(self.job, index, self.content["curve"]))
        except UserCodeError as error:
            return Status("failed", error.report)

    def _write(self, index: int, cell: Cell, record: Mapping[str, Any], warnings: Mapping[str, int]) -> None:
        import pandas as pd

        mine = [row for row in self.evaluations.episodes if row["replica"] == index]
        trained = self.content["trained"]
        self.store.write_results(
            cell,
            {
                **trained["record"],
                **_evaluated_with(record, trained["record"]),
                "group": [other.hash for other in self.job.cells],
                **self._costs(),
            },
            _episodes(mine),
            pd.DataFrame([of_replica(row, index) for row in self.content["curve"]]),
            trained["policies"][index],
            {name: values.numpy() for name, values in trained["statistics"][index].items()},
            self._diagnosis(index),
            warnings,
        )

    def _costs(self) -> dict[str, Any]:
        """What training and acting took."""
        seconds = self.content["seconds"]
        return {
            "training_seconds": round(seconds, 3),
            "updates_per_second": round(self.steps / seconds, 3) if seconds else None,
            "peak_memory": self.content["memory"],
            "milliseconds_an_action": self.evaluations.milliseconds,
        }

    def _diagnosis(self, index: int) -> pd.DataFrame | None:
        """What was measured of a replica by data alone, if the suite asks for it."""
        import pandas as pd

        if not self.content["trained"]["diagnoses"]:
            return None
        mine = [row for row in self.content["diagnosed"] if row["replica"] == index]
        return pd.DataFrame(mine, columns=list(DIAGNOSTICS)).astype({"cost_limit": "float64"})


def _episodes(rows: Iterable[Row]) -> pd.DataFrame:
    """The table of a cell's episodes, in an order that does not depend on which was back first."""
    import pandas as pd

    def place(row: Row) -> tuple[Any, ...]:
        return row["step"], row["policy"], row["cost_limit"] or 0.0, row["episode"]  # all have a limit, or none has

    columns = ("step", "policy", "cost_limit", "episode", "seed", "episode_return", "cost", "length")
    ordered = sorted(rows, key=place)
    table = {name: [row[name] for row in ordered] for name in columns}
    return pd.DataFrame(table | {"cost_limit": np.array(table["cost_limit"], np.float64)})


def is_trained(content: Mapping[str, Any] | None) -> bool:
    """Whether a checkpoint is one of :class:`Trained`."""
    return content is not None and "trained" in content


def begin_tracking(store: Store, evaluations: Evaluations, curve: Iterable[Row], diagnosed: Iterable[Row]) -> None:
    """Send what there is of a job already, but for the cells that were done before it was interrupted."""
    for index, cell in enumerate(evaluations.job.cells):
        if store.status(cell).state != "done":
            mine = ([row for row in rows if row["replica"] == index] for rows in (evaluations.episodes, diagnosed))
            evaluations.tracking.begin(cell, [of_replica(row, index) for row in curve], *mine)


def of_replica(row: Mapping[str, Any], index: int) -> Row:
    """One replica's part of a row of the curve."""
    return {name: value if name == "step" else value[index] for name, value in row.items()}


def _evaluated_with(record: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, Any]:
    """Who evaluated, where that is not like what trained."""
    about = {name: value for name, value in record.items() if name != "precision"}
    differs = any(trained.get(name) != value for name, value in about.items() if name != "started")
    return {"evaluated": about} if differs else {}


def replica_warnings(job: Job, index: int, curve: Sequence[Row]) -> dict[str, int]:
    """What a replica's algorithm has been saying of it for a while, and the step since which it has."""
    backwards = (of_replica(row, index) for row in reversed(curve))
    return lasting_warnings(registry.load(job.algorithm), job.cells[index].config, backwards)


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
