"""The table of diagnostics: means over runs, then over tasks, of the last step alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from running import suite_plan

from harness.plan import Plan
from harness.report.diagnostics import (
    LEGEND,
    diagnostics_section,
    diagnostics_table,
    final_diagnostics,
    held_out_curves,
    held_out_figures,
)
from harness.store import Status, Store

SUITE = """
name: made-up
tasks: [BallRun, CarRun]
algorithms: [lspc, bc]
seeds: 2
data: {source: demo, holdout: 0.1}
"""
# Of BallRun and of CarRun, with two seeds each.
KL = {"OfflineBallRun-v0": (1.0, 3.0), "OfflineCarRun-v0": (5.0, np.nan)}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return suite_plan(tmp_path, SUITE)


@pytest.fixture
def store(tmp_path: Path, plan: Plan) -> Store:
    """LSPC's cells have all figures, bc's of BallRun none yet."""
    store = Store(tmp_path / "runs")
    store.root.mkdir()
    for planned in plan.cells:
        cell = planned.cell
        if cell.algorithm == "bc" and cell.task == "OfflineBallRun-v0":
            store.set_status(cell, Status("failed", "on purpose"))
            continue
        rows = [(50, "", "kl", 99.0), (50, "lspc-s", "action_error", 99.0)]
        if cell.algorithm == "lspc":
            rows += [(100, "", "kl", KL[cell.task][cell.seed]), (100, "lspc-s", "action_error", 0.25)]
            rows += [(100, "lspc-o", "action_error", 0.5), (100, "", "qc_auc", np.nan)]
        else:
            rows = [(100, "bc-all", "action_error", np.inf)]
        frame = pd.DataFrame(rows, columns=["step", "policy", "metric", "value"])
        store.write_results(cell, {}, frame, frame, {"p": {"w": torch.zeros(1)}}, {}, frame)
    return store


def test_means_are_over_runs_then_over_tasks(store: Store, plan: Plan) -> None:
    means = final_diagnostics(held_out_figures(store, plan))
    assert means["kl"] == {"lspc-s": (2 + 5) / 2, "lspc-o": (2 + 5) / 2}
    assert means["action_error"] == {"lspc-s": 0.25, "lspc-o": 0.5, "bc-all": np.inf}
    assert np.isnan(means["qc_auc"]["lspc-s"])


def test_the_section_names_every_row_that_has_a_figure(store: Store, plan: Plan) -> None:
    lines = diagnostics_section(store, plan).splitlines()
    assert lines[1] == "## Held-out data: made-up"
    cells = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines if "|" in line
    }
    assert cells["metric"] == ["lspc-s", "lspc-o", "bc-all"]
    assert cells["kl"] == ["3.500", "3.500", "-"]
    assert cells["action_error"] == ["0.250", "0.500", "inf"]
    assert cells["qc_auc"] == ["-", "-", "-"]
    assert LEGEND in lines


def test_curves_are_of_runs_at_each_share_of_training(store: Store, plan: Plan) -> None:
    curves = held_out_curves(held_out_figures(store, plan))
    found = {(one["task"], one["row"], one["metric"]): one for one in curves}
    ball, car = "OfflineBallRun-v0", "OfflineCarRun-v0"
    assert found[ball, "lspc-o", "kl"] == {
        "row": "lspc-o",
        "task": ball,
        "metric": "kl",
        "share": [0.5, 1.0],
        "mean": [99.0, 2.0],
        "low": [99.0, 1.0],
        "high": [99.0, 3.0],
        "runs": [2, 2],
    }
    assert (found[car, "lspc-s", "kl"]["mean"], found[car, "lspc-s", "kl"]["runs"]) == (
        [99.0, 5.0],
        [2, 1],
    )  # one is NaN
    assert not [key for key in found if key[2] == "qc_auc" or key[1] == "bc-all"]  # NaN, infinity


def test_where_nothing_is_held_out_there_is_no_section(store: Store, plan: Plan) -> None:
    for path in store.root.glob("*/diagnostics.parquet"):
        path.unlink()
    assert diagnostics_section(store, plan) == ""
    figures = held_out_figures(store, plan)
    assert (diagnostics_table(figures), held_out_curves(figures)) == ((["metric"], []), [])
