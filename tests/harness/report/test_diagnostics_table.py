"""The table of diagnostics: means over runs, then over tasks, of the last step alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from running import suite_plan

from harness.plan import Plan
from harness.report.diagnostics import LEGEND, diagnostics_section, final_diagnostics
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
    means = final_diagnostics(store, plan)
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


def test_where_nothing_is_held_out_there_is_no_section(store: Store, plan: Plan) -> None:
    for path in store.root.glob("*/diagnostics.parquet"):
        path.unlink()
    assert diagnostics_section(store, plan) == ""
