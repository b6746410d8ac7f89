"""``leaderboard`` with its parts, ``published`` and ``compare``, as a user types them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from latex_check import check_latex
from made_up import make
from running import call

from harness.archive import write_archive


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    write_archive([make(folder)], None, folder / "archive")  # type: ignore[list-item]
    return folder / "archive"


def test_options_combine_in_every_format(results: Path, tmp_path: Path) -> None:
    options = ("--family", "bullet", "--limit", 10, "--policy", "lspc-*", "--policy", "bc-all", "--best")
    options += ("--with-published", "dsrl-table")
    table = call("leaderboard", results, *options, "--format", "latex")
    assert table.exit_code == 0, table.output
    assert len(check_latex(table.stdout)) == 2
    rows = list(csv.DictReader(call("leaderboard", results, *options, "--format", "csv").stdout.splitlines()))
    assert {(row["family"], row["limit"], row["checkpoint"]) for row in rows if not row["source"]} == {
        ("bullet", "10", "best by roll-outs (peeks)")
    }
    assert {row["policy"] for row in rows} == {"lspc-s", "lspc-o", "bc-all", "BC-All"}
    page = call("leaderboard", results, *options, "--output", tmp_path / "page.md")
    assert (page.exit_code, page.stdout) == (0, "")
    assert "# Leaderboard: made-up, bullet, limit 10, best checkpoint" in (tmp_path / "page.md").read_text()
    boards = json.loads(call("leaderboard", results, "--per-limit", "--format", "json").stdout)
    assert [board["title"] for board in boards] == ["made-up, limit 10 or 20", "made-up, limit 20 or 40"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--per-limit", "--limit", "10"), "--per-limit shows every limit, --limit 10 one: give one of them"),
        (("--selection", "--best"), "--selection is another table, of the whole suite: it goes without --best"),
        (("--selection", "--format", "latex"), "it goes without --format latex"),
        (("--limit", "7"), "--limit 7: suite made-up has 10 or 20, 20 or 40, and 'mean'"),
        (("--family", "bulet"), "--family bulet: suite made-up has tasks of bullet, navigation"),
        (("--policy", "lspc-p"), "--policy lspc-p: suite made-up has none of that name. Did you mean 'lspc-"),
        (("--with-published", "fisr"), "no published source is called 'fisr'. Did you mean 'fisor'?"),
    ],
)
def test_what_does_not_go_is_refused(results: Path, options: tuple[str, ...], message: str) -> None:
    done = call("leaderboard", results, *options)
    assert done.exit_code == 2
    assert message in done.stderr


def test_sources_are_listed() -> None:
    text = call("published").stdout
    assert [line.split()[0] for line in text.partition("\n\n")[0].splitlines()[1:]] == [
        *("dsrl-table", "fisor", "caps-t3", "caps-t4", "caps-t10", "psec", "copdt", "carl", "lspc")
    ]
    assert "fisor: FISOR Table 1 (arXiv 2401.10700)" in text
    rows = list(csv.DictReader(call("published", "--format", "csv").stdout.splitlines()))
    assert {row["source"]: (row["protocol"], row["numbers"]) for row in rows}["lspc"] == ("dsrl", "23")


def test_theirs_and_ours_side_by_side(results: Path, tmp_path: Path) -> None:
    done = call("compare", results, "--source", "dsrl-table", "--format", "csv")
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert {row["source"] for row in rows} == {"dsrl-table"}
    assert {row["verdict"] for row in rows} == {"not comparable"}
    assert {row["ours"] for row in rows} == {"bc-all", "bc-safe", "cpq [cpq]"} | {
        row["ours"] for row in rows if row["ours"].startswith("cpq [50%")
    }
    assert "published numbers on its tasks are of policies that it does not have" in done.stderr
    table = call("compare", results, "--format", "latex", "--output", tmp_path / "a.tex")
    assert table.exit_code == 0, table.output
    check_latex((tmp_path / "a.tex").read_text())
    assert call("compare", results, "--source", "nobody").exit_code == 2
