"""Cells and their hashes; the jobs in which they train."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from running import suite_plan

from harness.data.dataset import LABELS
from harness.data.filters import Filters
from harness.plan import Cell, CellData, make_jobs
from harness.planning import make_plan
from harness.suite import FQE, Evaluation, read_suite
from harness.tasks import all_tasks, find_task

# Hashes


CELLS = st.builds(
    Cell,
    schema_version=st.integers(1, 3),
    task=st.sampled_from(sorted(all_tasks())),
    algorithm=st.sampled_from(["lspc", "bc"]),
    algorithm_version=st.integers(1, 3),
    hyperparameters=st.dictionaries(
        st.text(max_size=5),
        st.integers() | st.floats(allow_nan=False) | st.text() | st.lists(st.integers()),
        max_size=3,
    ),
    seed=st.integers(0),
    cost_limit=st.none() | st.floats(0, 1e6),
    evaluation_limits=st.lists(st.floats(0, 1e6), max_size=3).map(tuple),
    told_limit=st.booleans(),
    evaluation=st.builds(
        Evaluation,
        every=st.none() | st.integers(1),
        episodes=st.integers(1, 1000),
        final=st.integers(1, 1000),
        fqe=st.none() | st.builds(FQE, steps=st.integers(1, 3) | st.just(2000)),
    ),
    own_task=st.none() | st.just(replace(find_task("BallRun"), id="Mine", family="own", environment="Mine-v0")),
    data=st.builds(
        CellData,
        source=st.sampled_from(["dsrl", "demo", "own"]),
        file=st.none() | st.text(),
        sha256=st.none() | st.text(),
        label=st.none() | st.sampled_from(list(LABELS.values())),
        filters=st.builds(Filters, noise=st.none() | st.floats(0.1, 1), filter_seed=st.integers(0, 9)),
    ),
)


def replaced(cell: Cell, field: str, value: Any) -> Cell:
    """A cell with another value in one field; ``model_copy`` would copy the hash, too."""
    return Cell(**{name: getattr(cell, name) for name in Cell.model_fields} | {field: value})


def _named_as(cell: Cell) -> dict[str, str | None]:
    return {name: getattr(cell.data, name) for name in ("file", "label")}


@given(CELLS, CELLS)
def test_every_field_changes_the_hash(one: Cell, other: Cell) -> None:
    for field in Cell.model_fields:
        changed = replaced(one, field, getattr(other, field))
        # As JSON, where 1 is not 1.0 and 0.0 is not -0.0: what equals for Python is no other experiment here.
        judged = field == "evaluation_limits" and not one.told_limit
        if field == "data":  # where a file lies, and what it is called, does not matter
            changed = replaced(one, field, other.data.model_copy(update=_named_as(one)))
            moved = replaced(one, field, one.data.model_copy(update={"file": "elsewhere", "label": "otherwise"}))
            assert (moved.hash, moved.group) == (one.hash, one.group)
        assert (changed.hash == one.hash) == (judged or changed.model_dump_json() == one.model_dump_json())
        alike = field in ("seed", "cost_limit", "evaluation_limits")  # these may differ within a job
        assert (changed.group == one.group) == (alike or changed.hash == one.hash)


@given(CELLS)
def test_a_cell_that_was_stored_has_the_same_hash(cell: Cell) -> None:
    again = Cell.model_validate_json(cell.model_dump_json())
    assert (again.hash, again.group) == (cell.hash, cell.group)
    backwards = dict(reversed(cell.hyperparameters.items()))
    assert replaced(cell, "hyperparameters", backwards).hash == cell.hash


def test_hashes_are_the_same_in_every_process() -> None:
    code = (
        "from harness.planning import make_plan; from harness.suite import read_suite; "
        "print([cell.cell.hash for cell in make_plan(read_suite('demo')).cells])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{[planned.cell.hash for planned in make_plan(read_suite('demo')).cells]}\n"}


# Jobs


def test_cells_that_differ_in_seed_and_limit_alone_train_side_by_side(tmp_path: Path) -> None:
    text = "name: mine\ntasks: [BallRun, CarRun]\nseeds: 3\nalgorithms: {lspc: , bc: {grid: {mode: [all, safe]}}}"
    found = suite_plan(tmp_path, text)
    jobs = make_jobs(planned.cell for planned in found.cells)
    assert [len(job.cells) for job in jobs] == [3, 3, 9] * 2
    assert [cell for job in jobs for cell in job.cells] == [planned.cell for planned in found.cells]
    assert len({job.id for job in jobs}) == 6
    assert jobs[2].describe() == "BallRun bc (bc-safe), 9 replicas"


def test_a_plugin_that_cannot_be_stacked_has_a_job_a_cell(plugins: Path, tmp_path: Path) -> None:
    found = suite_plan(tmp_path, "name: mine\ntasks: [BallRun]\nseeds: 3\nalgorithms: [toy, toy-single]")
    jobs = make_jobs(planned.cell for planned in found.cells)
    assert [(job.algorithm, len(job.cells)) for job in jobs] == [("toy", 3)] + [("toy-single", 1)] * 3
