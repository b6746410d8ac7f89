"""The report page: its numbers, its text, and what it does in a real browser."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from latex_check import check_latex
from made_up import MadeUp
from PIL import Image
from rliable import metrics
from running import suite_plan

from harness import statistics
from harness.archive import open_results, write_archive
from harness.cli import main
from harness.errors import UserError
from harness.plan import Cell, Plan
from harness.planning import make_plan
from harness.report import selection
from harness.report.diagnostics import diagnostics_table, held_out_figures
from harness.report.leaderboard import make_leaderboard, to_records
from harness.report.page.charts import charts
from harness.report.page.files import save_figures
from harness.report.page.model import make_model
from harness.report.page.render import render
from harness.report.published import as_records, compare, find_sources
from harness.report.views import Wanted, make_boards
from harness.store import DIAGNOSTICS, Status
from harness.suite import SuiteFile

CHROMIUM = shutil.which("chromium")
NASTY = "<script>alert('&')</script>"
SUITE = """
name: made-up
description: Nothing <b>was</b> trained.
tasks: [BallRun, CarRun, PointGoal1]
algorithms:
  lspc: {hyperparameters: {steps: 200}}
  bc: {hyperparameters: {steps: 100}, grid: {mode: [all, safe]}}
  cpq: {hyperparameters: {steps: 100, gamma: 0.9}}
  "<script>alert('&')</script>": {algorithm: cpq, hyperparameters: {steps: 100}}
seeds: 3
data: {source: demo}
evaluation: {every: 50, episodes: 1, final: 2, fqe: {gamma: 0.9}}
"""


class Drawn(MadeUp):
    """Results whose numbers follow from row, task and seed; cpq failed on CarRun, and lspc's last seed is missing."""

    def status(self, cell: Cell) -> Status:
        if cell.algorithm == "cpq" and cell.definition.name == "CarRun":
            return Status("failed", f"Traceback ...\nRuntimeError: {NASTY}")
        if cell.algorithm == "lspc" and cell.seed == 2:
            return Status("missing")
        return Status("done")

    def record(self, cell: Cell) -> dict[str, Any]:
        return {
            "dataset": {"sha256": "ab" * 32},
            "platform": "Linux",
            "device": "cpu",
            "engine": "eager",
            "git_commit": "0123456789",
            "versions": {"torch": "2.13.0"},
            "group": [cell.hash],
            "training_seconds": 3600.0,
        }

    def score(self, cell: Cell, row: str, step: int, episode: int) -> tuple[float, float]:
        random = np.random.default_rng(list(f"{cell.definition.name}{row}{cell.seed}-{step}-{episode}".encode()))
        level = {"lspc": 0.2, "bc": 0.6, "cpq": 1.4}[cell.algorithm]
        cost = np.round(level * min(cell.evaluation_limits) * random.uniform(0.5, 1.5))
        return level + random.normal(0, 0.1), float(cost)

    def training(self, cell: Cell) -> pd.DataFrame:
        loss = [2.0 + cell.seed, 1.0 + cell.seed]
        return pd.DataFrame(
            {"step": [50, 100], "loss": loss} | ({"kl": [0.5, 0.25]} if cell.algorithm == "cpq" else {})
        )

    def diagnostics(self, cell: Cell) -> pd.DataFrame:
        """Of checkpoints, a different order than roll-outs give; fitted Q-evaluation knows nothing of cpq."""
        (rows,) = (one.rows for one in self.plan.cells if one.cell.hash == cell.hash)
        random = np.random.default_rng(list(f"{cell.hash} by data".encode()))
        metrics = ["action_error", "qc_auc", *(("fqe_return", "fqe_cost") if cell.algorithm != "cpq" else ())]
        steps = range(50, cell.hyperparameters["steps"] + 1, 50)
        found = [
            (step, policy, np.nan, metric, np.nan if metric == "qc_auc" else random.uniform(0, 5))
            for step in steps
            for policy in rows
            for metric in metrics
        ]
        return pd.DataFrame(found, columns=list(DIAGNOSTICS))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    return Drawn(suite_plan(tmp_path_factory.mktemp("suite"), SUITE))


@pytest.fixture(scope="module")
def model(results: Drawn) -> Iterator[list[dict[str, Any]]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "BOOTSTRAP_SAMPLES", 200)
        yield make_model(results, results.plans())


@pytest.fixture(scope="module")
def html(model: list[dict[str, Any]]) -> str:
    return render(model, "A <title>", "made-up", "1.2.3")


class _Tables(HTMLParser):
    """Every table's rows of texts, by its name; what a reader sees with scripts off."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[tuple[str, list[list[str]]]] = []
        self.text: list[str] = []
        self._cell: list[str] | None = None
        self._skipped = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "style"):
            self._skipped += 1
        elif tag == "table":
            self.tables.append((dict(attrs).get("data-name") or "", []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._skipped -= 1
        elif tag in ("td", "th") and self._cell is not None:
            self.tables[-1][1][-1].append("".join(self._cell).strip())
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._skipped:
            return
        self.text.append(data)
        if self._cell is not None:
            self._cell.append(data)


def test_its_numbers_are_the_leaderboards(results: Drawn, model: list[dict[str, Any]]) -> None:
    (suite,) = model
    (plan,) = results.plans()
    records = {(record["task"], record["policy"]): record for record in to_records([make_leaderboard(results, plan)])}
    view = suite["views"]["all:mean"]
    shown = [("", row) for row in view["overall"]]
    shown += [(task, row) for task, rows in view["tasks"].items() for row in rows]
    assert len(shown) == len(records)
    for task, row in shown:
        record = records[task, row["policy"]]
        assert row["rank"] == record["rank"]
        assert (row["reward"], row["cost"]) == (record["normalized_reward"], record["normalized_cost"])
        assert (row["satisfaction"], row["runs"]) == (record["satisfaction"], record["runs"])
        if not task:
            assert (row["cost_tail"], row["iqm"], row["seeds"]) == (record["cost_tail"], record["iqm"], record["seeds"])


def test_each_limit_and_family_has_its_own_view(results: Drawn, model: list[dict[str, Any]]) -> None:
    (suite,) = model
    assert suite["families"] == ["bullet", "navigation"]
    assert [choice["label"] for choice in suite["limits"]] == [
        "mean over limits",
        "limit 10 or 20",
        "limit 20 or 40",
        "limit 40 or 80",
    ]
    assert set(suite["views"]) == {
        f"{family}:{limit}" for family in ("all", "bullet", "navigation") for limit in ("mean", "0", "1", "2")
    }
    tightest = suite["views"]["bullet:0"]
    tasks = [task for task, about in suite["tasks"].items() if about["family"] == "bullet"]
    assert [suite["tasks"][task]["name"] for task in tasks] == ["BallRun", "CarRun"]
    (plan,) = results.plans()
    found = next(row for row in tightest["overall"] if row["policy"] == "bc-all")
    episodes = statistics.final_episodes(results, plan)
    mine = episodes[(episodes["row"] == "bc-all") & (episodes["limit"] == 10)]
    mine = mine[mine["task"].isin(tasks)]
    assert found["cost"] == pytest.approx(mine.groupby(["task", "seed"])["cost"].mean().mean())
    assert found["all_runs"] == "6 of 6"
    means = [suite["views"][f"all:{limit}"]["tasks"][task][0]["cost"] for limit in "012" for task in suite["tasks"]]
    assert all(np.isfinite(means))


def test_a_verdict_and_a_rank_go_as_far_as_the_seeds(model: list[dict[str, Any]]) -> None:
    rows = {row["policy"]: row for row in model[0]["views"]["all:mean"]["overall"]}
    assert (rows["bc-safe"]["verdict"], rows["bc-safe"]["group"]) == ("safe", 1)
    part = rows["lspc-s"]  # a seed is missing
    assert (part["seeds"], part["rank"], part["cost_interval"], part["verdict"]) == (2, None, None, "undecided")
    assert part["all_runs"] == "18 of 27"
    unsafe = rows[f"cpq [{NASTY}]"]
    assert (unsafe["rank"], unsafe["rank_low"], unsafe["group"]) == (None, None, None)  # a task is missing
    assert unsafe["verdict"] == "undecided"
    low, high = rows["bc-all"]["cost_interval"]
    assert low < rows["bc-all"]["cost"] < high


def test_aggregates_are_rliables(results: Drawn, model: list[dict[str, Any]]) -> None:
    (plan,) = results.plans()
    view = model[0]["views"]["all:mean"]
    board = {row["policy"]: row for row in view["overall"]}
    found = {row["policy"]: row for row in view["aggregates"]}
    assert set(found) == {policy for policy, row in board.items() if row["rank"] is not None}
    episodes = statistics.final_episodes(results, plan)
    limits = statistics.planned_limits(plan)
    for policy, row in found.items():
        scores = statistics.seed_matrix(episodes[episodes["row"] == policy], limits[policy])
        assert row["median"] == pytest.approx(metrics.aggregate_median(scores))
        assert row["gap"] == pytest.approx(metrics.aggregate_optimality_gap(scores))
        assert (row["seeds"], row["tasks"]) == scores.shape == (3, 3)
        assert row["median_interval"][0] <= row["median"] <= row["median_interval"][1]


def test_the_best_checkpoint_is_the_leaderboards_and_said_to_peek(
    results: Drawn, model: list[dict[str, Any]], html: str
) -> None:
    (plan,) = results.plans()
    boards = {limit: make_boards(results, plan, Wanted(limit=limit, best=True)) for limit in (None, "10 or 20")}
    for key, limit in (("all:mean", None), ("all:0", "10 or 20")):
        (board,) = boards[limit]
        scores = {row.policy: row.score for row in board.overall}
        found = {row["policy"]: row["best"] for row in model[0]["views"][key]["aggregates"]}
        assert found
        for policy, best in found.items():
            score = scores[policy]
            assert score is not None
            assert (best["reward"], best["cost"]) == pytest.approx((score.reward, score.cost))
    assert "online selection, which peeks at the environment" in "".join(_Tables(html).text)


def test_offline_selection_is_the_leaderboards(results: Drawn, html: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "BOOTSTRAP_SAMPLES", 200)
    (plan,) = results.plans()
    report = selection.make_report(results, plan)
    page = _Tables(html)
    shown = dict(page.tables)
    header = ["policy", "rule", "reward", "cost", "violations", "regret", "n", "runs"]
    for name, outcomes in (
        ("checkpoint-rules", [one for one in report.checkpoints if not one.policy]),
        ("checkpoint-rules-by-policy", [one for one in report.checkpoints if one.policy]),
        ("policy-rules", report.policies),
    ):
        assert shown[name] == [header, *map(_line, outcomes)]
    by_policy = {tuple(row[:2]) for row in shown["checkpoint-rules-by-policy"]}
    assert {policy for policy, rule in by_policy if rule == selection.FQE.name} == {
        "lspc-s",
        "lspc-o",
        "bc-all",
        "bc-safe",
    }
    assert any(one.regret > 0 for one in report.checkpoints)
    text = "".join(page.text)
    assert selection.LEGEND in text
    assert selection.FQE.description in text
    assert all(note in text for note in report.notes)


def _line(one: selection.Outcome) -> list[str]:
    """As the page shows an outcome."""
    numbers = [f"{value:z.3f}" for value in (one.reward, one.cost, one.violations, one.regret)]
    if one.interval:
        numbers[-1] += f" {one.interval[0]:z.3f} to {one.interval[1]:z.3f}"
    return [one.policy or "all", one.rule, *numbers, str(one.seeds), str(one.runs)]


def test_what_is_measured_on_held_out_data_is_the_leaderboards(results: Drawn, html: str) -> None:
    (plan,) = results.plans()
    header, lines = diagnostics_table(held_out_figures(results, plan))
    assert [line[0] for line in lines] == ["action_error", "qc_auc"]
    assert dict(_Tables(html).tables)["held-out"] == [header, *lines]


def test_each_figure_of_held_out_data_has_a_curve(results: Drawn, model: list[dict[str, Any]]) -> None:
    (suite,) = model
    assert suite["measured"] == ["action_error"]  # qc_auc is NaN everywhere
    (curve,) = (one for one in suite["held_out"] if (one["row"], one["task"]) == ("bc-all", "OfflineBallRun-v0"))
    assert curve["share"] == [0.5, 1.0]
    (plan,) = results.plans()
    means = diagnostics_table(held_out_figures(results, plan))[1][0]
    last = [one["mean"][-1] for one in suite["held_out"] if one["row"] == "bc-all"]
    column = 1 + list(dict.fromkeys(one["row"] for one in suite["held_out"])).index("bc-all")
    assert sum(last) / len(last) == pytest.approx(float(means[column]), abs=1e-3)


def test_the_share_of_episodes_within_the_limit_has_an_interval(model: list[dict[str, Any]]) -> None:
    view = model[0]["views"]["all:mean"]
    board = {row["policy"]: row for row in view["overall"]}
    for row in view["aggregates"]:
        low, high = row["satisfaction_interval"]
        assert 0 <= low <= board[row["policy"]]["satisfaction"] <= high <= 1


def test_every_logged_metric_has_a_curve(model: list[dict[str, Any]]) -> None:
    (suite,) = model
    assert suite["logged"] == ["loss", "kl"]
    curves = {(one["label"], one["metric"]): one for one in suite["metrics"] if one["task"] == "OfflineBallRun-v0"}
    assert {label for label, metric in curves if metric == "kl"} == {"cpq", NASTY}
    assert curves["lspc", "loss"] == {
        "label": "lspc",
        "task": "OfflineBallRun-v0",
        "metric": "loss",
        "agents": 2,  # the third is missing
        "share": [0.5, 1.0],
        "mean": [2.5, 1.5],
        "low": [2.0, 1.0],
        "high": [3.0, 2.0],
    }


def test_learning_curves_follow_the_limit(results: Drawn, model: list[dict[str, Any]]) -> None:
    (plan,) = results.plans()
    curves = {(one["row"], one["place"]): one for one in model[0]["curves"] if one["task"] == "OfflineBallRun-v0"}
    places = {place for row, place in curves if row == "bc-all"}
    assert places == {"mean", "0", "1", "2"}
    episodes = statistics.checkpoint_episodes(results, plan)
    mine = episodes[
        (episodes["row"] == "bc-all") & (episodes["task"] == "OfflineBallRun-v0") & (episodes["step"] == 50)
    ]
    assert curves["bc-all", "0"]["cost"][0] == pytest.approx(mine[mine["limit"] == 10]["cost"].mean(), rel=1e-5)
    assert curves["bc-all", "mean"]["cost"][0] == pytest.approx(mine["cost"].mean(), rel=1e-5)
    assert curves["bc-all", "0"]["share"] == [0.5, 1.0]


def test_it_says_what_ran_it(model: list[dict[str, Any]], html: str) -> None:
    provenance = model[0]["provenance"]
    assert provenance["command"] == "lspc-bench run suite.yaml"
    assert provenance["suite_file"] == SUITE
    assert "evaluation: {every: 50, episodes: 1, final: 2, fqe: {gamma: 0.9}}" in "".join(_Tables(html).text)


def test_what_is_missing_is_said(model: list[dict[str, Any]]) -> None:
    coverage = model[0]["coverage"]
    # 3 tasks, 3 seeds: lspc 9 cells, bc-all 9, bc-safe 27 and each cpq 27, a limit each.
    assert coverage["states"] == {"done": 78, "missing": 3, "failed": 18}
    assert coverage["cells"] == 99
    failed = [trouble for trouble in coverage["troubles"] if trouble["state"] == "failed"]
    assert {(one["task"], one["cells"], one["reason"]) for one in failed} == {("CarRun", 9, f"RuntimeError: {NASTY}")}


def test_scripts_off_the_tables_are_there_and_text_is_text(html: str, model: list[dict[str, Any]]) -> None:
    page = _Tables(html)
    names = [name for name, _ in page.tables]
    assert {"leaderboard", "matrix", "BallRun", "published", "coverage", "data"} <= set(names)
    board = next(rows for name, rows in page.tables if name == "leaderboard")
    assert [row[2] for row in board[1:]] == [row["policy"] for row in model[0]["views"]["all:mean"]["overall"]]
    text = "".join(page.text)
    assert NASTY in text
    assert "Nothing <b>was</b> trained." in text
    assert "demo data, not DSRL" in text
    assert NASTY not in html


def test_protocols_and_verdicts_on_published_numbers_are_those_of_the_tables(
    html: str, model: list[dict[str, Any]], results: Drawn
) -> None:
    (plan,), (suite,) = results.plans(), model
    board = make_leaderboard(results, plan)
    assert suite["protocol"] == {"name": "dsrl", "description": board.protocol.describe()}
    assert suite["updates"] == {
        row.policy: [100, 100] if "lspc" not in row.policy else [200, 200] for row in board.overall
    }
    found = compare(results, plan, find_sources(()))
    assert suite["published"] == as_records(found, plan)
    ours = [row for row in suite["published"] if row["ours"]]
    assert ours
    assert all(row["verdict"] == "not comparable" and "data: ours is demo data" in row["why"] for row in ours)
    page = _Tables(html)
    assert f"Protocol dsrl ({board.protocol.describe()})." in "".join(page.text)
    (table,) = (rows for name, rows in page.tables if name == "published")
    column = table[0].index("protocol")
    assert [row[column] for row in table[1:]] == [row["protocol"] for row in suite["published"]]


def test_the_same_results_make_the_same_bytes_and_ask_no_network(html: str, model: list[dict[str, Any]]) -> None:
    assert render(json.loads(json.dumps(model)), "A <title>", "made-up", "1.2.3") == html
    assert not re.findall(r"<(?:link|img|iframe|script)[^>]*(?:src|href)=", html.partition("<script")[0])
    assert not re.findall(r"<script[^>]* src=", html)
    assert not re.findall(r"@import|url\(", html.partition("</style>")[0])


class _Standing(Drawn):
    """The same, whatever the cells' state."""

    def __init__(self, plan: Plan, state: Status) -> None:
        super().__init__(plan)
        self.state = state

    def status(self, cell: Cell) -> Status:
        return self.state


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (Status("missing"), "99 missing of 99 cells"),
        (Status("running"), "99 running of 99 cells"),
        (Status("diverged", "loss is nan"), "99 diverged of 99 cells"),
        (Status("failed", "ValueError: no"), "99 failed of 99 cells"),
        (Status("damaged", "cell.json: cut"), "99 damaged of 99 cells"),
    ],
    ids=lambda value: getattr(value, "state", None),
)
def test_without_any_result_there_is_a_page_that_says_so(results: Drawn, state: Status, said: str) -> None:
    model = make_model(_Standing(results.plan, state), results.plans())
    page = _Tables(render(model, "Nothing", "made-up", "1"))
    assert said in " ".join("".join(page.text).split())
    board = next(rows for name, rows in page.tables if name == "leaderboard")
    assert {(row[0], row[3]) for row in board[1:]} == {("-", "no result")}
    assert len(board) == 1 + 6
    assert not any(rows[1:] for name, rows in page.tables if name == "statistics")
    assert "a suite's evaluation.every makes some to choose from" in "".join(page.text)
    assert not {name for name, _ in page.tables if name == "held-out" or "-rules" in name}
    assert not {*model[0]["selection"]["notes"]} & {*model[0]["notes"]}  # damage is said once


def test_several_suites_are_told_apart(tmp_path: Path, results: Drawn) -> None:
    path = tmp_path / "other.yaml"
    path.write_text("name: other\ntasks: [CarRun]\nalgorithms: [bc]\nseeds: 1\ncost_limits: [0, 10]\n")
    other = make_plan(SuiteFile(path))
    first, second = make_model(results, results.plans())[0], make_model(Drawn(other), [other])[0]
    page = _Tables(render([first, second], "Both", "mixed", "1"))
    text = " ".join("".join(page.text).split())
    assert "Trained on: demo data, not DSRL" in text
    assert "Trained on: DSRL" in text
    assert text.count("On held-out data") == len([name for name, _ in page.tables if name == "held-out"]) == 2
    (row,) = second["views"]["all:mean"]["overall"]
    assert (row["rank"], row["rank_low"], row["verdict"], row["cost_interval"]) == (1, 1, "undecided", None)  # one seed
    assert [choice["label"] for choice in second["limits"]] == ["mean over limits", "limit 0", "limit 10"]
    assert render([], "Empty", "nothing", "1").count("There are no results of a suite here.") == 1


def test_figures_are_files_too(model: list[dict[str, Any]], tmp_path: Path) -> None:
    drawn = {"plane", "scatter", "limits", "curves", "metrics", "held-out", "profiles", "improvement"}
    assert set(charts(model[0])) == drawn
    paths = list(save_figures(model, tmp_path / "figures", ["svg", "pdf", "png"], "mean"))
    assert {path.name for path in paths} >= {"made-up-plane.svg", "made-up-curves-BallRun.pdf", "made-up-profiles.png"}
    assert len(paths) == 3 * (3 + 3 * 3)  # kinds; figures of the suite, and of each task
    begin = {".svg": b"<svg", ".pdf": b"%PDF", ".png": b"\x89PNG"}
    for path in paths:
        assert path.read_bytes().startswith(begin[path.suffix])
    svg = (tmp_path / "figures" / "made-up-plane.svg").read_text()
    assert "bc-safe" in svg
    assert svg != next(iter(save_figures(model, tmp_path / "tight", ["svg"], "10"))).read_text()
    logged = {path.name for path in save_figures(model, tmp_path / "logged", ["svg"], "mean", ["kl"])}
    assert {name for name in logged if "-metrics-" in name} == {
        f"made-up-metrics-kl-{task}.svg" for task in ("BallRun", "CarRun", "PointGoal1")
    }
    assert "BallRun: kl in training" in (tmp_path / "logged" / "made-up-metrics-kl-BallRun.svg").read_text()
    measured = {path.name for path in save_figures(model, tmp_path / "measured", ["svg"], "mean", ["action_error"])}
    assert {name for name in measured if "action_error" in name} == {
        f"made-up-held-out-action_error-{task}.svg" for task in ("BallRun", "CarRun", "PointGoal1")
    }
    with pytest.raises(UserError, match="--metric k: suite made-up has no such"):
        list(save_figures(model, tmp_path / "none", ["svg"], "mean", ["k"]))
    assert not (tmp_path / "none").exists()


def test_a_suite_with_one_limit_and_seed_has_its_figures(tmp_path: Path) -> None:
    path = tmp_path / "strict.yaml"
    path.write_text("name: strict\ntasks: [CarRun]\nalgorithms: [bc]\nseeds: 1\ncost_limits: [5]\n")
    plan = make_plan(SuiteFile(path))
    model = make_model(Drawn(plan), [plan])
    plane = charts(model[0])["plane"]["data"]
    assert [plane["format"]["parse"][name] for name in ("cost_low", "cost", "row")] == ["number", "number", "string"]
    drawn = [next(iter(save_figures(model, tmp_path / limit, ["svg"], limit))) for limit in ("mean", "5", "5.0")]
    assert len({path.read_bytes() for path in drawn}) == 1
    with pytest.raises(UserError, match="--limit 6: suite strict has 5, and 'mean'"):
        list(save_figures(model, tmp_path / "none", ["svg"], "6"))


def test_the_commands(results: Drawn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "BOOTSTRAP_SAMPLES", 50)
    write_archive([results], None, tmp_path / "archive")
    run = CliRunner()
    page = tmp_path / "page.html"
    done = run.invoke(main, ["report", str(tmp_path / "archive"), "--output", str(page), "--title", "Mine & yours"])
    assert (done.exit_code, done.output) == (0, f"Wrote {page}.\n")
    assert "<h1>Mine &amp; yours</h1>" in page.read_text()
    twice = ["--suite", "made-up", "--suite", "made-up", "--title", "Mine & yours"]
    once = page.read_text()
    assert run.invoke(main, ["report", str(tmp_path / "archive"), "--output", str(page), *twice]).exit_code == 0
    assert page.read_text() == once
    wrong = run.invoke(main, ["report", str(tmp_path / "archive"), "--suite", "made-down"])
    assert wrong.exit_code == 2
    assert "Did you mean 'made-up'?" in wrong.output
    wrong = run.invoke(main, ["figures", str(tmp_path / "archive"), "--limit", "33", "--output", str(tmp_path / "f")])
    assert wrong.exit_code == 2
    assert "--limit 33: suite made-up has 10 or 20, 20 or 40, 40 or 80, and 'mean'" in wrong.output
    nowhere = run.invoke(main, ["report", str(tmp_path / "archive"), "--output", str(tmp_path / "no" / "page.html")])
    assert nowhere.exit_code == 2
    assert "cannot write" in nowhere.output


def test_the_readmes_picture_shows_todays_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture holds the text of the table in it."""
    monkeypatch.setattr(statistics, "BOOTSTRAP_SAMPLES", 2000)
    root = Path(__file__).parents[3]
    with Image.open(root / "docs" / "report.png") as picture:
        shown = picture.text["shown"]  # type: ignore[attr-defined]
    results = open_results(root / "results" / "evidence")
    page = _Tables(render(make_model(results, results.plans()), "", "", ""))
    board = next(rows for name, rows in page.tables if name == "leaderboard")
    assert " ".join(" ".join(cell for row in board[1:] for cell in row).split()) == shown, (
        "python docs/draw_report.py results/evidence docs/report.png"
    )


# In a browser

browser_wanted = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (.ci/run does)")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET, timeout=120_000)
        yield chromium
        chromium.close()


class _Opened:
    """The page in a browser, and what went wrong there."""

    def __init__(self, browser: Any, path: Path, address: str = "", **options: Any) -> None:
        self.troubles: list[str] = []
        self.page = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options).new_page()
        self.page.set_default_timeout(120_000)
        self.page.on("console", lambda message: self.troubles.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("request", self._request)
        self.page.goto(path.as_uri() + address)

    def _request(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.troubles.append(f"asked the network for {request.url}")

    def column(self, name: str, number: int) -> list[str]:
        """The cells of a table that is seen, from above."""
        rows = self.page.locator(f"table[data-name={name}]:visible tbody tr:visible")
        return [rows.nth(row).locator("td, th").nth(number).inner_text() for row in range(rows.count())]


@pytest.fixture
def path(html: str, tmp_path: Path) -> Path:
    path = tmp_path / "page.html"
    path.write_text(html)
    return path


@browser_wanted
def test_tables_follow_limit_family_and_filters_and_the_address_keeps_them(
    browser: Any, path: Path, model: list[dict[str, Any]]
) -> None:
    opened = _Opened(browser, path)
    page, views = opened.page, model[0]["views"]

    def shown() -> list[str]:
        return [text.split()[0] for text in opened.column("leaderboard", 4)]

    def wanted(view: str) -> list[str]:
        return [f"{row['reward']:z.3f}" for row in views[view]["overall"]]

    assert shown() == wanted("all:mean")
    page.select_option("#limit", "0")
    assert shown() == wanted("all:0")
    page.select_option("#family", "navigation")
    assert shown() == wanted("navigation:0")
    assert page.locator("details.task:visible").count() == 1
    page.fill("#policy", "BC")
    assert opened.column("leaderboard", 2) == [
        row["policy"] for row in views["navigation:0"]["overall"] if "bc" in row["policy"]
    ]
    again = _Opened(browser, path, "#" + page.url.partition("#")[2])
    assert opened.column("leaderboard", 2) == again.column("leaderboard", 2)
    assert again.page.input_value("#limit") == "0"
    page.select_option("#family", "all")
    page.fill("#policy", "")
    page.fill("#task", "carrun")
    assert page.locator("details.task:visible").count() == 1
    assert page.inner_text("#shown") == "1 of 3 tasks"
    assert opened.troubles == again.troubles == []


@browser_wanted
def test_tables_are_sorted_by_keyboard_and_saved(browser: Any, path: Path, model: list[dict[str, Any]]) -> None:
    opened = _Opened(browser, path)
    head = opened.page.locator("table[data-name=leaderboard]:visible th button", has_text="reward").first
    head.focus()
    opened.page.keyboard.press("Enter")
    ascending = [float(text.split()[0]) for text in opened.column("leaderboard", 4)]
    assert ascending == sorted(ascending)
    opened.page.keyboard.press("Enter")
    assert [float(text.split()[0]) for text in opened.column("leaderboard", 4)] == ascending[::-1]
    saved = {}
    for kind in ("CSV", "MD", "TEX", "JSON"):
        with opened.page.expect_download() as download:
            opened.page.locator("table[data-name=leaderboard]:visible").locator("xpath=../..").get_by_text(
                kind, exact=True
            ).click()
        saved[kind] = Path(download.value.path()).read_text()
        assert download.value.suggested_filename == f"made-up-leaderboard.{kind.lower()}"
    rows = list(csv.DictReader(io.StringIO(saved["CSV"])))
    assert sorted(row["policy"] for row in rows) == sorted(
        row["policy"] for row in model[0]["views"]["all:mean"]["overall"]
    )
    assert json.loads(saved["JSON"])["columns"][2] == "policy"
    check_latex(saved["TEX"])
    assert r"alert(\textquotesingle{}\&\textquotesingle{})" in saved["TEX"]
    assert r"\textbf{" in saved["TEX"]
    assert r"\textcolor{gray}{" in saved["TEX"]
    assert opened.troubles == []


@browser_wanted
def test_limits_of_several_suites_and_names_that_begin_with_digits(
    browser: Any, tmp_path: Path, model: list[dict[str, Any]]
) -> None:
    """A place among limits is another value in each suite; a name is no number; unsafe is unsafe before rounding."""
    path = tmp_path / "other.yaml"
    labels = ["10x", "2x", "ten*_x", "<i>|&amp;"]
    settings = {
        label: {"algorithm": "bc", "hyperparameters": {"steps": 100 + 50 * place}} for place, label in enumerate(labels)
    }
    path.write_text(
        f"name: other\ntasks: [CarRun]\nalgorithms: {json.dumps(settings)}\nseeds: 2\ncost_limits: [0, 10]\n"
    )
    plan = make_plan(SuiteFile(path))
    text = json.dumps(make_model(Drawn(plan), [plan])[0])
    for label in labels:  # as imported rows may be called
        text = text.replace(json.dumps(f"bc-all [{label}]"), json.dumps(label))
    other = json.loads(text)
    (task,) = other["tasks"]
    for row, cost in zip(other["views"]["all:mean"]["tasks"][task], (1.004, 0.5, 2.0, 1.0), strict=True):
        row["cost"] = cost
    path = tmp_path / "page.html"
    path.write_text(render([other, *model], "Both", "mixed", "1"))
    opened = _Opened(browser, path, "#%")
    page = opened.page
    assert page.locator("#limit option").all_inner_texts() == [
        "mean over limits",
        "limit 0, limit 10 or 20",
        "limit 10, limit 20 or 40",
        "limit 40 or 80",
    ]
    section = page.locator("#suite-0")
    board = section.locator("table[data-name=leaderboard]:visible")
    board.locator("th button", has_text="policy").click()
    assert board.locator("tbody th").all_inner_texts() == ["<i>|&amp;", "2x", "10x", "ten*_x"]

    def saved(name: str, kind: str) -> str:
        with page.expect_download() as download:
            section.locator(f"table[data-name={name}]:visible").locator("xpath=../..").get_by_text(
                kind, exact=True
            ).click()
        return Path(download.value.path()).read_text()

    markdown = saved("leaderboard", "MD")
    assert r"| \<i>\|\&amp; |" in markdown
    assert r"| ten\*\_x |" in markdown
    lines = saved("matrix", "TEX").splitlines()
    assert [line.count("gray") for line in lines if " & " in line] == [0, *(int(cost > 1) for cost in costs(other))]
    assert opened.troubles == []


def costs(suite: dict[str, Any]) -> list[float]:
    """Of a suite's only task over all limits, by row in the matrix."""
    (rows,) = suite["views"]["all:mean"]["tasks"].values()
    found = {row["policy"]: row["cost"] for row in rows}
    return [found[row] for row in suite["rows"]]


@browser_wanted
def test_figures_are_drawn_and_follow(browser: Any, path: Path) -> None:
    opened = _Opened(browser, path)
    for name in ("plane", "profiles", "improvement", "scatter", "limits", "curves", "metrics", "held-out"):
        chart = opened.page.locator(f".chart[data-chart={name}]")
        chart.scroll_into_view_if_needed()
        chart.locator("svg").first.wait_for()
    plane = opened.page.locator(".chart[data-chart=plane]")
    before = plane.locator("svg").first.inner_html()
    opened.page.select_option("#limit", "2")
    opened.page.wait_for_function(
        "before => document.querySelector('.chart[data-chart=plane] svg').innerHTML !== before", arg=before
    )
    assert plane.locator("svg path[aria-label*='bc-safe']").count() > 0
    opened.page.fill("#policy", "lspc")
    opened.page.wait_for_function(
        "!document.querySelector('.chart[data-chart=plane] svg').querySelector(\"path[aria-label*='bc-safe']\")"
    )
    opened.page.fill("#policy", "")
    before = plane.locator("svg").first.inner_html()
    opened.page.select_option("#family", "navigation")
    opened.page.wait_for_function(
        "before => document.querySelector('.chart[data-chart=plane] svg').innerHTML !== before", arg=before
    )
    with opened.page.expect_download() as download:
        plane.get_by_text("SVG", exact=True).click()
    assert Path(download.value.path()).read_text().startswith("<svg")
    assert download.value.suggested_filename == "made-up-plane.svg"
    logged = opened.page.locator(".chart[data-chart=metrics] svg")
    assert "PointGoal1: loss in training" in logged.inner_html()  # of the family's first task
    opened.page.select_option("#family", "all")
    opened.page.select_option("#metric", "kl")
    opened.page.wait_for_function(
        "document.querySelector('.chart[data-chart=metrics] svg').innerHTML.includes('BallRun: kl in training')"
    )
    assert "metric=kl" in opened.page.url
    held_out = opened.page.locator(".chart[data-chart=held-out] svg")
    assert "BallRun: action_error on held-out data" in held_out.inner_html()
    assert opened.troubles == []


@browser_wanted
def test_dark_narrow_and_without_scripts(browser: Any, path: Path) -> None:
    light = _Opened(browser, path)
    dark = _Opened(browser, path, color_scheme="dark")
    colour = "getComputedStyle(document.body).backgroundColor"
    assert light.page.evaluate(colour) == "rgb(255, 255, 255)"
    assert dark.page.evaluate(colour) == "rgb(21, 24, 28)"
    phone = _Opened(browser, path, viewport={"width": 360, "height": 740})
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 360
    for opened, stays in ((light, True), (phone, False)):  # above what is scrolled to
        opened.page.evaluate("scrollTo(0, 1000)")
        assert opened.page.evaluate("document.getElementById('controls').getBoundingClientRect().bottom > 0") is stays
    plain = _Opened(browser, path, java_script_enabled=False)
    assert plain.page.locator("table[data-name=leaderboard]:visible").count() == 12
    assert plain.page.locator("#controls").is_hidden()
    assert light.troubles == dark.troubles == phone.troubles == plain.troubles == []


@browser_wanted
def test_a_cell_of_the_matrix_tells_its_runs_and_leads_to_its_task(browser: Any, path: Path) -> None:
    opened = _Opened(browser, path, "#limit=1")
    cell = opened.page.locator("table[data-name=matrix]:visible tr[data-policy=bc-all] td[data-task=CarRun]")
    cell.hover()
    told = (cell.get_attribute("title") or "").splitlines()
    assert [line.partition(":")[0] for line in told[1:]] == [f"seed {seed}, limit 20" for seed in range(3)]
    cell.click()
    assert opened.page.locator("details#suite-0-CarRun").get_attribute("open") is not None
    assert "limit=1" in opened.page.url
    assert opened.troubles == []


@browser_wanted
def test_a_task_has_an_address(browser: Any, path: Path) -> None:
    opened = _Opened(browser, path, "#suite-0-CarRun")
    assert opened.page.locator("details#suite-0-CarRun").get_attribute("open") is not None
    assert opened.troubles == []
