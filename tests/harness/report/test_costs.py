"""What methods cost, from records of this version and of older ones."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from click.testing import CliRunner
from running import suite_plan

from harness.cli import main
from harness.plan import Plan
from harness.report.costs import HEADER, Cost, as_rows, costs
from harness.store import Results, Status, Store

SUITE = """
name: some
data: {source: demo}
tasks: [BallRun]
seeds: 4
cost_limits: [10]
algorithms:
  lspc: {hyperparameters: {steps: 100}}
  bc: {hyperparameters: {steps: 100}}
evaluation: {final: 1}
"""
OLD = {"device": "cpu", "training_seconds": 2.0}


def results(plan: Plan) -> Results:
    """LSPC's seeds trained in two groups, of which one is of an older version; of BC three are done, none is timed."""
    lspc, bc = ([one.cell for one in plan.cells if one.label == label] for label in ("lspc", "bc"))
    groups = [lspc[:1], lspc[1:3], lspc[3:], bc]

    def record(cell: Any) -> dict[str, Any]:
        number = next(index for index, group in enumerate(groups) if cell in group)
        found = {**OLD, "group": [one.hash for one in groups[number]]}
        if number in (0, 1):
            found |= {
                "training_seconds": 10.0 * (1 + number),
                "updates_per_second": 10.0 / (1 + number),
                "peak_memory": 1_000_000_000 * (1 + number),
                "milliseconds_an_action": {"lspc-o": {"1": 0.5, "10": 0.1 * (1 + number)}},
            }
        return found

    def status(cell: Any) -> Status:
        return Status("done" if cell != bc[3] else "trained")

    return cast(Results, SimpleNamespace(root=Path(), record=record, status=status, plans=lambda: [plan]))


def test_it_is_the_median_of_the_groups(tmp_path: Path) -> None:
    found = {cost.row: cost for cost in costs(results(suite_plan(tmp_path, SUITE)), suite_plan(tmp_path, SUITE))}
    assert found.keys() == {"lspc-s", "lspc-o", "bc-all"}
    ours = Cost("BallRun", "lspc-o", "cpu", 1, 10.0, 7.5, 1.5e9, 0.5, found["lspc-o"].of_ten)
    assert found["lspc-o"] == ours
    assert as_rows([ours]) == [["BallRun", "lspc-o", "cpu", "1", "10.0", "7.5", "1.50", "0.500", "0.150"]]
    assert found["lspc-s"].alone is None
    assert as_rows([found["bc-all"]]) == [["BallRun", "bc-all", "cpu", "4", "2.0", *["-"] * 4]]


def test_status_prints_them(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    store.prepare()
    store.write_plan(suite_plan(tmp_path, SUITE))
    done = CliRunner().invoke(main, ["status", str(store.root), "--costs"])
    assert done.exit_code == 0
    assert [name for name in HEADER if name not in done.stdout] == []
    for other in ("--verify", "--commands=cells"):
        refused = CliRunner().invoke(main, ["status", str(store.root), "--costs", other])
        assert refused.exit_code == 2
        assert "--costs" in refused.stderr
