"""An archive says what the results folder said, in the same bytes every time, and is never half an archive."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from running import suite_plan

from harness.archive import Archive, open_results, thinned, write_archive
from harness.errors import ResultsError, UserError
from harness.plan import Plan
from harness.report.leaderboard import make_leaderboard, to_json, to_markdown
from harness.store import DIAGNOSTICS, Results, Status, Store
from harness.suite import Origin

SUITE = """
name: made-up
tasks: [BallRun, CarRun]
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


def finish(folder: Path, plan: Plan, *indices: int, seed: int = 0) -> Store:
    """A results folder with the plan, and results of its cells of these indices, or of all, drawn from a seed."""
    store = Store(folder)
    store.prepare()
    store.write_plan(plan)
    for index in indices or range(len(plan.cells)):
        planned = plan.cells[index]
        draws = np.random.default_rng([seed, index])
        rows = [
            {"step": step, "policy": policy, "cost_limit": float("nan"), "episode": episode, "seed": 2**40 + episode}
            | {"episode_return": draws.normal() * 1e3 / 3, "cost": draws.uniform(0, 30), "length": 9}
            for step in (50, 100)
            for policy in planned.rows
            for episode in range(3)
        ]
        curve = pd.DataFrame({"step": range(1, 101), f"{planned.cell.algorithm}_loss": draws.normal(size=100)})
        record = {
            "dataset": {"sha256": "0"},
            "group": [planned.cell.hash],
            "training_seconds": 0.1 + index,
            "versions": {"torch": "2"},
        }
        weights = {"p": {"w": torch.zeros(1)}}
        store.write_results(planned.cell, record, pd.DataFrame(rows), curve, weights, {"mean": np.zeros(2)})
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, plan: Plan) -> Store:
    """All but one cell, which failed, and one, which is not there; only to read."""
    store = finish(tmp_path_factory.mktemp("runs"), plan, *range(2, len(plan.cells)))
    store.set_status(plan.cells[0].cell, Status("failed", "Traceback\n File /home/me/x.py\nValueError: no"))
    store.set_status(plan.cells[3].cell, Status("done", warnings={"nothing is learnt": 60}))
    rows = [(100, "bc-all", 10.0, "error", 1 / 3), (100, "", np.nan, "fqe_cost", np.inf)]
    pd.DataFrame(rows, columns=list(DIAGNOSTICS)).to_parquet(store.folder(plan.cells[2].cell) / "diagnostics.parquet")
    store.set_status(plan.cells[2].cell, Status("done"))
    return store


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def states(results: Results, plan: Plan) -> list[str]:
    return [results.status(planned.cell).state for planned in plan.cells]


# What is read is what was stored


def test_an_archive_says_what_the_folder_says(store: Store, plan: Plan, tmp_path: Path) -> None:
    archived = write_archive([store], None, tmp_path / "archive")
    archive = open_results(tmp_path / "archive")
    assert isinstance(archive, Archive)
    assert archive.plans() == [plan] == store.plans()
    assert states(archive, plan) == states(store, plan) == ["failed", "missing"] + ["done"] * (len(plan.cells) - 2)
    assert archive.status(plan.cells[0].cell) == Status("failed", "ValueError: no")
    for planned in plan.cells[2:]:
        cell = planned.cell
        assert archive.status(cell) == store.status(cell)
        assert archive.record(cell) == store.record(cell)
        pd.testing.assert_frame_equal(archive.episodes(cell), store.episodes(cell), check_exact=True)
        pd.testing.assert_frame_equal(archive.diagnostics(cell), store.diagnostics(cell), check_exact=True)
        pd.testing.assert_frame_equal(archive.training(cell), thinned(store.training(cell)))
    boards = [make_leaderboard(results, plan) for results in (store, archive)]
    assert boards[0] == boards[1]
    assert to_markdown(boards[:1]) == to_markdown(boards[1:])
    assert to_json(boards[:1]) == to_json(boards[1:])
    files = content(tmp_path / "archive")
    assert (archived.cells, archived.done, archived.kept) == (len(plan.cells), len(plan.cells) - 2, 0)
    assert (archived.files, archived.size) == (len(files), sum(map(len, files.values())))


def test_nothing_of_one_machine_and_no_policy_is_in_it(plan: Plan, tmp_path: Path) -> None:
    own = plan.cells[2].cell.data.model_copy(update={"source": "own", "file": "/home/me/my.hdf5", "sha256": "1"})
    cell = plan.cells[2].cell.model_copy(update={"data": own})
    cell = type(cell).model_validate(cell.model_dump())
    origin = Origin(
        name="own.yaml", text="files: {BallRun: /home/me/my.hdf5}", overrides=("data.files.CarRun=/home/me/my.hdf5",)
    )
    cells = [plan.cells[2].model_copy(update={"cell": cell})]
    plan = Plan(suite="own", description="", cells=cells, origin=origin)
    write_archive([finish(tmp_path / "own", plan)], None, tmp_path / "archive")
    (read,) = Archive(tmp_path / "archive").plans()
    assert read.origin is not None
    assert read.origin.text == "files: {BallRun: my.hdf5}"
    assert read.origin.command == "lspc-bench run own.yaml --set data.files.CarRun=my.hdf5"
    assert read.cells[0].cell.data.file == "my.hdf5"
    assert read.cells[0].cell.hash == cell.hash
    assert Archive(tmp_path / "archive").status(cell).state == "done"
    names = {name.split("-")[0] for name in content(tmp_path / "archive")}
    assert names == {"archive.json", "plan", "cells", "episodes", "training"}


def test_the_same_results_make_the_same_bytes(store: Store, plan: Plan, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_archive([store], None, tmp_path / name)
    write_archive([store], None, tmp_path / "a")  # over itself
    write_archive([Archive(tmp_path / "a")], None, tmp_path / "c")  # an archive of an archive
    first = content(tmp_path / "a")
    assert len(first) == 6
    assert first == content(tmp_path / "b") == content(tmp_path / "c")


@given(
    steps=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    points=st.integers(1, 12),
    data=st.data(),
)
def test_thinned_metrics_are_means_since_the_point_before(steps: list[int], points: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.floats(-100, 100), min_size=len(steps), max_size=len(steps)))
    ends = np.cumsum(steps)
    thin = thinned(pd.DataFrame({"step": ends, "loss": values}), points)
    assert len(thin) == min(points, len(steps))
    assert thin["step"].iloc[-1] == ends[-1]
    every = np.repeat(values, steps)  # the metric at every single step
    starts = [0, *thin["step"].tolist()[:-1]]
    expected = [every[start:end].mean() for start, end in zip(starts, thin["step"], strict=True)]
    np.testing.assert_allclose(thin["loss"], expected, atol=1e-4)
    assert thin["loss"].dtype == np.float32


# An archive that is there


def test_results_of_several_machines_come_together(plan: Plan, tmp_path: Path) -> None:
    """What only the old archive has finished is kept; what both have is the new one's; what the plan lost goes."""
    lesser = Plan(suite=plan.suite, description="", cells=plan.cells[:1] + plan.cells[2:])
    here = finish(tmp_path / "here", plan, 0, 1, 2, seed=1)
    there = finish(tmp_path / "there", lesser, 1, 2, seed=2)
    there.set_status(plan.cells[0].cell, Status("failed", "no"))
    there.set_status(plan.cells[4].cell, Status("diverged", "loss"))
    write_archive([here], None, tmp_path / "archive")
    archived = write_archive([there], None, tmp_path / "archive")
    archive = Archive(tmp_path / "archive")
    assert states(archive, plan) == ["done", "missing", "done", "done", "diverged"] + ["missing"] * (
        len(plan.cells) - 5
    )
    assert (archived.done, archived.kept, archived.dropped) == (3, 1, 1)
    for index, origin in ((0, here), (2, there), (3, there)):
        cell = plan.cells[index].cell
        pd.testing.assert_frame_equal(archive.episodes(cell), origin.episodes(cell))
        pd.testing.assert_frame_equal(archive.training(cell), thinned(origin.training(cell)))
    assert archive.plans() == [lesser]
    assert len(content(tmp_path / "archive")) == 5  # nothing of the old one is left over


def test_parts_of_a_suite_come_together(plan: Plan, store: Store, tmp_path: Path) -> None:
    """One task each, as a suite with ``--set tasks=[...]`` leaves them; of a cell in both, the first counts.

    No part's command makes the others' cells, so it is not that of the whole.
    """
    tasks = list(plan.tasks)
    parts = [
        Plan(
            suite=plan.suite,
            description="",
            cells=[one for one in plan.cells if one.cell.task == task],
            origin=Origin(name="made-up", text=SUITE, overrides=(f"tasks=[{task}]",)),
        )
        for task in tasks
    ]
    stores = [
        finish(tmp_path / task, part, seed=seed) for seed, (task, part) in enumerate(zip(tasks, parts, strict=True))
    ]
    archived = write_archive([*stores, store], None, tmp_path / "archive")
    archive = Archive(tmp_path / "archive")
    cells = [*parts[0].cells, *parts[1].cells]
    assert archive.plans() == [Plan(suite=plan.suite, description="", cells=cells, origin=plan.origin)]
    assert (archived.cells, archived.done, archived.kept) == (len(plan.cells), len(plan.cells), 0)
    for origin, part in zip(stores, parts, strict=True):
        for planned in part.cells:
            pd.testing.assert_frame_equal(archive.episodes(planned.cell), origin.episodes(planned.cell))
    board = to_json([make_leaderboard(archive, archive.plans()[0])])
    assert write_archive(stores, None, tmp_path / "archive").kept == 0
    assert Archive(tmp_path / "archive").plans()[0].origin is None
    assert to_json([make_leaderboard(Archive(tmp_path / "archive"), archive.plans()[0])]) == board


def test_results_with_other_settings_do_not_go_together(plan: Plan, tmp_path: Path) -> None:
    first = finish(tmp_path / "first", plan, 0)
    cell = plan.cells[0].cell
    changed = type(cell).model_validate({**cell.model_dump(), "hyperparameters": {**cell.hyperparameters, "steps": 7}})
    cells = [plan.cells[0].model_copy(update={"cell": changed})]
    second = finish(tmp_path / "second", Plan(suite=plan.suite, description="", cells=cells))
    message = rf"BallRun bc mode=all seed 0 has other settings .* \({changed.hash}\) .* \({cell.hash}\)"
    with pytest.raises(UserError, match=message):
        write_archive([first, second], None, tmp_path / "archive")


def test_a_new_archive_takes_the_old_ones_place_at_once(
    store: Store, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of its writes fails, there is the old archive, whole; after the last there is the new one."""
    root, other = tmp_path / "archive", finish(tmp_path / "other", plan, seed=9)
    write_archive([store], None, root)
    before = [Archive(root).episodes(planned.cell) for planned in plan.cells[2:]]
    fsync, writes = os.fsync, 0

    def counted(descriptor: int) -> None:
        nonlocal writes
        if writes == limit:
            raise OSError(28, "No space left")
        writes += 1
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", counted)
    for limit in range(0, 10, 2):  # noqa: B007 - read by the function above; every second is the folder's own
        writes = 0
        with pytest.raises(ResultsError, match=r"^cannot write results: No space left: .*/archive/"):
            write_archive([other], None, root)
        archive = Archive(root)
        assert archive.plans() == [plan]
        for planned, frame in zip(plan.cells[2:], before, strict=True):
            pd.testing.assert_frame_equal(archive.episodes(planned.cell), frame)
        assert archive.status(plan.cells[0].cell).state == "failed"
    monkeypatch.undo()
    write_archive([other], None, root)
    assert states(Archive(root), plan) == ["done"] * len(plan.cells)
    assert len(content(root)) == 5


def test_what_else_lies_in_the_folder_stays(store: Store, plan: Plan, tmp_path: Path) -> None:
    root = tmp_path / "archive"
    root.mkdir()
    (root / "README.md").write_text("ours")
    write_archive([store], None, root)
    write_archive([store], None, root)
    assert (root / "README.md").read_text() == "ours"


# What is refused


def test_places_that_are_something_else_are_refused(store: Store, plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a results folder; an archive needs a folder of its own"):
        write_archive([store], None, store.root)
    write_archive([store], None, tmp_path / "archive")
    other = finish(tmp_path / "other", Plan(suite="other", description="", cells=plan.cells[:1]))
    with pytest.raises(UserError, match="is an archive of suite made-up; other needs a folder of its own"):
        write_archive([other], None, tmp_path / "archive")
    with pytest.raises(UserError, match="these are results of different suites, made-up and other"):
        write_archive([store, other], None, tmp_path / "new")
    other.forget(plan.cells[0].cell)
    with pytest.raises(UserError, match="nothing of suite other is done in"):
        write_archive([other], None, tmp_path / "new")
    with pytest.raises(UserError, match=r"no suite 'othr' ran in .* Did you mean 'other'"):
        write_archive([other], "othr", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        write_archive([store], None, tmp_path / "file")
    with pytest.raises(UserError, match="no results folder"):
        open_results(tmp_path / "absent")


@pytest.mark.parametrize("name", ["plan", "cells", "episodes", "training", "diagnostics"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "removed"])
def test_a_damaged_file_is_named(store: Store, plan: Plan, tmp_path: Path, name: str, damage: str) -> None:
    root = tmp_path / "archive"
    write_archive([store], None, root)
    (path,) = root.glob(f"{name}-*")
    whole = path.read_bytes()
    if damage == "removed":
        path.unlink()
    else:
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + (bytes([whole[middle] ^ 1]) + whole[middle + 1 :]) * (damage == "flipped"))
    reason = "cannot be read, but the archive needs it" if damage == "removed" else "damaged: its SHA-256 is not"
    with pytest.raises(UserError, match=f"{path.name}: {reason}"):
        read_all(root)


def read_all(root: Path) -> None:
    archive = Archive(root)
    (plan,) = archive.plans()
    for planned in plan.cells:
        if archive.status(planned.cell).state == "done":
            for read in (archive.record, archive.episodes, archive.training, archive.diagnostics):
                read(planned.cell)


@pytest.mark.parametrize(
    "text",
    ["", "[", "{}", '{"suite": "x", "files": {"plan": "../x"}}', '{"archive_version": 2, "suite": "x", "files": {}}'],
)
def test_a_damaged_list_of_files_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "archive.json").write_text(text)
    with pytest.raises(UserError, match=r"archive\.json: not an archive that this version can read"):
        open_results(tmp_path)


def test_files_that_do_not_belong_together_are_told(store: Store, plan: Plan, tmp_path: Path) -> None:
    """Whole files, but of different archives."""
    root, other = tmp_path / "archive", tmp_path / "other"
    write_archive([store], None, root)
    lesser = Plan(suite=plan.suite, description="", cells=plan.cells[3:])
    write_archive([finish(tmp_path / "lesser", lesser)], None, other)

    def mixed(*names: str) -> None:
        manifest = json.loads((root / "archive.json").read_text())
        theirs = json.loads((other / "archive.json").read_text())["files"]
        for name in names:
            (path,) = other.glob(f"{name}-*")
            (root / path.name).write_bytes(path.read_bytes())
            manifest["files"][name] = theirs[name]
        (root / "archive.json").write_text(json.dumps(manifest))

    mixed("episodes")
    with pytest.raises(UserError, match=r"episodes-.*: no episodes of BallRun bc seed 0 limit 10 \("):
        read_all(root)
    mixed("plan")
    with pytest.raises(UserError, match="its cells are not those of its plan"):
        read_all(root)
    del (manifest := json.loads((root / "archive.json").read_text()))["files"]["cells"]
    (root / "archive.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"archive\.json: names no file of cells"):
        read_all(root)


def test_what_wants_policies_or_writes_results_refuses_an_archive(store: Store, plan: Plan, tmp_path: Path) -> None:
    write_archive([store], None, tmp_path / "archive")
    with pytest.raises(UserError, match="is an archive: it holds no policies, and no results go there"):
        Store.existing(tmp_path / "archive")
