"""Leaderboards of made-up results: ranking, notes, labels, and three formats that say the same."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from running import suite_plan

from harness.data.dataset import LABELS
from harness.data.filters import Filters
from harness.plan import CellData, Plan
from harness.planning import make_plan
from harness.report.leaderboard import FORMATS, Leaderboard, described, make_leaderboard, to_csv, to_json, to_markdown
from harness.store import State, Status, Store
from harness.suite import SuiteFile
from harness.tasks import find_task

SUITE = """
name: made-up
description: Nothing was trained.
tasks: [{tasks}]
algorithms:
  bc: {{grid: {{mode: [all, safe, frontier]}}}}
  lspc:
seeds: {seeds}
cost_limits: [10]
steps: 100
data: {{source: {source}}}
"""
# Two episodes of each policy: normalised reward, raw costs. At limit 10 the normalised costs are 0.5, 1, 2 and 1.5.
SCORES = {
    "bc-all": (0.9, (10.0, 30.0)),
    "bc-safe": (0.25, (0.0, 10.0)),
    "bc-frontier": (0.75, (20.0, 10.0)),
    "lspc-s": (0.25, (5.0, 5.0)),
    "lspc-o": (0.5, (0.0, 20.0)),
}


NOT_RANKED = "Not ranked, because runs are missing (see 'lspc-bench status'): {}."
Make = Callable[..., Leaderboard]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(
        finished: Callable[[str, str, int], bool] = lambda row, task, seed: True,
        tasks: str = "BallRun, CarRun",
        seeds: int = 2,
        source: str = "dsrl",
        scores: dict[str, tuple[float, tuple[float, ...]]] = SCORES,
        sha256: Callable[[str, str], str] = lambda row, task: "0",
        states: tuple[State, ...] = ("missing", "missing"),
    ) -> Leaderboard:
        """The board of the suite above, with results where ``finished(first row of the cell, task, seed)``.

        Elsewhere a cell has the state of its seed.
        """
        plan = suite_plan(tmp_path, SUITE.format(tasks=tasks, seeds=seeds, source=source))
        store = Store(tmp_path)
        for planned in plan.cells:
            cell, task, first = planned.cell, find_task(planned.cell.task), next(iter(planned.rows.values()))
            if finished(first, task.name, cell.seed):
                record = {"dataset": {"sha256": sha256(first, task.name)}}
                curve = pd.DataFrame({"step": [100]})
                store.write_results(
                    cell, record, episodes(planned.rows, task, scores), curve, {"p": {"w": torch.zeros(1)}}, {}
                )
            elif states[cell.seed] != "missing":
                store.set_status(cell, Status(states[cell.seed], "a reason"))
        return make_leaderboard(store, plan)

    return make


def episodes(rows: dict[str, str], task: Any, scores: dict[str, tuple[float, tuple[float, ...]]]) -> pd.DataFrame:
    span = task.max_episode_reward - task.min_episode_reward
    return pd.DataFrame(
        [
            {"step": 100, "policy": policy, "cost_limit": float("nan"), "episode": index, "seed": index, "length": 9}
            | {"episode_return": task.min_episode_reward + scores[row][0] * span, "cost": cost}
            for policy, row in rows.items()
            for index, cost in enumerate(scores[row][1])
        ]
    )


def test_safe_first_by_reward_then_unsafe_by_cost_then_names(make: Make) -> None:
    board = make()
    # bc-safe and lspc-s tie in reward: names settle it. lspc-o is safe with a mean of exactly 1.
    expected = [(1, "lspc-o"), (2, "bc-safe"), (3, "lspc-s"), (4, "bc-frontier"), (5, "bc-all")]
    assert [(row.rank, row.policy) for row in board.overall] == expected
    for task in ("OfflineBallRun-v0", "OfflineCarRun-v0"):
        assert [(row.rank, row.policy) for row in board.tasks[task]] == expected
    assert {row.policy: row.score is not None and row.score.safe for row in board.overall} == {
        row: row in ("lspc-o", "bc-safe", "lspc-s") for row in SCORES
    }
    assert board.notes == []


def test_what_rounds_to_zero_has_no_sign(make: Make) -> None:
    """As on the page and in LaTeX."""
    board = make(tasks="BallRun", scores=dict.fromkeys(SCORES, (-0.0004, (0.0,))))
    assert [line.split("|")[3].strip() for line in to_markdown([board]).splitlines() if "bc-all" in line] == [
        "0.000"
    ] * 2


def test_a_policy_without_a_whole_task_has_no_rank_and_stands_last(make: Make) -> None:
    board = make(lambda row, task, seed: (row, task) != ("lspc-s", "CarRun"))
    assert [(row.rank, row.policy) for row in board.overall] == [
        *((1, "bc-safe"), (2, "bc-frontier"), (3, "bc-all")),
        *((None, "lspc-o"), (None, "lspc-s")),
    ]
    assert [row.rank for row in board.tasks["OfflineBallRun-v0"]] == [1, 2, 3, 4, 5]
    assert [(row.policy, row.score is None) for row in board.tasks["OfflineCarRun-v0"]] == [
        *(("bc-safe", False), ("bc-frontier", False), ("bc-all", False)),
        *(("lspc-o", True), ("lspc-s", True)),
    ]
    assert board.notes == [NOT_RANKED.format("lspc-o, lspc-s")]


def test_parts_may_name_one_file_differently() -> None:
    """One was run before labels were kept, or where the file has another name."""
    old, new, filtered = (
        CellData(source="own", file="reach.hdf5", label=label, filters=Filters(noise=noise))
        for label, noise in ((None, None), (LABELS["agents"], None), (LABELS["agents"], 0.1))
    )
    label = "own file reach.hdf5, agent-collected data, not DSRL"
    assert described([new, new]) == label
    assert described([old, new]) == f"own file reach.hdf5 or {label}"
    assert described([new, filtered]) == f"{label}, filtered as the rows say"


def test_rows_say_what_the_datas_grid_changes(make: Make) -> None:
    scores = {f"{row} [share={share}]": score for row, score in SCORES.items() for share in (1.0, 0.5)}
    board = make(source="demo, grid: {share: [1.0, 0.5]}", scores=scores)
    assert set(board.data.values()) == {"demo data, not DSRL, filtered as the rows say"}
    assert {row.policy for row in board.overall} == set(scores)
    assert board.notes == []


def test_a_policy_without_some_seeds_is_not_ranked_before_complete_ones(make: Make) -> None:
    board = make(lambda row, task, seed: (row, task, seed) != ("bc-safe", "CarRun", 1))
    found = board.overall[-1]
    assert (found.policy, found.rank) == ("bc-safe", None)
    assert found.score is not None
    assert (found.score.covered, found.score.planned, found.score.seeds) == (3, 4, 1)
    assert found.score.interval is None
    assert [row.rank for row in board.overall[:-1]] == [1, 2, 3, 4]
    assert board.notes == [NOT_RANKED.format("bc-safe")]
    assert "3 of 4" in next(line for line in to_markdown([board]).splitlines() if "bc-safe" in line)


@pytest.mark.parametrize(
    ("states", "runs"),
    [
        (("missing", "missing"), "0 of 2"),
        (("diverged", "diverged"), "0 of 2 (2 diverged)"),
        (("diverged", "failed"), "0 of 2 (1 failed, 1 diverged)"),
        (("running", "diverged"), "0 of 2 (1 diverged)"),
    ],
)
def test_a_policy_without_any_result_stands_in_every_format(make: Make, states: tuple[State, State], runs: str) -> None:
    board = make(lambda row, task, seed: row == "bc-all", tasks="BallRun", states=states)
    none = ["bc-frontier", "bc-safe", "lspc-o", "lspc-s"]
    assert [row.policy for row in board.overall] == ["bc-all", *none]
    assert [row.runs for row in board.overall[1:]] == [runs] * 4
    assert board.notes == [NOT_RANKED.format(", ".join(none))]
    (line,) = (line for line in to_markdown([board]).partition("## BallRun")[0].splitlines() if "| lspc-s " in line)
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        *("-", "lspc-s", "-", "-", "-", "-", "-", "-", "-", "0", "-", "limit 10", "100", runs)
    ]
    rows = [row for row in csv.DictReader(io.StringIO(to_csv([board]))) if row["policy"] == "lspc-s"]
    assert [(row["task"], row["rank"], row["normalized_cost"], row["safe"]) for row in rows] == [
        *(("", "", "", ""), ("OfflineBallRun-v0", "", "", ""))
    ]
    for state in ("missing", "running", "failed", "diverged"):
        assert {row[f"{state}_runs"] for row in rows} == {str(states.count(state))}
    assert (rows[0]["runs"], rows[0]["planned_runs"], rows[0]["seeds"]) == ("0", "2", "0")


def test_no_results_at_all_still_make_a_page(make: Make) -> None:
    board = make(lambda row, task, seed: False)
    assert [row.score for row in board.overall] == [None] * 5
    assert to_markdown([board]).count("| lspc-s ") == 3
    assert len(to_csv([board]).splitlines()) == 1 + 3 * 5
    rows = json.loads(to_json([board]))[0]["rows"]
    assert {(row["rank"], row["safe"], row["runs"]) for row in rows} == {(None, None, 0)}


def test_different_datasets_are_noted(make: Make) -> None:
    assert make(sha256=lambda row, task: task).notes == []  # each task has its own file, of course
    board = make(sha256=lambda row, task: f"{task} {(row, task) == ('bc-all', 'CarRun')}")
    assert board.notes == ["Not all rows were trained on the same dataset file: CarRun."]


def test_demo_data_is_labelled_in_every_format(make: Make) -> None:
    board = make(source="demo")
    page = to_markdown([board])
    assert "Data: demo data, not DSRL. Nothing was trained." in page
    assert page.count("(demo data, not DSRL)") == len(board.tasks)
    assert {row["data"] for row in csv.DictReader(io.StringIO(to_csv([board])))} == {"demo data, not DSRL"}
    (suite,) = json.loads(to_json([board]))
    assert {*suite["data"].values(), *(row["data"] for row in suite["rows"])} == {"demo data, not DSRL"}
    dsrl = make(source="dsrl")
    assert all("demo" not in write([dsrl]) for write in FORMATS.values())


def read_tables(page: str) -> list[dict[str, str]]:
    """Every row of a page's tables, with the heading it stands under."""
    rows, heading, header = [], "", None
    for line in page.splitlines():
        if line.startswith("#"):
            heading, header = line, None
        elif line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if header is None:
                header = cells
            elif not set("".join(cells)) <= set("-:"):
                rows.append({"heading": heading} | dict(zip(header, cells, strict=True)))
    return rows


def test_formats_agree(make: Make) -> None:
    boards = [make(lambda row, task, seed: (row, task, seed) != ("bc-safe", "CarRun", 1) and row != "bc-all")]
    boards.append(make(lambda row, task, seed: row == "bc-frontier", tasks="BallCircle", seeds=1, source="demo"))
    from_csv = list(csv.DictReader(io.StringIO(to_csv(boards))))
    suites = json.loads(to_json(boards))
    from_json = [row for suite in suites for row in suite["rows"]]
    assert [{key: "" if value is None else str(value) for key, value in row.items()} for row in from_json] == from_csv
    assert [suite["notes"] for suite in suites] == [board.notes for board in boards]

    def text(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    from_page = read_tables(to_markdown(boards))
    assert len(from_page) == len(from_json) == 5 * 3 + 5 * 2
    for shown, row in zip(from_page, from_json, strict=True):
        assert shown["heading"].startswith(f"## {find_task(row['task']).name if row['task'] else 'Overall'}")
        expected = {
            "#": "-" if row["rank"] is None else str(row["rank"]),
            "policy": row["policy"],
            "reward": text(row["normalized_reward"]),
            "cost": text(row["normalized_cost"]),
            "safe": {None: "-", True: "yes", False: "no"}[row["safe"]],
            "P(safe)": text(row["satisfaction"]),
            "runs": f"{row['runs']} of {row['planned_runs']}",
            "protocol": row["protocol"],
            "updates": str(row["updates_max"]),
        }
        if not row["task"]:
            low, high = text(row["iqm_low"]), text(row["iqm_high"])
            expected |= {"tail": text(row["cost_tail"]), "IQM": text(row["iqm"]), "n": str(row["seeds"])}
            expected["95% interval"] = "-" if low == "-" else f"{low} to {high}"
        assert {key: shown[key] for key in expected} == expected


def test_a_plan_read_back_gives_the_same_board(make: Make, tmp_path: Path) -> None:
    board = make()
    plan = make_plan(SuiteFile(tmp_path / "suite.yaml"))
    again = make_leaderboard(Store(tmp_path), Plan.model_validate_json(plan.model_dump_json()))
    assert again == board
