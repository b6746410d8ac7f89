"""Results on disk: written whole or not at all, by whoever claims them, and read without running code."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import re
import stat
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness import checkpoint, processes
from harness.claims import ClaimLost, Claims
from harness.errors import DamageError, ResultsError, UserError
from harness.files import replacing, write_json
from harness.plan import Cell, CellData, Job, Plan, PlannedCell
from harness.store import DIAGNOSTICS, EVERYTHING, Status, Store
from harness.suite import Evaluation


def cell(seed: int = 0) -> Cell:
    return Cell(
        task="OfflineBallRun-v0",
        algorithm="bc",
        algorithm_version=1,
        hyperparameters={"steps": 3},
        seed=seed,
        cost_limit=None,
        evaluation_limits=(10.0,),
        evaluation=Evaluation(),
        data=CellData(source="demo"),
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "runs")
    store.prepare()
    return store


def write_results(store: Store, one: Cell, cost: float = 1.0) -> None:
    frame = pd.DataFrame({"step": [3], "cost": [cost]})
    store.write_results(
        one, {"device": "cpu"}, frame, frame, {"bc": {"weights": torch.ones(2)}}, {"mean": np.arange(3.0)}
    )


# Atomic writes


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    with pytest.raises(KeyError), replacing(path) as temporary:  # noqa: PT012 - the block itself fails
        temporary.write_text("half of")
        raise KeyError
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_at_the_path_before_all_is_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.parent == tmp_path  # a rename works within one file system only
    assert path.read_text() == "new"


def test_results_count_as_done_only_when_they_are_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of its writes is the last before the end, the cell is done after the last one alone."""
    store.set_status(cell(), Status("running"))
    writes, fsync = 0, os.fsync

    def counted(descriptor: int) -> None:
        nonlocal writes
        if writes == limit:
            raise OSError(errno.ENOSPC, "full")
        writes += 1
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", counted)
    for limit in range(7):  # noqa: B007 - read by the function above: five files, their folder, the status
        writes = 0
        with pytest.raises(ResultsError, match=r"^cannot write results: full: .*/\w+(\.\w+)?$"):
            write_results(store, cell())
        assert store.status(cell()).state == "running"
    monkeypatch.undo()
    write_results(store, cell())
    assert store.status(cell()).state == "done"


def test_what_a_killed_process_left_is_removed(store: Store) -> None:
    """Of this machine's processes at once, of another's a day after it wrote last; what is being written stays."""
    store.set_status(cell(), Status("running"))
    gone, alive = f"{processes.machine()}-9999999-1-beef", processes.name()
    folders = (store.root, store.folder(cell()), store.root / "jobs", store.root / "suites")
    left = [folder / f".x.json.{gone}.tmp" for folder in folders]
    stays = [store.root / "jobs" / f".y.checkpoint.{process}.tmp" for process in (alive, "elsewhere-1-1-beef", "7")]
    old = store.root / "jobs" / ".z.checkpoint.elsewhere-1-1-beef.tmp"
    for path in (*left, *stays, old):
        path.write_text("half")
    os.utime(old, (time.time() - 90_000,) * 2)
    store.prepare()
    assert not any(path.exists() for path in (*left, old))
    assert all(path.exists() for path in stays)
    assert store.status(cell()).state == "running"


def test_a_checkpoint_of_an_older_version_goes_on(store: Store) -> None:
    job = Job(cells=(cell(),))
    store.write_checkpoint(job, {"step": 3})
    store.checkpoint_path(job).rename(store.root / "jobs" / f"{job.id}.checkpoint")
    assert store.unfinished_jobs() == []
    store.prepare()
    assert store.unfinished_jobs() == [job]
    assert (store.read_checkpoint(job) or {})["step"] == 3
    (store.root / "jobs" / f"{job.id}.checkpoint").write_text("no checkpoint")
    said: list[str] = []
    Store(store.root, note=said.append).prepare()
    assert said[0].endswith("its job starts afresh")
    assert store.unfinished_jobs() == [job]


def test_where_another_worker_has_a_cell_nothing_of_it_is_written(store: Store) -> None:
    job = Job(cells=(cell(),))
    store.write_checkpoint(job, {"step": 3})
    with Claims(store.root) as claims:
        store.claims = claims
        assert claims.acquire(job.group)
        store.set_status(cell(), Status("running"))
        (store.root / "claims" / job.group).write_text("another")
        before = {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()}
        for write in (
            lambda: store.set_status(cell(), Status("failed")),
            lambda: write_results(store, cell()),
            lambda: store.forget(cell()),
            lambda: store.write_checkpoint(job, {"step": 4}),
            lambda: store.remove_checkpoint(job),
        ):
            with pytest.raises(ClaimLost, match="another worker has taken over"):
                write()
        assert {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()} == before


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"cannot write results: File exists: .*/file$"),
    ):
        Store(tmp_path / "file").prepare()


# Cells


@given(st.sampled_from(["running", "done", "failed", "diverged"]), st.text())
def test_a_status_comes_back(tmp_path_factory: pytest.TempPathFactory, state: Any, reason: str) -> None:
    store = Store(tmp_path_factory.getbasetemp())
    store.set_status(cell(), Status(state, reason))
    assert store.status(cell()) == Status(state, reason)
    assert "\n" not in store.status(cell()).brief


def test_of_a_traceback_the_exception_is_the_brief_reason() -> None:
    assert Status("failed", "Traceback\n  File x\nValueError: no\n\n").brief == "ValueError: no"
    assert Status("done").brief == ""


def test_results_come_back(store: Store) -> None:
    assert store.status(cell()).state == "missing"
    write_results(store, cell())
    assert store.episodes(cell()).to_dict("list") == {"step": [3], "cost": [1.0]}
    assert store.training(cell()).to_dict("list") == {"step": [3], "cost": [1.0]}
    assert {name: list(state) for name, state in store.policies(cell()).items()} == {"bc": ["weights"]}
    assert store.statistics(cell())["mean"].tolist() == [0, 1, 2]
    record = store.record(cell())
    assert Cell.model_validate(record["cell"]).hash == cell().hash
    assert record["device"] == "cpu"


def test_forgetting_one_cell_leaves_the_others(store: Store) -> None:
    write_results(store, cell(0))
    write_results(store, cell(1))
    store.forget(cell(0))
    store.forget(cell(0))
    assert (store.status(cell(0)).state, store.status(cell(1)).state) == ("missing", "done")
    assert not store.folder(cell(0)).exists()


# Checkpoints


def test_checkpoints_come_back_with_their_jobs(store: Store) -> None:
    jobs = [Job(cells=(cell(0), cell(1))), Job(cells=(cell(2),))]
    assert store.read_checkpoint(jobs[0]) is None
    assert store.unfinished_jobs() == []
    for job in jobs:
        store.write_checkpoint(job, {"step": len(job.cells), "weights": [torch.arange(3.0)], "none": None})
    assert {job.id: job for job in store.unfinished_jobs()} == {job.id: job for job in jobs}
    content = store.read_checkpoint(jobs[0])
    assert content is not None
    assert content["step"] == 2
    assert torch.equal(content["weights"][0], torch.arange(3.0))
    store.remove_checkpoint(jobs[0])
    store.remove_checkpoint(jobs[0])
    assert store.unfinished_jobs() == [jobs[1]]


class _Code:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_no_code_of_a_checkpoint_is_run(store: Store, tmp_path: Path) -> None:
    job = Job(cells=(cell(),))
    store.write_checkpoint(job, {"evil": _Code(tmp_path / "made")})
    with pytest.raises(DamageError, match="cannot be read without running code") as refused:
        store.read_checkpoint(job)
    assert isinstance(refused.value.__cause__, pickle.UnpicklingError)
    assert "eights" in str(refused.value.__cause__)
    assert store.unfinished_jobs() == []
    assert not (tmp_path / "made").exists()


# Plans


def plan(name: str, *cells: Cell) -> Plan:
    planned = [PlannedCell(cell=one, label="bc", rows={"bc-all": "bc-all"}) for one in cells]
    return Plan(suite=name, description="", cells=planned)


def test_plans_come_back_by_name_and_replace_each_other(store: Store) -> None:
    store.write_plan(plan("b", cell(0)))
    store.write_plan(plan("a", cell(1)))
    store.write_plan(plan("b", cell(2)))
    assert store.plans() == [plan("a", cell(1)), plan("b", cell(2))]


def test_a_folder_without_results_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no results folder .* makes one"):
        Store.existing(tmp_path / "absent")
    with pytest.raises(UserError, match="holds no results of a suite"):
        Store.existing(store.root)
    below = Store(store.root / "below")
    below.prepare()
    below.write_plan(plan("b", cell()))
    with pytest.raises(
        UserError, match=rf"holds no results of a suite; .* below it: {re.escape(str(store.root))}/below$"
    ):
        Store.existing(store.root)
    store.write_plan(plan("a", cell()))
    assert Store.existing(store.root).plans() == [plan("a", cell())]


@pytest.mark.parametrize("text", ["", "{}", "[1", '{"suite": "x"}'])
def test_a_damaged_plan_is_named(store: Store, text: str) -> None:
    path = store.root / "suites" / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"x\.json: damaged \(it is"):
        store.plans()


# Damage


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


@pytest.mark.parametrize("name", [*EVERYTHING, "status.json"])
@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "removed", "unreadable"])
def test_a_damaged_file_makes_the_cell_damaged_and_the_others_stay(store: Store, name: str, how: str) -> None:
    for seed in (0, 1):
        frame = pd.DataFrame({"step": [3], "cost": [1.0]})
        arrays = {"mean": np.arange(3.0)}
        store.write_results(cell(seed), {}, frame, frame, {"bc": {"w": torch.ones(2)}}, arrays, frame)
    path = store.folder(cell(0)) / name
    if how == "flipped":
        flip(path, 8 * (path.stat().st_size // 2))
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    if how == "unreadable":
        path.mkdir()
    thorough = Store(store.root, EVERYTHING)
    status = thorough.status(cell(0))
    assert status.state == "damaged"
    assert status.brief.startswith(f"{path}: damaged (")
    assert "run its suite again" in status.brief
    assert thorough.status(cell(1)).state == "done"
    count, damaged = store.verify()
    assert count == 14 or name == "status.json"
    assert [line.partition(": ")[0] for line in damaged] == [str(path)]
    quick = Store(store.root).status(cell(0)).state  # looks at sizes only
    assert quick == ("done" if how == "flipped" and name != "status.json" else "damaged")
    if name == "status.json":
        return
    read = {"cell": store.record, "policy": store.policies}.get(path.stem) or getattr(store, path.stem)
    with pytest.raises(DamageError, match=str(path)):
        read(cell(0))


def test_any_bit_of_a_status_or_a_plan_that_flips_shows(store: Store) -> None:
    write_results(store, cell())
    store.write_plan(plan("a", cell()))
    for path, right in (
        (store.folder(cell()) / "status.json", lambda: store.status(cell()) == Status("done")),
        (store.root / "suites" / "a.json", lambda: store.plans() == [plan("a", cell())]),
    ):
        whole = path.read_bytes()
        for place in random.Random(0).sample(range(8 * len(whole)), 100):
            flip(path, place)
            try:
                seen = not right()
            except DamageError:
                seen = True
            assert seen, place
            path.write_bytes(whole)


def test_the_results_of_another_cell_are_no_results(store: Store) -> None:
    write_results(store, cell(0))
    store.folder(cell(0)).rename(store.folder(cell(1)))
    assert f"it is that of cell {cell(0).hash}" in store.status(cell(1)).brief


def test_results_without_seals_are_read_and_broken_ones_are_damaged(store: Store) -> None:
    """As versions up to 0.9 wrote them."""
    for seed in (0, 1):
        write_results(store, cell(seed))
        status = {"state": "done", "reason": "", "warnings": {}}
        (store.folder(cell(seed)) / "status.json").write_text(json.dumps(status))
    (store.folder(cell(1)) / "episodes.parquet").write_bytes(b"PAR1 and so on")
    thorough = Store(store.root, EVERYTHING)
    assert thorough.status(cell(0)) == Status("done")
    assert thorough.episodes(cell(0))["cost"].tolist() == [1.0]
    assert thorough.status(cell(1)).state == "damaged"


def test_a_damaged_plan_is_left_out_with_a_note(store: Store) -> None:
    notes: list[str] = []
    store.note = notes.append
    for name in ("a", "b", "c"):
        store.write_plan(plan(name, cell()))
    suites = store.root / "suites"
    (suites / "a.json").write_bytes((suites / "a.json").read_bytes().replace(b"bc-all", b"bc-bll", 1))
    (suites / "c.json").rename(suites / "d.json")
    assert store.plans() == [plan("b", cell())]
    assert [note.partition(": ")[0] for note in notes] == [str(suites / "a.json"), str(suites / "d.json")]
    assert "run its suite again" in notes[0]


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "foreign", "another job's", "of another version"])
def test_a_damaged_checkpoint_is_set_aside_and_the_others_stay(store: Store, how: str) -> None:
    notes: list[str] = []
    store.note = notes.append
    jobs = [Job(cells=(cell(seed),)) for seed in (0, 1)]
    for job in jobs:
        store.write_checkpoint(job, {"weights": torch.arange(300.0)})
    path = store.checkpoint_path(jobs[0])
    if how == "flipped":
        flip(path, 8 * (path.stat().st_size // 2))
    elif how == "another job's":
        path.write_bytes(store.checkpoint_path(jobs[1]).read_bytes())
    elif how == "of another version":
        checkpoint.save(path, {"job": "{}"})
    else:
        content = {"cut": path.read_bytes()[:-100], "empty": b"", "foreign": b"PK\x03\x04 and so on"}[how]
        path.write_bytes(content)
    content = path.read_bytes()
    assert store.unfinished_jobs() == jobs[1:]
    assert store.read_checkpoint(jobs[0]) is None
    kept = path.with_name(f"{path.name}.damaged")
    assert kept.read_bytes() == content
    (note,) = notes
    assert note.startswith(f"{path}: damaged (")
    assert kept.name in note
    path.write_bytes(b"")  # once more
    assert store.unfinished_jobs() == jobs[1:]
    assert kept.read_bytes() == content


def test_any_bit_of_a_checkpoint_that_flips_shows(store: Store) -> None:
    job = Job(cells=(cell(),))
    store.write_checkpoint(job, {"weights": torch.arange(300.0)})
    path = store.checkpoint_path(job)
    whole = path.read_bytes()
    for place in [*random.Random(0).sample(range(8 * len(whole)), 100), 8 * len(whole) - 1]:
        flip(path, place)
        with pytest.raises(DamageError):
            Store(store.root).read_checkpoint(job)
        path.write_bytes(whole)
    assert Store(store.root).read_checkpoint(job) is not None


def test_a_checkpoint_without_a_seal_is_read_and_a_broken_one_is_damaged(store: Store) -> None:
    job = Job(cells=(cell(),))
    path = store.checkpoint_path(job)
    torch.save({"job": job.model_dump_json(), "weights": torch.arange(300.0)}, path)
    assert store.unfinished_jobs() == [job]
    whole = path.read_bytes()
    flip(path, 8 * whole.index(np.float32(77).tobytes()))
    with pytest.raises(DamageError, match="CRC-32"):
        Store(store.root).read_checkpoint(job)


# The disk's faults


def test_a_folder_that_cannot_be_synced_is_written_all_the_same(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def picky(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", picky)
    write_results(store, cell())
    assert store.status(cell()).state == "done"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
def test_what_the_disk_refuses_is_said_with_its_path(
    store: Store, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    job = Job(cells=(cell(),))

    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    for path, write in (
        (store.root / "suites" / "a.json", lambda: store.write_plan(plan("a", cell()))),
        (store.folder(cell()) / "status.json", lambda: store.set_status(cell(), Status("running"))),
        (store.folder(cell()) / "episodes.parquet", lambda: write_results(store, cell())),
        (store.checkpoint_path(job), lambda: store.write_checkpoint(job, {})),
    ):
        with pytest.raises(ResultsError) as refused:
            write()
        assert str(refused.value) == f"cannot write results: {os.strerror(number)}: {path}"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_disk_that_fills_up_while_a_checkpoint_is_written(store: Store) -> None:
    job = Job(cells=(cell(),))
    store.write_checkpoint(job, {"step": 1})
    (store.root / "jobs" / f".{store.checkpoint_path(job).name}.{processes.name()}.tmp").symlink_to("/dev/full")
    with pytest.raises(ResultsError, match=f"No space left on device: {store.checkpoint_path(job)}"):
        store.write_checkpoint(job, {"weights": torch.arange(1e6)})
    kept = store.read_checkpoint(job)
    assert kept is not None
    assert kept["step"] == 1


# Diagnostics


def test_diagnostics_are_kept_and_there_are_none_where_nothing_is_held_out(store: Store) -> None:
    write_results(store, cell(0))
    assert store.diagnostics(cell(0)).columns.tolist() == list(DIAGNOSTICS)
    assert store.diagnostics(cell(0)).empty
    assert not (store.folder(cell(0)) / "diagnostics.parquet").exists()
    frame = pd.DataFrame({"step": [3, 3], "policy": ["", "bc"], "metric": ["kl", "x"], "value": [np.nan, np.inf]})
    store.write_results(cell(1), {}, frame, frame, {"bc": {"weights": torch.ones(2)}}, {}, frame)
    pd.testing.assert_frame_equal(store.diagnostics(cell(1)), frame)
