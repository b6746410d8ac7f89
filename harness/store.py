"""Results on disk.

::

    <root>/suites/<suite>.json        the plan: which cells belong to a suite, and their row names
    <root>/jobs/<job id>.checkpoint   all of an unfinished job, one file
    <root>/<cell hash>/               cell.json, episodes.parquet, training.parquet, policy.safetensors,
                                      statistics.safetensors, status.json, and where asked for diagnostics.parquet

Raw values are stored; normalisation, limits and statistics are applied when reading. Every write is atomic, and a
cell's status is written last: what is done is whole.
"""

from __future__ import annotations

import fcntl
import json
import pickle
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from harness.errors import UserError
from harness.files import replacing, write_json
from harness.plan import Cell, Job, Plan

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

DIAGNOSTICS = ("step", "policy", "cost_limit", "metric", "value")
"""Columns of what is measured without roll-outs. The policy is empty where it is of the agent as a whole, the limit
where the policy is told none."""
State = Literal["missing", "running", "done", "failed", "diverged"]

MANIFEST = "archive.json"
"""What a folder holds that is an archive (:mod:`harness.archive`) and no results folder."""


@dataclass(frozen=True)
class Status:
    """How a cell stands.

    Args:
        state: of the cell.
        reason: why it failed, with the traceback where there is one.
        warnings: what its algorithm says of an agent that is done but did not train as it is meant to, and the step
            since which that holds.
    """

    state: State
    reason: str = ""
    warnings: Mapping[str, int] = field(default_factory=dict)

    @property
    def brief(self) -> str:
        """The reason's last line: of a traceback, the exception."""
        return self.reason.strip().splitlines()[-1] if self.reason.strip() else ""


class Results(Protocol):
    """What reports read: a results folder, or an archive of one."""

    root: Path

    def plans(self) -> list[Plan]:
        """The plans of all suites whose results these are."""

    def status(self, cell: Cell) -> Status:
        """How a cell stands."""

    def record(self, cell: Cell) -> dict[str, Any]:
        """What a finished cell ran with."""

    def episodes(self, cell: Cell) -> pd.DataFrame:
        """The evaluation episodes of a finished cell."""

    def training(self, cell: Cell) -> pd.DataFrame:
        """The training metrics of a finished cell."""

    def diagnostics(self, cell: Cell) -> pd.DataFrame:
        """What was measured of a finished cell by data alone, :data:`DIAGNOSTICS`; no row where nothing was."""


class Store:
    """The results folder ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def existing(cls, root: Path) -> Store:
        """A results folder to read.

        Raises:
            UserError: there are no results, with the folders below that hold some, or they are archived.
        """
        store = cls(root)
        store.require_no_archive()
        if not root.is_dir():
            raise UserError(f"no results folder {str(root)!r}; 'lspc-bench run SUITE --results DIR' makes one")
        if not any((root / "suites").glob("*.json")):
            below = sorted({path.parent.parent for path in root.glob("*/suites/*.json")})
            hint = f"; say which of those below it: {', '.join(map(str, below))}" if below else ""
            raise UserError(f"{str(root)!r} holds no results of a suite{hint}")
        return store

    def require_no_archive(self) -> None:
        """Refuse an archive, which has neither policies nor a place for results.

        Raises:
            UserError: it is one.
        """
        if (self.root / MANIFEST).exists():
            raise UserError(
                f"{str(self.root)!r} is an archive: it holds no policies, and no results go there. "
                f"'lspc-bench status {self.root} --commands cells' says how to make a cell of it again"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing; the lock goes with the process, however it ends.

        Raises:
            UserError: another process holds it, or the folder cannot be written.
        """
        try:
            for folder in (self.root, self.root / "suites", self.root / "jobs"):
                folder.mkdir(parents=True, exist_ok=True)
            lock = (self.root / ".lock").open("w")
        except OSError as error:
            raise UserError(f"cannot write results to {str(self.root)!r}: {error.strerror}") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"another run is writing to {str(self.root)!r}") from error
            # Left by a process that was killed while writing; nobody else writes here now.
            for leftover in [*self.root.glob(".*.tmp"), *self.root.glob("*/.*.tmp")]:
                leftover.unlink()
            yield

    # Plans

    def write_plan(self, plan: Plan) -> None:
        """Note which cells belong to a suite; replaces the suite's earlier plan."""
        write_json(self.root / "suites" / f"{plan.suite}.json", plan.model_dump(mode="json"))

    def plans(self) -> list[Plan]:
        """The plans of all suites that ran here, by name.

        Raises:
            UserError: a plan cannot be read.
        """
        plans = []
        for path in sorted((self.root / "suites").glob("*.json")):
            try:
                plans.append(Plan.model_validate_json(path.read_bytes()))
            except (OSError, ValidationError) as error:
                raise UserError(f"not a plan that this version can read: {error}", where=str(path)) from error
        return plans

    # Cells

    def folder(self, cell: Cell) -> Path:
        """Where a cell's results lie."""
        return self.root / cell.hash

    def status(self, cell: Cell) -> Status:
        """How a cell stands."""
        try:
            content = json.loads((self.folder(cell) / "status.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return Status("missing")
        return Status(content["state"], content["reason"], content.get("warnings", {}))

    def set_status(self, cell: Cell, status: Status) -> None:
        """Record how a cell stands."""
        self.folder(cell).mkdir(exist_ok=True)
        write_json(self.folder(cell) / "status.json", asdict(status))

    def write_results(
        self,
        cell: Cell,
        record: Mapping[str, Any],
        episodes: pd.DataFrame,
        training: pd.DataFrame,
        policies: Mapping[str, Mapping[str, Tensor]],
        statistics: Mapping[str, NDArray[Any]],
        diagnostics: pd.DataFrame | None = None,
        warnings: Mapping[str, int] | None = None,
    ) -> None:
        """Write all of a finished cell, its status last.

        Args:
            cell: the cell.
            record: what it ran with: versions, dataset, device, group, wall time.
            episodes: a row an evaluation episode: step, policy, cost_limit, episode, seed, return, cost, length.
            training: a row for every stretch of steps: step and the mean of each metric over it.
            policies: the last checkpoint's state of each policy.
            statistics: what the algorithm measured in the data and its policies are built with.
            diagnostics: a row a number measured by data alone: :data:`DIAGNOSTICS`; ``None`` where none is asked for.
            warnings: what its algorithm says of the agent, see :class:`Status`.
        """
        from safetensors.numpy import save_file as save_arrays
        from safetensors.torch import save_file

        folder = self.folder(cell)
        folder.mkdir(exist_ok=True)
        for name, frame in (("episodes", episodes), ("training", training), ("diagnostics", diagnostics)):
            if frame is not None:
                with replacing(folder / f"{name}.parquet") as temporary:
                    frame.to_parquet(temporary, index=False)
        with replacing(folder / "policy.safetensors") as temporary:
            weights = {
                f"{name}/{key}": tensor.contiguous()
                for name, state in policies.items()
                for key, tensor in state.items()
            }
            save_file(weights, temporary)
        with replacing(folder / "statistics.safetensors") as temporary:
            save_arrays({key: np.ascontiguousarray(values) for key, values in statistics.items()}, temporary)
        write_json(folder / "cell.json", {"cell": cell.model_dump(mode="json"), **record})
        self.set_status(cell, Status("done", warnings=warnings or {}))

    def record(self, cell: Cell) -> dict[str, Any]:
        """What a finished cell ran with, as :meth:`write_results` was given it."""
        content: dict[str, Any] = json.loads((self.folder(cell) / "cell.json").read_text(encoding="utf-8"))
        return content

    def episodes(self, cell: Cell) -> pd.DataFrame:
        """The evaluation episodes of a finished cell."""
        import pandas as pd

        return pd.read_parquet(self.folder(cell) / "episodes.parquet")

    def training(self, cell: Cell) -> pd.DataFrame:
        """The training metrics of a finished cell."""
        import pandas as pd

        return pd.read_parquet(self.folder(cell) / "training.parquet")

    def diagnostics(self, cell: Cell) -> pd.DataFrame:
        """What was measured of a finished cell by data alone, :data:`DIAGNOSTICS`; no row where nothing was."""
        import pandas as pd

        path = self.folder(cell) / "diagnostics.parquet"
        return pd.read_parquet(path) if path.exists() else pd.DataFrame(columns=list(DIAGNOSTICS))

    def policies(self, cell: Cell) -> dict[str, dict[str, Tensor]]:
        """The last checkpoint's state of each policy of a finished cell, by name."""
        from safetensors.torch import load_file

        states: dict[str, dict[str, Tensor]] = {}
        for key, tensor in load_file(self.folder(cell) / "policy.safetensors").items():
            name, _, parameter = key.partition("/")
            states.setdefault(name, {})[parameter] = tensor
        return states

    def statistics(self, cell: Cell) -> dict[str, NDArray[Any]]:
        """What the algorithm measured in the data of a finished cell."""
        from safetensors.numpy import load_file

        arrays: dict[str, NDArray[Any]] = load_file(self.folder(cell) / "statistics.safetensors")
        return arrays

    def forget(self, cell: Cell) -> None:
        """Remove all that is stored of a cell; its status goes first."""
        (self.folder(cell) / "status.json").unlink(missing_ok=True)
        shutil.rmtree(self.folder(cell), ignore_errors=True)

    # Checkpoints

    def checkpoint_path(self, job: Job) -> Path:
        """Where a job's checkpoint lies."""
        return self.root / "jobs" / f"{job.id}.checkpoint"

    def write_checkpoint(self, job: Job, content: Mapping[str, Any]) -> None:
        """Keep all that the job needs to go on, in one file."""
        import torch

        with replacing(self.checkpoint_path(job)) as temporary:
            torch.save({"job": job.model_dump_json(), **content}, temporary)

    def read_checkpoint(self, job: Job) -> dict[str, Any] | None:
        """What :meth:`write_checkpoint` kept, or ``None``. No code of the file is run."""
        path = self.checkpoint_path(job)
        return _load_checkpoint(path) if path.exists() else None

    def remove_checkpoint(self, job: Job) -> None:
        """The job is over."""
        self.checkpoint_path(job).unlink(missing_ok=True)

    def unfinished_jobs(self) -> list[Job]:
        """The jobs that left a checkpoint.

        Raises:
            UserError: a checkpoint is damaged, or of another version.
        """
        jobs = []
        for path in sorted((self.root / "jobs").glob("*.checkpoint")):
            try:
                jobs.append(Job.model_validate_json(_load_checkpoint(path)["job"]))
            except ValidationError as error:
                raise UserError(f"{UNREADABLE} (of another version)", where=str(path)) from error
        return jobs


UNREADABLE = "this checkpoint cannot be read; remove it to train its job from the start"


def _load_checkpoint(path: Path) -> dict[str, Any]:
    import torch

    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{UNREADABLE} (it is damaged)", where=str(path)) from error
    return content
