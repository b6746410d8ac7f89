"""A summary changes how fast results are read, and nothing else."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from running import suite_plan

from harness import statistics, summary
from harness.archive import open_results
from harness.cli import main
from harness.plan import Plan
from harness.report.leaderboard import make_leaderboard, to_json, to_markdown
from harness.store import DIAGNOSTICS, TABLES, Results, Status, Store
from harness.summary import FOLDER, Frames, Snapshot

SUITE = """
name: made-up
tasks: [BallRun]
algorithms:
  bc: {grid: {mode: [all, safe]}}
  lspc:
seeds: 2
cost_limits: [10, 20]
steps: 100
data: {source: demo}
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return suite_plan(tmp_path_factory.mktemp("suite"), SUITE)


@pytest.fixture(autouse=True)
def _always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small suites have a summary, too, also where their files are new."""
    monkeypatch.setattr(summary, "WORTH", 0)
    monkeypatch.setattr(summary, "SETTLED", -(10**18))
    monkeypatch.setattr(statistics, "BOOTSTRAP_SAMPLES", 50)


def write(store: Store, plan: Plan, index: int, seed: int = 0, steps: tuple[int, ...] = (50, 100)) -> None:
    planned, draws = plan.cells[index], np.random.default_rng([seed, index])
    rows = [
        {"step": step, "policy": policy, "cost_limit": np.nan, "episode": episode, "seed": 2**60 + episode}
        | {"episode_return": draws.normal() * 1e3 / 3, "cost": draws.uniform(0, 30), "length": 9}
        for step in steps
        for policy in planned.rows
        for episode in range(3)
    ]
    curve = pd.DataFrame({"step": range(1, 101), f"{planned.cell.algorithm}_loss": draws.normal(size=100)})
    record = {"dataset": {"sha256": "0"}, "group": [planned.cell.hash], "training_seconds": 0.1, "versions": {}}
    told = pd.DataFrame([(100, "", np.nan, "action_error", draws.normal())], columns=list(DIAGNOSTICS))
    weights = {"p": {"w": torch.zeros(1)}}
    measured = told if index % 2 else None
    store.write_results(planned.cell, record, pd.DataFrame(rows), curve, weights, {}, measured, {"stuck": 60})


@pytest.fixture
def store(plan: Plan, tmp_path: Path) -> Store:
    """All cells but two, of which one failed."""
    (tmp_path / "runs" / "suites").mkdir(parents=True)
    store = Store(tmp_path / "runs")
    store.write_plan(plan)
    for index in range(2, len(plan.cells)):
        write(store, plan, index)
    store.set_status(plan.cells[0].cell, Status("failed", "ValueError: no"))
    return store


def said(results: Results, plan: Plan) -> list[str]:
    """All that is said of results."""
    board = make_leaderboard(results, plan)
    cells = []
    for planned in plan.cells:
        status = results.status(planned.cell)
        read: list[Any] = [status.state, status.reason, dict(status.warnings)]
        if status.state == "done":
            read.append(results.record(planned.cell))
            for frame in (results.episodes, results.diagnostics, results.training):
                read += [frame(planned.cell).to_json(double_precision=15), str(frame(planned.cell).dtypes.to_dict())]
        cells.append(json.dumps(read))
    return [to_markdown([board]), to_json([board]), *cells]


def path(store: Store) -> Path:
    return store.root / FOLDER / "made-up.arrow"


def reads(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which cells are read from their own files from now on."""
    cells: list[str] = []
    original = Store.read
    monkeypatch.setattr(Store, "read", lambda self, cell: (cells.append(cell.hash), original(self, cell))[1])
    return cells


def same(store: Store, plan: Plan) -> None:
    """What is said is what the files say, twice."""
    expected = said(Store(store.root, TABLES), plan)
    assert said(open_results(store.root), plan) == expected
    assert said(open_results(store.root), plan) == expected


# With and without


def test_it_says_what_the_files_say(store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = said(store, plan)
    assert said(open_results(store.root), plan) == expected
    assert path(store).exists()
    read = reads(store, monkeypatch)
    results = open_results(store.root)
    assert isinstance(results, Snapshot)
    assert said(results, plan) == expected
    assert set(read) == {planned.cell.hash for planned in plan.cells[:2]}
    for planned in plan.cells[2:]:
        for one in ("episodes", "training", "diagnostics"):
            pd.testing.assert_frame_equal(
                getattr(results, one)(planned.cell), getattr(store, one)(planned.cell), check_exact=True
            )


def test_the_commands_write_the_same_with_and_without(store: Store, tmp_path: Path) -> None:
    texts: list[list[bytes]] = []
    for _ in range(3):
        texts.append([])
        for arguments in (["leaderboard"], ["leaderboard", "--format", "json"], ["report"]):
            output = tmp_path / "output"
            result = CliRunner().invoke(main, [arguments[0], str(store.root), *arguments[1:], "--output", str(output)])
            assert result.exit_code == 0, result.output
            texts[-1].append(output.read_bytes())
        if len(texts) == 2:
            path(store).unlink()
    assert texts[0] == texts[1] == texts[2]


def test_few_cells_need_none(store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "WORTH", len(plan.cells) + 1)
    same(store, plan)
    assert not path(store).exists()


def test_files_that_are_still_being_written_are_read_again(
    store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second change within one tick of the file system's clock would not show."""
    monkeypatch.setattr(summary, "SETTLED", 10**12)
    same(store, plan)
    assert not path(store).exists()
    monkeypatch.undo()
    monkeypatch.setattr(summary, "WORTH", 0)
    assert summary.SETTLED == 2 * 10**9


def test_what_changes_while_it_is_read_is_read_again(store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    original, first = Store.read, plan.cells[2].cell

    def read(self: Store, cell: Any) -> Any:
        found = original(self, cell)
        if cell.hash == first.hash:
            write(self, plan, 2, seed=1)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Store, "read", read)
        open_results(store.root).status(first)
    same(store, plan)


# Stale


@pytest.mark.parametrize("change", ["rerun", "failed", "removed", "added", "status gone"])
def test_no_stale_number_is_read(store: Store, plan: Plan, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    same(store, plan)
    before, cell = said(open_results(store.root), plan), plan.cells[3].cell
    if change == "rerun":
        write(store, plan, 3, seed=1)
    elif change == "failed":
        store.set_status(cell, Status("failed", "no"))
    elif change == "removed":
        store.forget(cell)
    elif change == "added":
        write(store, plan, 0)
    else:
        (store.folder(cell) / "status.json").unlink()
    assert said(open_results(store.root), plan) != before
    same(store, plan)
    read = reads(store, monkeypatch)
    open_results(store.root).status(cell)
    assert len(read) <= 3  # the others are in the summary


def test_a_changed_plan_is_read_as_it_is(store: Store, plan: Plan) -> None:
    same(store, plan)
    fewer = plan.model_copy(update={"cells": plan.cells[4:]})
    store.write_plan(fewer)
    same(store, fewer)
    store.write_plan(plan)
    same(store, plan)


def test_a_cell_of_no_plan_is_read_from_its_files(store: Store, plan: Plan) -> None:
    fewer = plan.model_copy(update={"cells": plan.cells[:4]})
    store.write_plan(fewer)
    assert open_results(store.root).status(plan.cells[5].cell) == store.status(plan.cells[5].cell)


# Damage


@pytest.mark.parametrize("name", ["episodes.parquet", "training.parquet", "cell.json", "status.json"])
@pytest.mark.parametrize("timed", [False, True])
def test_a_flipped_bit_of_a_cell_is_found(store: Store, plan: Plan, name: str, timed: bool) -> None:
    """Also where the time of change is put back: the inode's own cannot be."""
    same(store, plan)
    file = store.folder(plan.cells[3].cell) / name
    content, stat = bytearray(file.read_bytes()), file.stat()
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    if timed:
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    status = open_results(store.root).status(plan.cells[3].cell)
    assert status.state == "damaged"
    assert str(file) in status.reason
    same(store, plan)


def test_a_damaged_summary_is_not_read_and_is_written_anew(
    store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    same(store, plan)
    whole, expected = path(store).read_bytes(), said(store, plan)
    places = range(0, len(whole), len(whole) // 4)
    flipped = [whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :] for place in places]
    read = reads(store, monkeypatch)
    for content in (b"", b"{}", whole[:-1], whole[1:], whole + b"\0", *flipped):
        path(store).write_bytes(content)
        read.clear()
        assert said(open_results(store.root), plan) == expected
        assert len(set(read)) == len(plan.cells)
        read.clear()
        assert said(open_results(store.root), plan) == expected
        assert len(set(read)) == 2


def test_one_of_another_version_is_not_read(store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(summary, "VERSION", b"lspc-bench summary 0\n")
        same(store, plan)
    read = reads(store, monkeypatch)
    same(store, plan)
    assert len(set(read)) == len(plan.cells)


# Where none can be written


def test_a_folder_that_cannot_be_written_is_read(store: Store, plan: Plan) -> None:
    (store.root / FOLDER).write_text("in the way")
    notes: list[str] = []
    assert said(open_results(store.root, note=notes.append), plan) == said(store, plan)
    assert len(notes) == 1
    assert notes[0].endswith("the next reading will take as long")


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_is_no_failure(store: Store, plan: Plan, error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: Any) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(summary, "write", write)
    notes: list[str] = []
    assert said(open_results(store.root, note=notes.append), plan) == said(store, plan)
    assert os.strerror(error) in notes[0]
    assert not any((store.root / FOLDER).iterdir())


def test_verify_reads_the_files(store: Store, plan: Plan) -> None:
    same(store, plan)
    file = store.folder(plan.cells[3].cell) / "policy.safetensors"
    file.write_bytes(file.read_bytes()[::-1])
    result = CliRunner().invoke(main, ["status", str(store.root), "--verify"])
    assert result.exit_code == 1
    assert str(file) in result.output


# Frames


@settings(deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "count": st.integers(0, 4),
                "whole": st.sampled_from([pa.int64(), pa.uint64(), pa.float64()]),
                "gap": st.booleans(),
                "texts": st.booleans(),
            }
        ),
        max_size=8,
    )
)
def test_frames_of_many_kinds_are_what_they_were(kinds: list[dict[str, Any]]) -> None:
    tables = {}
    for number, kind in enumerate(kinds):
        number_of = float if pa.types.is_floating(kind["whole"]) else int
        values = [number_of(2**60 + number + index) for index in range(kind["count"])]
        whole = [None if kind["gap"] and not index else value for index, value in enumerate(values)]
        columns: dict[str, Any] = {"whole": pa.array(whole, kind["whole"])}
        if kind["texts"]:
            columns["text"] = pa.array([str(value) for value in values], pa.string())
        tables[str(number)] = pa.table(columns)
    frames = Frames.of(tables)
    for cell, table in tables.items():
        assert frames.table(cell).equals(table)
    for cell, table in tables.items():
        pd.testing.assert_frame_equal(frames.frame(cell), table.to_pandas(), check_exact=True)
