"""Parts of a suite as tables, in four formats; golden files say how they look.

To write the golden files anew, after looking at what changed: REWRITE_GOLDEN=1 python -m pytest THIS_FILE
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from latex_check import ENGINE, check_latex, document
from made_up import HOSTILE, MadeUp, make

from harness.errors import UserError
from harness.report.field_table import to_latex
from harness.report.leaderboard import FORMATS, Leaderboard, to_records
from harness.report.published import find_sources
from harness.report.tables import markdown_text
from harness.report.views import Wanted, make_boards

GOLDEN = Path(__file__).parent / "golden"
WRITERS = {"md": FORMATS["markdown"], "csv": FORMATS["csv"], "json": FORMATS["json"], "tex": to_latex}
VIEWS = {
    "whole": Wanted(),
    "parts": Wanted(family="bullet", per_limit=True, policies=["LSPC-*", "cpq [cpq]"], best=True),
    "published": Wanted(limit="10 or 20", published=find_sources(["dsrl-table", "lspc"]), policies=["bc-*"]),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> MadeUp:
    return make(tmp_path_factory.mktemp("suite"))


def boards(results: MadeUp, wanted: Wanted) -> list[Leaderboard]:
    return make_boards(results, results.plan, wanted)


def rounded(text: str) -> str:
    """Numbers to nine digits: additions differ in the last ones."""
    return re.sub(r"-?\d+\.\d{9,}", lambda found: f"{float(found[0]):.9g}", text)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("view", VIEWS)
def test_golden(results: MadeUp, view: str, kind: str) -> None:
    text, path = rounded(WRITERS[kind](boards(results, VIEWS[view]))), GOLDEN / f"{view}.{kind}"
    if os.environ.get("REWRITE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("view", VIEWS)
def test_formats_say_the_same(results: MadeUp, view: str) -> None:
    found = boards(results, VIEWS[view])
    records = to_records(found)
    from_csv = list(csv.DictReader(io.StringIO(WRITERS["csv"](found))))
    assert [{key: "" if value is None else str(value) for key, value in row.items()} for row in records] == from_csv
    assert [row for suite in json.loads(WRITERS["json"](found)) for row in suite["rows"]] == records
    page, tables = WRITERS["md"](found), check_latex(to_latex(found))
    assert len(tables) == 2 * len(found)
    for board, overall in zip(found, tables[::2], strict=True):
        assert board.title in page
        assert [row[0] for row in overall[1:]][: len(board.overall)] == [str(row.rank or "--") for row in board.overall]
    lines = [line for line in page.splitlines() if re.match(r"\| +[\d-]", line) and "---" not in line]
    assert len(lines) == len(records)


def test_hostile_names_are_text(results: MadeUp) -> None:
    found = boards(results, Wanted())
    text = to_latex(found)
    tables = check_latex(text)
    assert len(tables) == 2
    assert r"\end{table} " not in text
    page = WRITERS["md"](found)
    for line in page.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (10, 15)  # of 9 and 14 columns
    assert markdown_text("a](b) <i> *x* `y` _z_ $1$ ~2~ &lt; a_b a < b").count("\\") == 13
    assert markdown_text(HOSTILE) in page


@pytest.mark.skipif(ENGINE is None, reason="no LaTeX is installed")
def test_latex_compiles(results: MadeUp, tmp_path: Path) -> None:
    (tmp_path / "a.tex").write_text(document(to_latex(boards(results, VIEWS["published"]))))
    assert ENGINE is not None
    done = subprocess.run([ENGINE, "a.tex"], cwd=tmp_path, capture_output=True, text=True, input="", check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_the_fields_table_has_averages_and_marks(results: MadeUp) -> None:
    (board,) = boards(results, Wanted())
    _, tasks = check_latex(to_latex([board]))
    assert [row[0] for row in tasks[1:]] == [
        *("Task", "BallRun", "Average, bullet", "PointGoal1", "Average, navigation", "Average")
    ]
    best, second, unsafe = tasks[-1][1], tasks[-1][5], tasks[-1][9]
    assert (best, second, unsafe) == (
        r"\textcolor{blue}{\textbf{0.56}}",
        r"\textbf{0.38}",
        r"\textcolor{gray}{0.81}",
    )
    overall = {row.policy: row.score for row in board.overall}
    (score,) = (score for row, score in overall.items() if row == "lspc-o")
    assert score is not None
    assert tasks[-1][6] == rf"\textbf{{{score.cost:.2f}}}"
    assert tasks[-1][-1].endswith("$^{*}$")  # cpq lacks a seed


def test_a_filter_of_rows_keeps_the_ranks_of_all(results: MadeUp) -> None:
    whole = {row.policy: row.rank for row in boards(results, Wanted())[0].overall}
    (board,) = boards(results, Wanted(policies=["lspc-?", "cpq [*"]))
    assert {row.policy: row.rank for row in board.overall} == {
        row: rank for row, rank in whole.items() if not row.startswith("bc")
    }
    assert [row.rank for row in board.overall] == [3, 4, 5, None]
    assert board.notes[0] == "Shown are 4 of 6 policies; ranks are those among all 6."


def test_the_best_checkpoint_is_chosen_in_every_run_and_said_to_peek(results: MadeUp) -> None:
    (last,), (best,) = boards(results, Wanted()), boards(results, Wanted(best=True))
    rewards = [{row.policy: row.score for row in board.overall} for board in (last, best)]
    for policy in ("bc-all", "lspc-s"):
        scores = [found[policy] for found in rewards]
        assert all(scores)
        assert scores[1].reward - scores[0].reward == pytest.approx(0.5)  # type: ignore[union-attr] # what step 50 has
    for text in (WRITERS[kind]([best]) for kind in WRITERS):
        assert "peeks" in text
    assert {row["checkpoint"] for row in to_records([best])} == {"best by roll-outs (peeks)"}
    assert all("peeks" not in WRITERS[kind]([last]) for kind in WRITERS)


def test_limits_by_place_value_and_label(results: MadeUp) -> None:
    assert [board.view.limit for board in boards(results, Wanted(per_limit=True))] == ["10 or 20", "20 or 40"]
    assert [board.view.limit for board in boards(results, Wanted(family="navigation", per_limit=True))] == ["20", "40"]
    (board,) = boards(results, Wanted(limit="10"))
    assert {task: one.name for task, one in board.protocols.items()} == {
        "OfflineBallRun-v0": "limit 10",
        "OfflinePointGoal1Gymnasium-v0": "limit 20",
    }
    (board,) = boards(results, Wanted(limit="20", family="bullet"))
    assert board.protocol.name == "limit 20"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Wanted(family="velocity"), "--family velocity: suite made-up has tasks of bullet, navigation"),
        (Wanted(limit="20"), "--limit 20: suite made-up has it in '10 or 20' and '20 or 40'"),
        (Wanted(limit="5"), "--limit 5: suite made-up has 10 or 20, 20 or 40, and 'mean'"),
        (Wanted(policies=["lspc-x"]), "--policy lspc-x: suite made-up has none of that name. Did you mean 'lspc-"),
    ],
)
def test_what_the_suite_does_not_have_is_refused(results: MadeUp, wanted: Wanted, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        boards(results, wanted)


def test_without_a_learning_curve_there_is_no_best(tmp_path: Path) -> None:
    results = make(tmp_path, ("every: 50, ", ""))
    with pytest.raises(UserError, match=r"--best: suite made-up keeps no learning curve"):
        boards(results, Wanted(best=True))


def test_published_rows_are_foreign(results: MadeUp) -> None:
    (board,) = boards(results, Wanted(published=find_sources(["dsrl-table"])))
    foreign = [row for row in to_records([board]) if row["source"]]
    assert {row["source"] for row in foreign} == {"dsrl-table"}
    assert {row["protocol"] for row in foreign} == {"dsrl"}
    for name in ("rank", "seeds", "iqm_low", "satisfaction", "runs", "planned_runs", "updates_min"):
        assert {row[name] for row in foreign} == {None}
    (mean,) = (row for row in foreign if row["policy"] == "BC-Safe" and not row["task"])
    assert mean["normalized_reward"] == pytest.approx((0.27 + 0.43) / 2)
    ours = [row for row in to_records([board]) if not row["source"]]
    assert [(row["rank"], row["policy"]) for row in ours] == [
        (row["rank"], row["policy"]) for row in to_records(boards(results, Wanted()))
    ]
