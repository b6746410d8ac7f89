"""A results folder as reports read it: each file once, and the next time a summary of them in their place.

::

    <root>/summaries/<suite>.arrow    what reports read of the suite's finished cells

A suite has thousands of cells of half a dozen small files each, whose opening and checking takes longer than all that
reports compute. The summary holds what was verified in them, and what they looked like then: the SHA-256 of the cell's
status, which has those of its other files, and each file's size, inode and times of change. What looks otherwise now is
read from its files, and the summary renewed. It ends with its own SHA-256. One that is missing, damaged or of another
version costs time alone, and so does deleting it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import DamageError
from harness.files import file_sha256, replacing
from harness.plan import Cell, Plan
from harness.store import STATUS, Status, Store, damaged, no_diagnostics, parse_table

if TYPE_CHECKING:
    import pandas as pd
    from pyarrow import BufferReader, Table

FOLDER = "summaries"
FRAMES = ("episodes", "diagnostics", "training")
"""What is kept of a cell's tables, in this order; few reports want the last."""
VERSION = b"lspc-bench summary 1\n"
"""What a summary begins with; another one of another form does not."""
SEAL_BYTES = hashlib.sha256().digest_size
WORTH = 50
"""Cells from which on a suite has a summary: fewer are read as fast from their files."""
SETTLED = 2_000_000_000
"""Nanoseconds for which a cell's files must have been left alone: a later change might bear the same time, which some
file systems round."""
READERS = 4
"""Files that are read at once: more than there are cores, for disks that take their time to answer."""


class Frames:
    """Data frames of many cells, in as few tables as there are kinds of columns.

    Args:
        read: gives the tables, in which cells' stand one below the other. A table is gone when a frame has been made.
        places: which table a cell's is in, its first row there, and how many.
    """

    def __init__(
        self, read: Callable[[], list[Table]] = list, places: Mapping[str, tuple[int, int, int]] | None = None
    ) -> None:
        self._read, self.places = read, dict(places or {})
        self._frames: dict[int, pd.DataFrame] = {}

    @cached_property
    def tables(self) -> list[Table]:
        """The tables, read when they are first wanted."""
        return self._read()

    @classmethod
    def of(cls, by_cell: Mapping[str, Table]) -> Frames:
        """Those of each cell, by its hash."""
        from pyarrow import concat_tables, types

        # Together in a table, an integer that is missing would make numbers with a point of all others.
        kinds: dict[Any, list[tuple[str, Table]]] = {}
        for cell, table in by_cell.items():
            bare = table.replace_schema_metadata(None)
            gaps = (column.null_count > 0 for column in bare.columns if not types.is_floating(column.type))
            kinds.setdefault((bare.schema.to_string(), *gaps), []).append((cell, bare))
        tables, places = [], {}
        for number, alike in enumerate(kinds.values()):
            start = 0
            for cell, table in alike:
                places[cell] = (number, start, table.num_rows)
                start += table.num_rows
            tables.append(concat_tables([table for _, table in alike]).combine_chunks())
        return cls(lambda: tables, places)

    def table(self, cell: str) -> Table:
        """A cell's."""
        number, start, count = self.places[cell]
        return self.tables[number].slice(start, count)

    def frame(self, cell: str) -> pd.DataFrame:
        """A cell's, as if it had been read from its file."""
        number, start, count = self.places[cell]
        if number not in self._frames:
            self._frames[number] = self.tables[number].to_pandas()
            self.tables[number] = None  # memory need not hold it twice
        return self._frames[number].iloc[start : start + count].reset_index(drop=True)


@dataclass
class Summary:
    """Finished cells, each by its hash.

    Args:
        marks: what their files looked like, see :func:`mark`.
        statuses: how they stand.
        records: what they ran with, as JSON.
        frames: by the names of :data:`FRAMES`; a cell without diagnostics has none there.
    """

    marks: dict[str, str] = field(default_factory=dict)
    statuses: dict[str, Status] = field(default_factory=dict)
    records: dict[str, str] = field(default_factory=dict)
    frames: dict[str, Frames] = field(default_factory=lambda: {name: Frames() for name in FRAMES})


def mark(folder: Path) -> tuple[str, int] | None:
    """What a cell's files look like from outside, and when one of them last changed (ns); ``None`` without a status."""
    try:
        status = (folder / STATUS).read_bytes()
        with os.scandir(folder) as entries:
            stats = {entry.name: entry.stat() for entry in entries if not entry.name.startswith(".")}
    except OSError:
        return None  # reading the cell will say what is wrong
    found = sorted(
        (name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats.items()
    )
    newest = max(max(modified, changed) for *_, modified, changed in found)
    return hashlib.sha256(status + repr(found).encode()).hexdigest(), newest


def write(summary: Summary, path: Path) -> None:
    """Write :data:`VERSION`, tables as Arrow streams, and the SHA-256 of all that."""
    from pyarrow import ipc, table

    cells = list(summary.marks)
    columns = {
        "cell": cells,
        "mark": [summary.marks[cell] for cell in cells],
        "reason": [summary.statuses[cell].reason for cell in cells],
        "warnings": [json.dumps(dict(summary.statuses[cell].warnings)) for cell in cells],
        "record": [summary.records[cell] for cell in cells],
        **{name: [summary.frames[name].places.get(cell) for cell in cells] for name in FRAMES},
    }
    with path.open("wb") as file:
        file.write(VERSION)
        for one in (table(columns), *(one for name in FRAMES for one in summary.frames[name].tables)):
            with ipc.new_stream(file, one.schema, options=ipc.IpcWriteOptions(compression="zstd")) as writer:
                writer.write_table(one)
    seal = bytes.fromhex(file_sha256(path))
    with path.open("ab") as file:
        file.write(seal)


def read(path: Path) -> Summary:
    """What :func:`write` was given; nothing where there is no file that it made."""
    from pyarrow import ArrowException, BufferReader
    from pyarrow.ipc import open_stream

    try:
        content = path.read_bytes()
    except OSError:
        return Summary()
    body, seal = memoryview(content)[:-SEAL_BYTES], content[-SEAL_BYTES:]
    if not content.startswith(VERSION) or hashlib.sha256(body).digest() != seal:
        return Summary()
    try:
        reader = BufferReader(body[len(VERSION) :])
        rows = open_stream(reader).read_all().to_pylist()
        frames = {}
        for name in FRAMES:
            places = {row["cell"]: tuple(row[name]) for row in rows if row[name] is not None}
            count = 1 + max((number for number, *_ in places.values()), default=-1)
            frames[name] = Frames(partial(_streams, reader, count), places)
            if name != FRAMES[-1]:
                frames[name].tables  # noqa: B018 - they are read in their order
    except (ArrowException, OSError, ValueError):  # of another version of Arrow
        return Summary()
    return Summary(
        {row["cell"]: row["mark"] for row in rows},
        {row["cell"]: Status("done", row["reason"], json.loads(row["warnings"])) for row in rows},
        {row["cell"]: row["record"] for row in rows},
        frames,
    )


def _streams(reader: BufferReader, count: int) -> list[Table]:
    """The next tables of a summary."""
    from pyarrow.ipc import open_stream

    return [open_stream(reader).read_all() for _ in range(count)]


class Snapshot:
    """A results folder at the moment when a suite's cells are first looked at, to read; see :class:`Results`.

    Args:
        store: the folder.
    """

    def __init__(self, store: Store) -> None:
        self.root, self._store = store.root, store
        self._statuses: dict[str, Status] = {}
        self._finished: dict[str, Summary] = {}

    def plans(self) -> list[Plan]:
        """The plans of all suites that ran here, as :meth:`Store.plans` gives them."""
        return list(self._plans)

    def status(self, cell: Cell) -> Status:
        """How a cell stands."""
        if cell.hash not in self._statuses:
            self._look(cell)
        return self._statuses[cell.hash]

    def record(self, cell: Cell) -> dict[str, Any]:
        """What a finished cell ran with."""
        content: dict[str, Any] = json.loads(self._summary(cell).records[cell.hash])
        return content

    def episodes(self, cell: Cell) -> pd.DataFrame:
        """The evaluation episodes of a finished cell."""
        return self._summary(cell).frames["episodes"].frame(cell.hash)

    def training(self, cell: Cell) -> pd.DataFrame:
        """The training metrics of a finished cell."""
        return self._summary(cell).frames["training"].frame(cell.hash)

    def diagnostics(self, cell: Cell) -> pd.DataFrame:
        """What was measured of a finished cell by data alone, :data:`DIAGNOSTICS`; no row where nothing was."""
        found = self._summary(cell).frames["diagnostics"]
        return found.frame(cell.hash) if cell.hash in found.places else no_diagnostics()

    def verify(self) -> tuple[int, list[str]]:
        """Read everything but summaries, which are made of it; as :meth:`Store.verify`."""
        return self._store.verify()

    @cached_property
    def _plans(self) -> list[Plan]:
        return self._store.plans()

    def _summary(self, cell: Cell) -> Summary:
        """What holds a finished cell.

        Raises:
            DamageError: it is not finished.
        """
        status = self.status(cell)
        if cell.hash not in self._finished:
            raise DamageError(self._store.folder(cell), f"the cell is {status.state}")
        return self._finished[cell.hash]

    def _look(self, cell: Cell) -> None:
        """Read the cells of the suite that a cell belongs to, or it alone."""
        for plan in self._plans:
            cells = {planned.cell.hash: planned.cell for planned in plan.cells}
            if cell.hash in cells:
                path = self.root / FOLDER / f"{plan.suite}.arrow"
                return self._read(cells, path if len(cells) >= WORTH else None)
        return self._read({cell.hash: cell}, None)

    def _read(self, cells: Mapping[str, Cell], path: Path | None) -> None:
        """Read cells, as far as possible from a summary, and renew it."""
        from pyarrow import default_memory_pool

        now, kept = time.time_ns(), Summary() if path is None else read(path)
        marks = {key: mark(self._store.folder(cell)) for key, cell in cells.items()}
        same: list[str] = []
        others: list[str] = []
        for key, looks in marks.items():
            (same if looks is not None and kept.marks.get(key) == looks[0] else others).append(key)
        with ThreadPoolExecutor(READERS) as pool:
            fresh = dict(zip(others, pool.map(self._contents, (cells[key] for key in others)), strict=True))
        self._statuses |= {key: kept.statuses[key] for key in same} | {key: one.status for key, one in fresh.items()}
        done = {key: one for key, one in fresh.items() if one.status.state == "done"}
        found = kept
        if done:
            settled = {
                key: first[0]
                for key in done
                if (first := marks[key]) is not None
                and first[1] < now - SETTLED
                and mark(self._store.folder(cells[key])) == first  # nobody wrote while it was read
            }
            found = Summary(
                {key: kept.marks[key] for key in same} | {key: settled.get(key, "") for key in done},
                {key: self._statuses[key] for key in (*same, *done)},
                {key: kept.records[key] for key in same} | {key: one.record for key, one in done.items()},
                {
                    name: Frames.of(
                        {key: before.table(key) for key in same if key in before.places}
                        | {key: one.tables.pop(name) for key, one in done.items() if name in one.tables}
                    )
                    for name, before in kept.frames.items()
                },
            )
            default_memory_pool().release_unused()  # what the cells' own tables took
            if settled and path is not None:
                self._keep(found, path)
        self._finished |= dict.fromkeys((*same, *done), found)

    def _contents(self, cell: Cell) -> _Contents:
        """What a cell's files hold."""
        folder = self._store.folder(cell)
        status, files = self._store.read(cell)
        if status.state != "done":
            return _Contents(status)
        try:
            named = {name: f"{name}.parquet" for name in FRAMES}
            tables = {name: parse_table(folder / file, files[file]) for name, file in named.items() if file in files}
        except DamageError as error:
            return _Contents(damaged(error))
        return _Contents(status, files["cell.json"].decode(), tables)

    def _keep(self, summary: Summary, path: Path) -> None:
        """Write a summary, if that can be: it is nothing that is needed."""
        try:
            path.parent.mkdir(exist_ok=True)
            with replacing(path) as temporary:
                write(summary, temporary)
        except OSError as error:
            self._store.note(
                f"{path} cannot be written ({error.strerror or error}): the next reading will take as long"
            )


@dataclass(frozen=True)
class _Contents:
    """A cell as it was read from its files: of a finished one, see :class:`Summary`."""

    status: Status
    record: str = ""
    tables: dict[str, Table] = field(default_factory=dict)
    """Given up when they are put together, so that memory does not hold them twice."""
