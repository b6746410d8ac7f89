"""Published numbers beside ours: what may be compared, and what is said of the rest."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from latex_check import check_latex
from made_up import MadeUp

from harness.errors import UserError
from harness.plan import Cell
from harness.planning import make_plan
from harness.report.published import (
    FORMATS,
    Comparison,
    as_records,
    compare,
    find_sources,
    numbers,
    sources,
)
from harness.store import Status
from harness.suite import SuiteFile
from harness.tasks import all_tasks

SUITE = """
name: compared
tasks: [BallRun, CarRun]
algorithms:
  lspc:
  lspc-live: {algorithm: lspc, hyperparameters: {cost_value_gradient: live}}
  bc: {grid: {mode: [all, safe]}}
  cdt:
seeds: 3
"""


class Given(MadeUp):
    """Every run reaches what is given for its policy and task, give or take a little from seed to seed."""

    def __init__(self, path: Path, text: str, reward: float, cost: float, missing: int | None = None) -> None:
        path.write_text(text)
        super().__init__(make_plan(SuiteFile(path)))
        self.reward, self.cost, self.missing = reward, cost, missing

    def status(self, cell: Cell) -> Status:
        return Status("missing" if cell.seed == self.missing else "done")

    def episodes(self, cell: Cell) -> pd.DataFrame:
        rows = next(one.rows for one in self.plan.cells if one.cell.hash == cell.hash)
        task, noise = cell.definition, (cell.seed - 1) / 100
        told = cell.evaluation_limits if cell.told_limit else (np.nan,)
        # A cost that is the same at every limit once it is normalised, or on average over the limits it is judged by.
        share = np.mean([1 / limit for limit in cell.evaluation_limits])
        return pd.DataFrame(
            [
                {"step": cell.hyperparameters["steps"], "policy": policy, "cost_limit": limit, "episode": 0, "seed": 0}
                | {
                    "length": 9,
                    "episode_return": task.min_episode_reward
                    + (self.reward + noise) * (task.max_episode_reward - task.min_episode_reward),
                    "cost": (self.cost + noise) * (limit if cell.told_limit else 1 / share),
                }
                for policy in rows
                for limit in told
            ]
        )


def compared(results: Given, source: str) -> dict[tuple[str, str, str], Comparison]:
    """By task, row and published name."""
    return {
        (results.plan.tasks[one.number.task].name, one.row or "", one.number.algorithm): one
        for one in compare(results, results.plan, find_sources([source]))
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "suite.yaml"


def test_under_the_same_protocol_numbers_agree_or_differ(path: Path) -> None:
    found = compared(Given(path, SUITE, 0.6, 5.08), "dsrl-table")  # what the table has of BC-All on BallRun
    same = found["BallRun", "bc-all", "BC-All"]
    assert (same.verdict, same.why, same.seeds, same.protocol) == ("agrees", (), 3, "dsrl")
    assert same.reward == pytest.approx(0.6)
    assert same.cost == pytest.approx(5.08)
    assert same.differences == pytest.approx((0, 0))
    safe = found["BallRun", "bc-safe", "BC-Safe"]
    assert safe.verdict == "differs"
    assert safe.why == ("their reward below our interval", "their cost below our interval")
    assert safe.differences == pytest.approx((0.6 - 0.27, 5.08 - 1.46))
    assert found["BallRun", "", "TraC"].verdict == "not comparable"
    assert found["BallRun", "cdt", "CDT"].verdict == "differs"  # an agent that is told its limit, one run for each


def test_rounding_in_print_is_no_difference(path: Path) -> None:
    found = compared(Given(path, SUITE, 0.6 + 0.014, 5.08 - 0.014), "dsrl-table")
    assert found["BallRun", "bc-all", "BC-All"].verdict == "agrees"
    found = compared(Given(path, SUITE, 0.6 + 0.016, 5.08), "dsrl-table")
    assert found["BallRun", "bc-all", "BC-All"].verdict == "differs"


def test_another_protocol_is_not_compared_and_has_no_difference(path: Path) -> None:
    one = compared(Given(path, SUITE, 0.6, 5.08), "fisor")["BallRun", "bc-all", "BC"]  # an alias
    assert (one.verdict, one.differences) == ("not comparable", None)
    assert one.why == ("protocol: theirs strict, ours dsrl",)
    strict = Given(path, SUITE + "cost_limits: {bullet: [5, 15]}\n", 0.6, 5.08)
    assert not any(why.startswith("protocol") for why in compared(strict, "fisor")["BallRun", "bc-all", "BC"].why)
    labels = compared(strict, "caps-t10")
    whys = {name: labels["BallRun", "cdt", f"CDT @limit {name}"] for name in ("5/10", "15/30", "30/60")}
    assert {name: one.verdict for name, one in whys.items()} == {
        **dict.fromkeys(("5/10", "15/30"), "differs"),
        "30/60": "not comparable",
    }
    assert whys["5/10"].protocol == "strict"
    assert whys["5/10"].cost == pytest.approx(5.08)


def test_limits_that_are_not_known_forbid_comparing() -> None:
    of_fisor = {all_tasks()[one.task].family: one.limits for one in numbers() if one.source.name == "fisor"}
    assert of_fisor == {"bullet": (5,), "navigation": (10,), "velocity": (10,), "metadrive": None}


def test_a_variant_is_no_published_method(path: Path) -> None:
    found = compared(Given(path, SUITE, 0.97, 0.13), "lspc")
    assert found["CarRun", "lspc-o [lspc]", "LSPC-O"].verdict == "agrees"
    live = found["CarRun", "lspc-o [lspc-live]", "LSPC-O"]
    assert live.verdict == "not comparable"
    assert live.why == ("settings: ours has another cost_value_gradient than published",)


NEWER = SUITE.replace("  cdt:\n", "  caps: {grid: {backbone: [iql, sac]}}\n  ccac:\n  fisor:\n  trac:\n")


def test_the_newer_baselines_find_their_numbers(path: Path) -> None:
    """Of CAPS by backbone, and only with as many heads as the number's."""
    results = Given(path, NEWER, 0.49, 0.91)
    tables = [compared(results, name) for name in ("caps-t3", "caps-t4")]
    for found, policy, name in zip(tables, ("caps-iql", "caps-sac"), ("CAPS(IQL)", "CAPS(SAC+BC)"), strict=True):
        assert {row for task, row, _ in found if task == "CarRun"} == {policy}
        assert found["CarRun", policy, f"{name} 2 heads"].verdict in ("agrees", "differs")
        for heads in (4, 8):
            assert found["CarRun", policy, f"{name} {heads} heads"].why == (
                "settings: ours has another heads than published",
            )
    more = Given(path, NEWER.replace("caps: {", "caps: {hyperparameters: {heads: 4}, "), 0.49, 0.91)
    assert compared(more, "caps-t3")["CarRun", "caps-iql", "CAPS(IQL) 4 heads"].verdict in ("agrees", "differs")
    assert compared(results, "dsrl-table")["CarRun", "trac", "TraC"].verdict in ("agrees", "differs")
    strict = Given(path, NEWER + "cost_limits: {bullet: [5]}\n", 0.49, 0.91)
    for source, row, name in (("fisor", "fisor", "FISOR"), ("carl", "ccac", "CCAC"), ("carl", "caps-iql", "CAPS")):
        assert compared(strict, source)["CarRun", row, name].verdict in ("agrees", "differs"), name


@pytest.mark.parametrize(
    ("change", "missing", "why"),
    [
        (("seeds: 3", "seeds: 3\ndata: {source: demo}"), None, "data: ours is demo data, not DSRL"),
        (("seeds: 3", "seeds: 3\ndata: {share: 0.5}"), None, "data: ours is DSRL, filtered: share 0.5"),
        (("seeds: 3", "seeds: 3\nsteps: 5000"), None, "training length: ours 5000 updates, 100000 as published"),
        (("bc: {", "bc: {hyperparameters: {batch_size: 8}, "), None, "settings: ours has another batch_size"),
        (("seeds: 3", "seeds: [1]"), None, "one seed: ours has no interval"),
        (("", ""), 2, "missing runs: ours has 6 of 9"),
    ],
)
def test_what_forbids_comparing(path: Path, change: tuple[str, str], missing: int | None, why: str) -> None:
    one = compared(Given(path, SUITE.replace(*change, 1), 0.6, 5.08, missing), "dsrl-table")[
        "BallRun", "bc-all", "BC-All"
    ]
    assert one.verdict == "not comparable"
    assert len(one.why) == 1
    assert one.why[0].startswith(why)


def test_no_runs_at_all(path: Path) -> None:
    one = compared(Given(path, SUITE.replace("seeds: 3", "seeds: [1]"), 0.6, 5.08, 1), "dsrl-table")
    assert one["BallRun", "bc-all", "BC-All"].why == ("missing runs: ours has none",)
    assert one["BallRun", "bc-all", "BC-All"].reward is None


def test_formats_say_the_same(path: Path) -> None:
    results = Given(path, SUITE, 0.6, 5.08)
    found = [one for one in compare(results, results.plan, find_sources(())) if one.row]
    suites: Any = [(results.plan, found)]
    records = as_records(found, results.plan)
    assert len(records) > 10
    (from_json,) = json.loads(FORMATS["json"](suites))
    assert from_json["comparisons"] == records
    assert set(from_json["sources"]) == {record["source"] for record in records}
    from_csv = list(csv.DictReader(io.StringIO(FORMATS["csv"](suites))))
    assert from_csv == [{key: "" if value is None else str(value) for key, value in one.items()} for one in records]
    page = FORMATS["markdown"](suites)
    (table,) = check_latex(FORMATS["latex"](suites))
    assert [row[-1] for row in table[1:]] == [record["verdict"] for record in records]
    assert page.count("| agrees ") == sum(record["verdict"] == "agrees" for record in records) > 0
    assert "No published number" in FORMATS["markdown"]([(results.plan, [])])


def test_the_files_hold_together() -> None:
    assert len(numbers()) == 1373 - 92 - 20 - 2  # less averages, other tasks, and what has no cost
    assert {one.source.name for one in numbers()} == set(sources())
    assert {one.protocol for one in sources().values()} >= {"dsrl", "a limit each, in the algorithm's name"}
    with pytest.raises(UserError, match=r"no published source is called 'dsrl-tabel'\. Did you mean 'dsrl-table'\?"):
        find_sources(["dsrl-tabel"])
