"""Results on disk.

::

    <root>/suites/<suite>.json        the plan: which cells belong to a suite, and their row names
    <root>/jobs/<group>-<job>.checkpoint   all of an unfinished job, one file; of one that is trained and not evaluated,
                                      the policies that are to be
    <root>/<cell hash>/               cell.json, episodes.parquet, training.parquet, policy.safetensors,
                                      statistics.safetensors, status.json, and where asked for diagnostics.parquet
    <root>/summaries/<suite>.arrow    what reports read of the cells, see :mod:`harness.summary`

Raw values are stored; normalisation, limits and statistics are applied when reading. Every write is atomic, and a
cell's status is written last: what is done is whole. The status holds the SHA-256 of the cell's other files; plans,
statuses and checkpoints end with their own. So damage shows when a file is read: a cell with a damaged file is
``damaged``, whoever reads goes on with the others, and a run makes it again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from harness import checkpoint, processes
from harness.errors import DamageError, ResultsError, UserError
from harness.files import (
    SEAL,
    file_sha256,
    is_left_over,
    read_bytes,
    read_sealed,
    replacing,
    sync,
    write_json,
    write_sealed,
    writing,
)
from harness.notes import Note, silent
from harness.plan import Cell, Job, Plan

if TYPE_CHECKING:
    import pandas as pd
    from pyarrow import Table
    from torch import Tensor

    from harness.claims import Claims

DIAGNOSTICS = ("step", "policy", "cost_limit", "metric", "value")
"""Columns of what is measured without roll-outs. The policy is empty where it is of the agent as a whole, the limit
where the policy is told none."""
State = Literal["missing", "running", "trained", "done", "failed", "diverged", "damaged"]
CALLED: dict[State, str] = {state: state for state in get_args(State)} | {"trained": "trained, not evaluated"}
"""What people read."""

STATUS = "status.json"
TABLES = ("cell.json", "episodes.parquet", "training.parquet", "diagnostics.parquet")
"""What reports read of a cell."""
EVERYTHING = (*TABLES, "policy.safetensors", "statistics.safetensors")
"""Of a cell but its status."""
OPTIONAL = ("diagnostics.parquet",)
MANIFEST = "archive.json"
"""What a folder holds that is an archive (:mod:`harness.archive`) and no results folder."""
MAKES = "'lspc-bench run SUITE --results DIR' makes"


@dataclass(frozen=True)
class Status:
    """How a cell stands.

    Args:
        state: of the cell.
        reason: why it failed, with the traceback where there is one; which file is damaged, and how.
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

    def verify(self) -> tuple[int, list[str]]:
        """Read everything: how many files there are, and what is wrong with those that are damaged."""


class _Seal(BaseModel):
    """What a file was when it was written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int
    sha256: str


class _StatusFile(BaseModel):
    """What ``status.json`` holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    state: Literal["running", "trained", "done", "failed", "diverged"]
    reason: str
    warnings: dict[str, int] = {}
    cell: str | None = None
    """The cell's hash; ``None`` where an older version wrote this, like the next."""
    files: dict[str, _Seal] | None = None
    """The cell's other files by name."""


class Store:
    """The results folder ``root``.

    Args:
        root: the folder.
        checked: of a finished cell's files, those whose content :meth:`status` checks; of the others it looks at the
            size. What is read is checked in any case.
        note: is told what the user should know.
    """

    def __init__(self, root: Path, checked: Iterable[str] = (), note: Note = silent) -> None:
        self.root, self.checked, self.note = root, frozenset(checked), note
        self.claims: Claims | None = None
        """Those of this process, where the folder is shared with others."""
        self._sound: dict[Path, tuple[int, int, int]] = {}
        """Files whose content was checked, as they were then: inode, size, time of change."""

    @classmethod
    def existing(cls, root: Path, checked: Iterable[str] = (), note: Note = silent) -> Store:
        """A results folder to read; arguments as of the class.

        Raises:
            UserError: there are no results, with the folders below that hold some, or they are archived.
        """
        store = cls(root, checked, note)
        store.require_no_archive()
        if not root.is_dir():
            raise UserError(f"no results folder {str(root)!r}; {MAKES} one")
        if not any((root / "suites").glob("*.json")):
            below = sorted({path.parent.parent for path in root.glob("*/suites/*.json")})
            hint = f"choose one of those below it: {', '.join(map(str, below))}" if below else f"{MAKES} some"
            raise UserError(f"{str(root)!r} holds no results of a suite; {hint}")
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

    def prepare(self) -> None:
        """Make the folder, and remove what killed processes left half written.

        Raises:
            UserError: there is a file in the folder's place.
            ResultsError: the folder cannot be written.
        """
        with writing(self.root):
            for folder in (self.root, self.root / "suites", self.root / "jobs"):
                folder.mkdir(parents=True, exist_ok=True)
            self.sweep()
            for path in (self.root / "jobs").glob("[0-9a-f]" * 16 + ".checkpoint"):
                self._rename_checkpoint(path)

    def sweep(self) -> None:
        """Remove what killed processes left half written.

        Raises:
            ResultsError: the folder cannot be written.
        """
        with writing(self.root):
            for leftover in [*self.root.glob(".*.tmp"), *self.root.glob("*/.*.tmp")]:
                if is_left_over(leftover):
                    with suppress(FileNotFoundError):  # another worker was quicker
                        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def _rename_checkpoint(self, path: Path) -> None:
        """Older versions named it by its job alone."""
        try:
            job = Job.model_validate_json(self._load_checkpoint(path)["job"])
        except (DamageError, ResultsError, ValidationError, KeyError, TypeError) as error:
            self.note(f"{error}; its job starts afresh" if isinstance(error, DamageError) else str(error))
            return
        with suppress(FileNotFoundError):  # another worker was quicker
            path.rename(self.checkpoint_path(job))

    def require(self, cell: Cell) -> None:
        """Ask before anything of a cell is written whether that is this worker's to do.

        Raises:
            ClaimLost: another worker has the cell now.
        """
        if self.claims is not None:
            self.claims.require(cell.group)

    # Plans

    def write_plan(self, plan: Plan) -> None:
        """Note which cells belong to a suite; replaces the suite's earlier plan."""
        path = self.root / "suites" / f"{plan.suite}.json"
        with writing(path):
            write_sealed(path, plan.model_dump(mode="json"))

    def plans(self) -> list[Plan]:
        """The plans of all suites that ran here, by name. Damaged ones are left out, with a note.

        Raises:
            DamageError: all are.
        """
        plans, damaged = [], []
        for path in self._plan_paths():
            try:
                plans.append(_read_plan(path))
            except DamageError as error:
                damaged.append(error)
                self.note(f"{error}; run its suite again, which writes it anew, or import it with --replace")
        if damaged and not plans:
            raise damaged[0]
        return plans

    def plan(self, suite: str) -> Plan | None:
        """One suite's plan, if it is there.

        Raises:
            DamageError: it is there, and damaged.
        """
        path = self.root / "suites" / f"{suite}.json"
        return _read_plan(path) if path.exists() else None

    def _plan_paths(self) -> list[Path]:
        return sorted((self.root / "suites").glob("*.json"))

    # Cells

    def folder(self, cell: Cell) -> Path:
        """Where a cell's results lie."""
        return self.root / cell.hash

    def status(self, cell: Cell) -> Status:
        """How a cell stands."""
        folder = self.folder(cell)
        try:
            stored = _read_status(folder)
            if stored is None:
                return Status("missing")
            if stored.state == "done":
                for name in _expected(folder, stored):
                    self._check(folder, name, stored, name in self.checked)
        except DamageError as error:
            return damaged(error)
        return Status(stored.state, stored.reason, stored.warnings)

    def written(self, cell: Cell) -> tuple[int, int] | None:
        """Changes whenever a cell's status is written; ``None`` where there is none."""
        try:
            stat = (self.folder(cell) / STATUS).stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns

    def read(self, cell: Cell) -> tuple[Status, dict[str, bytes]]:
        """How a cell stands, and if it is done what is in those of its files that reports read, each read once.

        Returns:
            The status as :meth:`status` gives it, and by name the content of :data:`TABLES`, which is what was written.
        """
        folder = self.folder(cell)
        contents: dict[str, bytes] = {}
        try:
            stored = _read_status(folder)
            if stored is None:
                return Status("missing"), {}
            for name in _expected(folder, stored) if stored.state == "done" else ():
                self._check(folder, name, stored, thorough=False)
                if name in TABLES:
                    contents[name] = _verified(folder / name, stored)
                    if stored.files is None:
                        _parsed(folder / name, contents[name])  # nothing else tells whether it is whole
            for name in TABLES:
                if stored.state == "done" and name not in contents and name not in OPTIONAL:
                    raise DamageError(folder / name, "the cell has none")
        except DamageError as error:
            return damaged(error), {}
        return Status(stored.state, stored.reason, stored.warnings), contents

    def set_status(self, cell: Cell, status: Status) -> None:
        """Record how a cell stands, and if it is done what its files are."""
        folder = self.folder(cell)
        self.require(cell)
        with writing(folder):
            folder.mkdir(exist_ok=True)
            paths = [folder / name for name in EVERYTHING if status.state == "done" and (folder / name).exists()]
            files = {path.name: {"size": path.stat().st_size, SEAL: file_sha256(path)} for path in paths}
            content = {"state": status.state, "reason": status.reason, "warnings": dict(status.warnings)}
            # That a cell was begun may be forgotten: nobody goes by it.
            settled = status.state != "running"
            mine = partial(self.require, cell)
            write_sealed(folder / STATUS, {**content, "cell": cell.hash, "files": files}, mine, settled)

    def _check(self, folder: Path, name: str, stored: _StatusFile, thorough: bool) -> None:
        """Look at a file of a finished cell, and into it if it is to be thorough.

        Raises:
            DamageError: it is not what was written.
        """
        try:
            stat = os.stat(f"{folder}/{name}")  # noqa: PTH116 - a path for each of many files takes longer than this
        except OSError as error:
            raise DamageError(folder / name, f"it cannot be read: {error.strerror}") from error
        if stored.files is not None and stat.st_size != stored.files[name].size:
            raise DamageError(folder / name, f"it has {stat.st_size} bytes, {stored.files[name].size} were written")
        if not thorough:
            return
        path, seen = folder / name, (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if self._sound.get(path) != seen:
            content = _verified(path, stored)
            if stored.files is None:
                _parsed(path, content)  # nothing else tells whether it is whole
            self._sound[path] = seen

    def _read(self, cell: Cell, name: str) -> Any:
        """What a file of a finished cell holds.

        Raises:
            DamageError: it is not what was written.
        """
        folder = self.folder(cell)
        stored = _read_status(folder)
        if stored is None:
            raise DamageError(folder / STATUS, "it is gone")
        return _parsed(folder / name, _verified(folder / name, stored))

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
        from safetensors.numpy import save as save_arrays
        from safetensors.torch import save as save_tensors

        folder = self.folder(cell)
        weights = {
            f"{name}/{key}": tensor.contiguous() for name, state in policies.items() for key, tensor in state.items()
        }
        files = {
            f"{name}.parquet": _parquet(frame)
            for name, frame in (("episodes", episodes), ("training", training), ("diagnostics", diagnostics))
            if frame is not None
        }
        files["policy.safetensors"] = save_tensors(weights)
        files["statistics.safetensors"] = save_arrays(
            {key: np.ascontiguousarray(values) for key, values in statistics.items()}
        )
        mine = partial(self.require, cell)
        mine()
        with writing(folder):
            folder.mkdir(exist_ok=True)
            for name, content in files.items():
                with replacing(folder / name, mine, settled=False) as temporary:
                    temporary.write_bytes(content)
            about = {"cell": cell.model_dump(mode="json"), **record}
            write_json(folder / "cell.json", about, mine, settled=False)
            sync(folder)  # before the status says that they are there
        self.set_status(cell, Status("done", warnings=warnings or {}))

    def record(self, cell: Cell) -> dict[str, Any]:
        """What a finished cell ran with, as :meth:`write_results` was given it."""
        content: dict[str, Any] = self._read(cell, "cell.json")
        return content

    def episodes(self, cell: Cell) -> pd.DataFrame:
        """The evaluation episodes of a finished cell."""
        frame: pd.DataFrame = self._read(cell, "episodes.parquet")
        return frame

    def training(self, cell: Cell) -> pd.DataFrame:
        """The training metrics of a finished cell."""
        frame: pd.DataFrame = self._read(cell, "training.parquet")
        return frame

    def diagnostics(self, cell: Cell) -> pd.DataFrame:
        """What was measured of a finished cell by data alone, :data:`DIAGNOSTICS`; no row where nothing was."""
        folder = self.folder(cell)
        stored = _read_status(folder)
        if stored is not None and "diagnostics.parquet" not in _expected(folder, stored):
            return no_diagnostics()
        frame: pd.DataFrame = self._read(cell, "diagnostics.parquet")
        return frame

    def policies(self, cell: Cell) -> dict[str, dict[str, Tensor]]:
        """The last checkpoint's state of each policy of a finished cell, by name."""
        states: dict[str, dict[str, Tensor]] = {}
        for key, tensor in sorted(self._read(cell, "policy.safetensors").items()):
            name, _, parameter = key.partition("/")
            states.setdefault(name, {})[parameter] = tensor
        return states

    def statistics(self, cell: Cell) -> dict[str, NDArray[Any]]:
        """What the algorithm measured in the data of a finished cell."""
        arrays: dict[str, NDArray[Any]] = self._read(cell, "statistics.safetensors")
        return arrays

    def forget(self, cell: Cell) -> None:
        """Remove all that is stored of a cell, at once."""
        folder = self.folder(cell)
        removed = folder.with_name(f".{folder.name}.{processes.name()}.tmp")
        self.require(cell)
        with writing(folder):
            if folder.exists():
                folder.rename(removed)
                shutil.rmtree(removed)

    def verify(self) -> tuple[int, list[str]]:
        """Read everything: plans, cells, checkpoints.

        Returns:
            How many files there are, and what is wrong with those that are damaged.
        """
        checks: list[Callable[[], object]] = [partial(_read_plan, path) for path in self._plan_paths()]
        for folder in sorted(self.root.glob("[0-9a-f]" * 16)):
            checks.append(partial(_read_status, folder))
            with suppress(DamageError):  # which the check before will tell
                stored = _read_status(folder)
                if stored is not None and stored.state == "done":
                    names = _expected(folder, stored)
                    checks += [partial(self._check, folder, name, stored, thorough=True) for name in names]
        checks += [partial(self._load_checkpoint, path) for path in sorted((self.root / "jobs").glob("*.checkpoint"))]
        damaged = []
        for check in checks:
            try:
                check()
            except (DamageError, ResultsError) as error:
                damaged.append(str(error))
        return len(checks), damaged

    # Checkpoints

    def checkpoint_path(self, job: Job) -> Path:
        """Where a job's checkpoint lies."""
        return self.root / "jobs" / f"{job.cells[0].group}-{job.id}.checkpoint"

    def write_checkpoint(self, job: Job, content: Mapping[str, Any]) -> None:
        """Keep all that the job needs to go on, in one file."""
        path = self.checkpoint_path(job)
        mine = partial(self.require, job.cells[0])
        mine()
        with writing(path):
            checkpoint.save(path, {"job": job.model_dump_json(), **content}, mine)

    def read_checkpoint(self, job: Job) -> dict[str, Any] | None:
        """What :meth:`write_checkpoint` kept, or ``None``. No code of the file is run.

        Raises:
            ResultsError: it is there, and the disk does not give it.
            DamageError: it is not what was written, or cannot be read without running code.
        """
        path = self.checkpoint_path(job)
        return self._load_checkpoint(path) if path.exists() else None

    def remove_checkpoint(self, job: Job) -> None:
        """The job is over."""
        path = self.checkpoint_path(job)
        self.require(job.cells[0])
        with writing(path):
            path.unlink(missing_ok=True)

    def checkpointed_groups(self) -> set[str]:
        """The groups of cells of which a checkpoint lies here."""
        return {path.name.partition("-")[0] for path in (self.root / "jobs").glob("[!.]*-*.checkpoint")}

    def unfinished_jobs(self, group: str = "*") -> list[Job]:
        """The jobs that left a checkpoint. One that is of no use is set aside, so that its job alone starts afresh.

        Args:
            group: of cells, whose jobs are asked for; all of them if nothing is said.
        """
        jobs = []
        for path in sorted((self.root / "jobs").glob(f"{group}-*.checkpoint")):
            try:
                job = Job.model_validate_json(self._load_checkpoint(path)["job"])
                if self.checkpoint_path(job) != path:
                    raise DamageError(path, "it is the checkpoint of another job")
                jobs.append(job)
            except (DamageError, ValidationError, KeyError, TypeError) as error:
                kept = _set_aside(path)
                what = error if isinstance(error, DamageError) else DamageError(path, "it is of another version")
                self.note(f"{what}; its job starts afresh, and the file is kept as {kept.name}")
            except ResultsError as error:
                self.note(f"{error}; it is left as it is")
        return jobs

    def _load_checkpoint(self, path: Path) -> dict[str, Any]:
        try:
            stat = path.stat()
            seen = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if self._sound.get(path) != seen:
                checkpoint.verify(path)
                self._sound[path] = seen
            return checkpoint.load(path)
        except OSError as error:
            raise ResultsError(f"cannot read a checkpoint: {error.strerror or error}: {path}") from error


@cache
def no_diagnostics() -> pd.DataFrame:
    """What :meth:`Results.diagnostics` gives where nothing was measured: always the same, as most cells have none."""
    import pandas as pd

    return pd.DataFrame(columns=list(DIAGNOSTICS))


def damaged(error: DamageError) -> Status:
    """How a cell stands that has a damaged file."""
    return Status("damaged", f"{error}; run its suite again, which makes the cell again, or import it again")


def _read_plan(path: Path) -> Plan:
    """A suite's plan.

    Raises:
        DamageError: it is not what was written.
    """
    try:
        plan = Plan.model_validate(read_sealed(path)[0])
    except ValidationError as error:
        what = f"it is not a plan that this version can read: {error.errors()[0]['msg']}"
        raise DamageError(path, what) from error
    except FileNotFoundError as error:
        raise DamageError(path, "it is gone") from error
    if plan.suite != path.stem:
        raise DamageError(path, f"it is the plan of suite {plan.suite!r}")
    return plan


def _read_status(folder: Path) -> _StatusFile | None:
    """How a cell was left, ``None`` if nothing is there.

    Raises:
        DamageError: it cannot be told.
    """
    path = folder / STATUS
    try:
        content, sealed = read_sealed(path)
    except FileNotFoundError:
        if (folder / "cell.json").exists():
            raise DamageError(path, "it is gone") from None
        return None
    try:
        stored = _StatusFile.model_validate(content)
    except ValidationError as error:
        raise DamageError(path, "it is no status of a cell") from error
    if sealed != (stored.files is not None) or sealed != (stored.cell is not None):
        raise DamageError(path, "it is no status of a cell")
    if sealed and stored.cell != folder.name:
        raise DamageError(path, f"it is that of cell {stored.cell}")
    return stored


def _expected(folder: Path, stored: _StatusFile) -> list[str]:
    """The files of a finished cell beside its status."""
    if stored.files is not None:
        return list(stored.files)
    return [name for name in EVERYTHING if name not in OPTIONAL or (folder / name).exists()]


def _verified(path: Path, stored: _StatusFile) -> bytes:
    """The content of a file of a finished cell.

    Raises:
        DamageError: it is not what was written.
    """
    try:
        content = read_bytes(path)
    except OSError as error:
        raise DamageError(path, f"it cannot be read: {error.strerror}") from error
    if stored.files is not None:
        seal = stored.files.get(path.name)
        if seal is None:
            raise DamageError(path, "the cell has none")
        if hashlib.sha256(content).hexdigest() != seal.sha256:
            raise DamageError(path, "its SHA-256 is not what was written")
    return content


def _parsed(path: Path, content: bytes) -> Any:
    """JSON, a data frame, or arrays or tensors by name, as the file's name says.

    Raises:
        DamageError: it is none.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        if path.suffix == ".json":
            return json.loads(content)
        if path.suffix == ".parquet":
            return parse_table(path, content).to_pandas()
        if path.name == "policy.safetensors":
            from safetensors.torch import load as load_tensors

            return load_tensors(content)
        return load(content)
    except (OSError, ValueError, KeyError, RecursionError, MemoryError, SafetensorError) as error:
        raise DamageError(path, "it cannot be read") from error


def _parquet(frame: pd.DataFrame) -> bytes:
    """A table as ``frame.to_parquet`` writes it, which takes longer to find out how."""
    from pyarrow import BufferOutputStream, Table
    from pyarrow.parquet import write_table

    stream = BufferOutputStream()
    write_table(Table.from_pandas(frame, preserve_index=False), stream)
    content: bytes = stream.getvalue().to_pybytes()
    return content


def parse_table(path: Path, content: bytes) -> Table:
    """The table in a file of a cell that has been read.

    Raises:
        DamageError: it is none.
    """
    from pyarrow import ArrowException, BufferReader
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(BufferReader(content)).read(use_threads=False)
    except (OSError, ValueError, KeyError, MemoryError, ArrowException) as error:
        raise DamageError(path, "it cannot be read") from error


def _set_aside(path: Path) -> Path:
    """Give a file a name under which it is in nobody's way; nothing is overwritten."""
    for number in range(1, 1 << 20):
        kept = path.with_name(f"{path.name}.damaged{f'-{number}' if number > 1 else ''}")
        if not kept.exists():
            break
    with writing(path):
        path.rename(kept)
    return kept
