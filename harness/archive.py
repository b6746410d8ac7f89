"""A suite's results in a few files, to be committed, and read as a results folder is.

::

    <root>/archive.json                   the suite, and the SHA-256 of every file
    <root>/plan-<sha256>.json.gz          its plan
    <root>/cells-<sha256>.parquet         a row a cell that was started: cell, state, reason, warnings, record
    <root>/episodes-<sha256>.parquet      a finished cell's evaluation episodes, as they were stored
    <root>/training-<sha256>.parquet      its training metrics: float32, at most 50 points
    <root>/diagnostics-<sha256>.parquet   its diagnostics, where any cell has some

Policies' weights, checkpoints and tracebacks stay behind. A file is named after what it holds, and ``archive.json`` is
written last: a new archive takes the old one's place at once. The same results make the same bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.errors import UserError, nearest
from harness.files import read_bytes, replacing, write_json, writing
from harness.notes import Note, silent
from harness.plan import Cell, Plan, PlannedCell
from harness.store import MANIFEST, TABLES, Results, Status, Store, no_diagnostics
from harness.summary import Snapshot

if TYPE_CHECKING:
    import pandas as pd

POINTS = 50
"""Of a cell's training metrics."""

Name = Literal["plan", "cells", "episodes", "training", "diagnostics"]
TABLE = ".parquet"
ENDINGS: Mapping[Name, str] = {
    "plan": ".json.gz",
    "cells": TABLE,
    "episodes": TABLE,
    "training": TABLE,
    "diagnostics": TABLE,
}


class _Manifest(BaseModel):
    """What ``archive.json`` says."""

    model_config = ConfigDict(extra="forbid")

    archive_version: Literal[1] = 1
    suite: str
    files: dict[Name, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]
    """SHA-256 by what a file holds."""


class Archive:
    """The archive ``root``, to read. Its files are checked when they are read.

    Raises:
        UserError: it is damaged, or of another version; so do the methods.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        path = root / MANIFEST
        try:
            self._manifest = _Manifest.model_validate_json(read_bytes(path))
        except (OSError, ValidationError) as error:
            raise UserError(f"not an archive that this version can read: {error}", where=str(path)) from error

    @property
    def suite(self) -> str:
        """The suite's name."""
        return self._manifest.suite

    def plans(self) -> list[Plan]:
        """The suite's plan, alone."""
        return [self._plan]

    def status(self, cell: Cell) -> Status:
        """How a cell stands."""
        row = self._cells.get(cell.hash)
        if row is None:
            return Status("missing")
        return Status(row["state"], row["reason"], json.loads(row["warnings"]))

    def record(self, cell: Cell) -> dict[str, Any]:
        """What a finished cell ran with."""
        return {"cell": cell.model_dump(mode="json"), **json.loads(self._cells[cell.hash]["record"])}

    def episodes(self, cell: Cell) -> pd.DataFrame:
        """The evaluation episodes of a finished cell."""
        return self._of(cell, "episodes", self._episodes)

    def training(self, cell: Cell) -> pd.DataFrame:
        """The training metrics of a finished cell, thinned."""
        return self._of(cell, "training", self._training).dropna(axis="columns", how="all")  # other cells' metrics

    def diagnostics(self, cell: Cell) -> pd.DataFrame:
        """What was measured of a finished cell by data alone, ``DIAGNOSTICS``; no row where nothing was."""
        found = self._diagnostics.get(cell.hash)
        return no_diagnostics() if found is None else found

    def verify(self) -> tuple[int, list[str]]:
        """Read everything; as :meth:`Store.verify`."""
        damaged = []
        for name in self._manifest.files:
            try:
                self._read(name)
            except UserError as error:
                damaged.append(str(error))
        return len(self._manifest.files), damaged

    # Files

    @cached_property
    def _plan(self) -> Plan:
        try:
            plan = Plan.model_validate_json(gzip.decompress(self._read("plan")))
        except (OSError, EOFError, zlib.error, ValidationError) as error:
            where = str(self.root / self._file("plan"))
            raise UserError(f"not a plan that this version can read: {error}", where=where) from error
        if plan.suite != self.suite:
            raise UserError(f"names suite {self.suite!r}, its plan {plan.suite!r}", where=str(self.root / MANIFEST))
        if not self._cells.keys() <= {planned.cell.hash for planned in plan.cells}:
            raise UserError(
                "its cells are not those of its plan: this version names cells otherwise", where=str(self.root)
            )
        return plan

    @cached_property
    def _cells(self) -> dict[str, pd.Series[Any]]:
        return {str(key): row for key, row in self._frame("cells").set_index("cell").iterrows()}

    @cached_property
    def _episodes(self) -> dict[str, pd.DataFrame]:
        return _by_cell(self._frame("episodes"))

    @cached_property
    def _training(self) -> dict[str, pd.DataFrame]:
        return _by_cell(self._frame("training"))

    @cached_property
    def _diagnostics(self) -> dict[str, pd.DataFrame]:
        return _by_cell(self._frame("diagnostics")) if "diagnostics" in self._manifest.files else {}

    def _of(self, cell: Cell, name: Name, frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
        if cell.hash not in frames:
            raise UserError(f"no {name} of {cell.describe()} ({cell.hash})", where=str(self.root / self._file(name)))
        return frames[cell.hash]

    def _frame(self, name: Name) -> pd.DataFrame:
        import pandas as pd
        from pyarrow import ArrowException

        content = self._read(name)
        try:
            return pd.read_parquet(io.BytesIO(content))
        except ArrowException as error:
            raise UserError(f"not a table: {error}", where=str(self.root / self._file(name))) from error

    def _file(self, name: Name) -> str:
        try:
            return _file_name(name, self._manifest.files[name])
        except KeyError as error:
            raise UserError(f"names no file of {name}", where=str(self.root / MANIFEST)) from error

    def _read(self, name: Name) -> bytes:
        path = self.root / self._file(name)
        try:
            content = read_bytes(path)
        except OSError as error:
            raise UserError(f"cannot be read, but the archive needs it: {error.strerror}", where=str(path)) from error
        if hashlib.sha256(content).hexdigest() != self._manifest.files[name]:
            raise UserError("damaged: its SHA-256 is not what the archive says", where=str(path))
        return content


def open_results(root: Path, checked: Iterable[str] = TABLES, note: Note = silent) -> Results:
    """A results folder or an archive, to read: a folder as it is when it is looked at, see :class:`Snapshot`.

    Args:
        root: the folder.
        checked: of the files that reports read, those whose content is to be checked; with fewer than all of them,
            a folder is a :class:`Store` that looks at the sizes of the others.
        note: is told what the user should know.

    Raises:
        UserError: it is neither.
    """
    if (root / MANIFEST).exists():
        return Archive(root)
    store = Store.existing(root, checked, note)
    return Snapshot(store) if store.checked >= set(TABLES) else store


def chosen_plans(results: Results, suite: str | None) -> list[Plan]:
    """The plans of one suite, or of all.

    Raises:
        UserError: no such suite ran here.
    """
    plans = results.plans()
    names = [plan.suite for plan in plans]
    if suite is not None and suite not in names:
        raise UserError(
            f"no suite {suite!r} ran in {str(results.root)!r}, only {', '.join(names)}.{nearest(suite, names)}"
        )
    return [plan for plan in plans if suite in (None, plan.suite)]


def all_chosen(results: Results, suites: Iterable[str | None]) -> list[Plan]:
    """The plans of suites, each once; of all where none is named, or ``None`` is.

    Raises:
        UserError: one did not run here.
    """
    return [plan for suite in dict.fromkeys(suites) or [None] for plan in chosen_plans(results, suite)]


def chosen_plan(results: Results, suite: str | None) -> Plan:
    """The plan of one suite, or of the only one.

    Raises:
        UserError: no such suite ran here, or several did.
    """
    plans = chosen_plans(results, suite)
    if len(plans) > 1:
        raise UserError(
            f"several suites ran in {str(results.root)!r}: choose with "
            f"--suite {' or '.join(plan.suite for plan in plans)}"
        )
    return plans[0]


@dataclass(frozen=True)
class Archived:
    """What an archive holds.

    Args:
        suite: whose results.
        cells: cells of the plan.
        done: of them, finished.
        kept: of these, from the archive that was there before.
        damaged: which of the results' cells are, and so are left out.
        dropped: cells that the archive before had finished and that are not in the plan.
        files: how many files.
        size: their bytes.
    """

    suite: str
    cells: int
    done: int
    kept: int
    damaged: list[str]
    dropped: int
    files: int
    size: int


def write_archive(sources: Sequence[Results], suite: str | None, root: Path) -> Archived:
    """Pack a suite's results into the folder ``root``.

    An archive of the same suite that is there is replaced. What only it has finished of the suite's cells is kept.

    Args:
        sources: results of the suite, or of parts of it with the same settings; archives, too. Of a cell that several
            have finished, the first of them counts.
        suite: whose results; ``None`` means the only one.
        root: where to; made if it is not there.

    Raises:
        UserError: nothing is finished, results do not go together, or ``root`` is something else or cannot be written.
    """
    plan = _join([chosen_plan(source, suite) for source in sources])
    if (root / "suites").exists():
        raise UserError(f"{str(root)!r} is a results folder; an archive needs a folder of its own")
    old = Archive(root) if (root / MANIFEST).exists() else None
    if old is not None and old.suite != plan.suite:
        raise UserError(f"{str(root)!r} is an archive of suite {old.suite}; {plan.suite} needs a folder of its own")
    holders = [*sources, *([] if old is None else [old])]
    held = {planned.cell.hash: _holder(planned.cell, holders) for planned in plan.cells}
    done = [planned.cell for planned in plan.cells if held[planned.cell.hash].status(planned.cell).state == "done"]
    if not done:
        raise UserError(f"nothing of suite {plan.suite} is done in {', '.join(str(source.root) for source in sources)}")
    dropped = 0
    if old is not None:
        lost = [planned.cell for planned in old.plans()[0].cells if planned.cell.hash not in held]
        dropped = sum(old.status(cell).state == "done" for cell in lost)
    files = _pack(plan, held, done)
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest = _Manifest(suite=plan.suite, files=hashes)
    names = {_file_name(name, sha256) for name, sha256 in hashes.items()}
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with replacing(root / _file_name(name, hashes[name])) as temporary:
                temporary.write_bytes(content)
        write_json(root / MANIFEST, manifest.model_dump())
        for name, ending in ENDINGS.items():
            for path in root.glob(f"{name}-*{ending}"):
                if path.name not in names:
                    path.unlink()
    kept = sum(held[cell.hash] is old for cell in done)
    size = sum(map(len, files.values())) + (root / MANIFEST).stat().st_size
    statuses = [held[planned.cell.hash].status(planned.cell) for planned in plan.cells]
    damaged = [status.reason for status in statuses if status.state == "damaged"]
    return Archived(plan.suite, len(plan.cells), len(done), kept, damaged, dropped, len(files) + 1, size)


def _join(plans: Sequence[Plan]) -> Plan:
    """One plan of parts of a suite, made from what the part that has all of it was made from, if there is one.

    Raises:
        UserError: they are of different suites, or have different cells for the same place in its tables.
    """
    places: dict[tuple[str, str, int, float | None], PlannedCell] = {}
    for plan in plans:
        if plan.suite != plans[0].suite:
            raise UserError(f"these are results of different suites, {plans[0].suite} and {plan.suite}")
        for planned in plan.cells:
            cell = planned.cell
            other = places.setdefault((cell.task, planned.label, cell.seed, cell.cost_limit), planned)
            if other.cell.hash != cell.hash:
                raise UserError(
                    f"{cell.describe(planned.label)} has other settings in one of these results ({cell.hash}) than in "
                    f"another ({other.cell.hash}): they do not go together"
                )
    whole = next((plan for plan in plans if len(plan.cells) == len(places)), None)
    return plans[0].of(list(places.values())).model_copy(update={"origin": whole and whole.origin})


def _holder(cell: Cell, holders: Sequence[Results]) -> Results:
    """Whose results of a cell count: the first that has finished it, or else the first that knows of it."""
    rank = {"done": 0, "missing": 2}
    return min(holders, key=lambda holder: rank.get(holder.status(cell).state, 1))  # the first of equals


def _pack(plan: Plan, held: Mapping[str, Results], done: list[Cell]) -> dict[Name, bytes]:
    """The content of every file but the manifest."""
    import pandas as pd

    cells = []
    for planned in plan.cells:
        cell, holder = planned.cell, held[planned.cell.hash]
        status = holder.status(cell)
        if status.state == "missing":
            continue
        record = holder.record(cell) if status.state == "done" else {}
        record.pop("cell", None)  # the plan has it
        row = {"cell": cell.hash, "state": status.state, "reason": status.brief}
        cells.append({**row, "warnings": json.dumps(dict(status.warnings)), "record": json.dumps(record)})
    packed: dict[Name, bytes] = {
        "plan": gzip.compress(_portable(plan).model_dump_json().encode(), mtime=0),
        "cells": _parquet(pd.DataFrame(cells)),
    }
    frames: dict[Name, dict[str, pd.DataFrame]] = {
        "episodes": {cell.hash: held[cell.hash].episodes(cell) for cell in done},
        "training": {cell.hash: thinned(held[cell.hash].training(cell)) for cell in done},
        "diagnostics": {cell.hash: held[cell.hash].diagnostics(cell) for cell in done},
    }
    for name, by_cell in frames.items():
        some = {key: frame for key, frame in by_cell.items() if len(frame)}
        if some:
            packed[name] = _parquet(pd.concat(some, names=["cell"]).reset_index("cell").reset_index(drop=True))
    return packed


def _portable(plan: Plan) -> Plan:
    """The plan without the folders of own files and tasks, which say something of one machine only."""
    cells, folders = [], set()
    for planned in plan.cells:
        data, own_task = planned.cell.data, planned.cell.own_task
        if data.file is not None:
            folders.add(f"{Path(data.file).parent}/")
            data = data.model_copy(update={"file": Path(data.file).name})
        if own_task is not None:
            own_task = replace(own_task, folder="")
        cell = planned.cell.model_copy(update={"data": data, "own_task": own_task})
        cells.append(planned.model_copy(update={"cell": cell}))
    origin = plan.origin
    if origin is not None:

        def shortened(text: str) -> str:
            return reduce(lambda rest, folder: rest.replace(folder, ""), sorted(folders, key=len, reverse=True), text)

        overrides = tuple(map(shortened, origin.overrides))
        origin = origin.model_copy(update={"text": shortened(origin.text), "overrides": overrides})
    return Plan(suite=plan.suite, description=plan.description, cells=cells, origin=origin)


def thinned(curve: pd.DataFrame, points: int = POINTS) -> pd.DataFrame:
    """Training metrics as float32, at so many points: a metric is still its mean since the point before.

    Args:
        curve: step, and the metrics as :meth:`Store.training` gives them.
        points: how many at most.
    """
    import pandas as pd

    names = [name for name in curve.columns if name != "step"]
    steps, values = thin(curve["step"].to_numpy(), curve[names].to_numpy(dtype=float), points)
    found = pd.DataFrame(values, columns=names).astype(np.float32)
    found.insert(0, "step", steps)
    return found


def thin(steps: NDArray[Any], values: NDArray[np.float64], points: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Curves of which each value is the mean since the step before, at so many points at most.

    Args:
        steps: ascending, (n,).
        values: (n, curves).
        points: how many.
    """
    if len(steps) <= points:
        return steps, values
    starts = np.arange(points) * len(steps) // points
    stretches = np.diff(steps, prepend=0)
    sums = np.add.reduceat(values * stretches[:, None], starts)
    kept = steps[[*(starts[1:] - 1), len(steps) - 1]]
    return kept, sums / np.add.reduceat(stretches, starts)[:, None]


def _by_cell(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {
        str(key): group.drop(columns="cell").reset_index(drop=True) for key, group in frame.groupby("cell", sort=False)
    }


def _parquet(frame: pd.DataFrame) -> bytes:
    return frame.to_parquet(index=False, compression="zstd", compression_level=19)


def _file_name(name: Name, sha256: str) -> str:
    return f"{name}-{sha256[:12]}{ENDINGS[name]}"
