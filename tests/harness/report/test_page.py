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

from harness import statistics
from harness.archive import write_archive
from harness.cli import main
from harness.plan import Cell, Plan, make_plan
from harness.report.leaderboard import make_leaderboard, to_records
from harness.report.page.charts import charts
from harness.report.page.files import save_figures
from harness.report.page.model import make_model
from harness.report.page.render import render
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
evaluation: {every: 50, episodes: 1, final: 2}
"""


class MadeUp:
    """Results whose numbers follow from row, task and seed; cpq failed on CarRun, and lspc's last seed is missing."""

    root = Path("made-up")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def plans(self) -> list[Plan]:
        return [self.plan]

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

    def episodes(self, cell: Cell) -> pd.DataFrame:
        rows = next(one.rows for one in self.plan.cells if one.cell.hash == cell.hash)
        task, last = cell.definition, cell.hyperparameters["steps"]
        span = task.max_episode_reward - task.min_episode_reward
        random = np.random.default_rng(list(f"{task.name}{cell.algorithm}{cell.seed}".encode()))
        level = {"lspc": 0.2, "bc": 0.6, "cpq": 1.4}[cell.algorithm]
        return pd.DataFrame(
            [
                {"step": step, "policy": policy, "cost_limit": np.nan, "episode": episode, "seed": episode, "length": 9}
                | {
                    "episode_return": task.min_episode_reward + span * (level + random.normal(0, 0.1)),
                    "cost": float(np.round(level * min(cell.evaluation_limits) * random.uniform(0.5, 1.5))),
                }
                for step in range(50, last + 1, 50)
                for policy in rows
                for episode in range(2)
            ]
        )

    def training(self, cell: Cell) -> pd.DataFrame:
        return pd.DataFrame({"step": [100], "loss": [1.0]})

    def diagnostics(self, cell: Cell) -> pd.DataFrame:
        return pd.DataFrame(columns=list(DIAGNOSTICS))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> MadeUp:
    path = tmp_path_factory.mktemp("suite") / "suite.yaml"
    path.write_text(SUITE)
    return MadeUp(make_plan(SuiteFile(path)))


@pytest.fixture(scope="module")
def model(results: MadeUp) -> Iterator[list[dict[str, Any]]]:
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


def test_its_numbers_are_the_leaderboards(results: MadeUp, model: list[dict[str, Any]]) -> None:
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


def test_each_limit_and_family_has_its_own_view(results: MadeUp, model: list[dict[str, Any]]) -> None:
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
    assert [suite["tasks"][task]["name"] for task in tightest["tasks"]] == ["BallRun", "CarRun"]
    (plan,) = results.plans()
    found = next(row for row in tightest["overall"] if row["policy"] == "bc-all")
    episodes = statistics.final_episodes(results, plan)
    mine = episodes[(episodes["row"] == "bc-all") & (episodes["limit"] == 10)]
    mine = mine[mine["task"].isin(tightest["tasks"])]
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


def test_the_same_results_make_the_same_bytes_and_ask_no_network(html: str, model: list[dict[str, Any]]) -> None:
    assert render(json.loads(json.dumps(model)), "A <title>", "made-up", "1.2.3") == html
    assert not re.findall(r"<(?:link|img|iframe|script)[^>]*(?:src|href)=", html.partition("<script")[0])
    assert not re.findall(r"<script[^>]* src=", html)
    assert not re.findall(r"@import|url\(", html.partition("</style>")[0])


def test_figures_are_files_too(model: list[dict[str, Any]], tmp_path: Path) -> None:
    assert set(charts(model[0])) == {"plane", "scatter", "limits", "curves", "profiles", "improvement"}
    paths = list(save_figures(model, tmp_path / "figures", ["svg", "pdf", "png"], "mean"))
    assert {path.name for path in paths} >= {"made-up-plane.svg", "made-up-curves-BallRun.pdf", "made-up-profiles.png"}
    assert len(paths) == 3 * (3 + 3 * 3)  # kinds; figures of the suite, and of each task
    begin = {".svg": b"<svg", ".pdf": b"%PDF", ".png": b"\x89PNG"}
    for path in paths:
        assert path.read_bytes().startswith(begin[path.suffix])
    svg = (tmp_path / "figures" / "made-up-plane.svg").read_text()
    assert "bc-safe" in svg
    assert svg != next(iter(save_figures(model, tmp_path / "tight", ["svg"], "10"))).read_text()


def test_the_commands(results: MadeUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "BOOTSTRAP_SAMPLES", 50)
    write_archive([results], None, tmp_path / "archive")
    run = CliRunner()
    page = tmp_path / "page.html"
    done = run.invoke(main, ["report", str(tmp_path / "archive"), "--output", str(page), "--title", "Mine & yours"])
    assert (done.exit_code, done.output) == (0, f"Wrote {page}.\n")
    assert "<h1>Mine &amp; yours</h1>" in page.read_text()
    wrong = run.invoke(main, ["report", str(tmp_path / "archive"), "--suite", "made-down"])
    assert wrong.exit_code == 2
    assert "Did you mean 'made-up'?" in wrong.output
    wrong = run.invoke(main, ["figures", str(tmp_path / "archive"), "--limit", "33", "--output", str(tmp_path / "f")])
    assert wrong.exit_code == 2
    assert "--limit 33: suite made-up has 10 or 20, 20 or 40, 40 or 80, and 'mean'" in wrong.output
    nowhere = run.invoke(main, ["report", str(tmp_path / "archive"), "--output", str(tmp_path / "no" / "page.html")])
    assert nowhere.exit_code == 2
    assert "cannot write" in nowhere.output


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
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


class _Opened:
    """The page in a browser, and what went wrong there."""

    def __init__(self, browser: Any, path: Path, address: str = "", **options: Any) -> None:
        self.troubles: list[str] = []
        self.page = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options).new_page()
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
    assert saved["TEX"].startswith("\\begin{tabular}")
    assert "alert('\\&')" in saved["TEX"]
    assert opened.troubles == []


@browser_wanted
def test_figures_are_drawn_and_follow(browser: Any, path: Path) -> None:
    opened = _Opened(browser, path)
    for name in ("plane", "profiles", "improvement", "scatter", "limits", "curves"):
        chart = opened.page.locator(f".chart[data-chart={name}]")
        chart.scroll_into_view_if_needed()
        chart.locator("svg").first.wait_for()
    plane = opened.page.locator(".chart[data-chart=plane]")
    before = plane.locator("svg").first.inner_html()
    opened.page.select_option("#limit", "2")
    opened.page.wait_for_function(
        "before => document.querySelector('.chart[data-chart=plane] svg').innerHTML !== before", arg=before
    )
    with opened.page.expect_download() as download:
        plane.get_by_text("SVG", exact=True).click()
    assert Path(download.value.path()).read_text().startswith("<svg")
    assert download.value.suggested_filename == "made-up-plane.svg"
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
    plain = _Opened(browser, path, java_script_enabled=False)
    assert plain.page.locator("table[data-name=leaderboard]:visible").count() == 12
    assert plain.page.locator("#controls").is_hidden()
    assert light.troubles == dark.troubles == phone.troubles == plain.troubles == []


@browser_wanted
def test_a_task_has_an_address(browser: Any, path: Path) -> None:
    opened = _Opened(browser, path, "#suite-0-CarRun")
    assert opened.page.locator("details#suite-0-CarRun").get_attribute("open") is not None
    assert opened.troubles == []
