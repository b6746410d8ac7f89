"""``lspc-bench import`` and ``export``, and what the other commands make of imported suites."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pandas as pd
import pytest
from running import call

from harness.errors import UserError
from harness.notebook import leaderboard, load_results
from harness.store import Store

HEADER = "task,policy,seed,cost_limit,episode_return,cost,length\n"
TABLE = HEADER + "".join(
    f"{task},{policy},{seed},{limit},{300 + 10 * seed + limit + place},{8 * place},100\n"
    for task in ("BallRun", "BallCircle")
    for policy in ("CPQ", "lspc-o")
    for seed in range(2)
    for limit in (10, 20)
    for place in range(3)
)
MARKED = ["CPQ [imported]", "lspc-o [imported]"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an imported suite."""
    folder = tmp_path_factory.mktemp("imported")
    (folder / "theirs.csv").write_text(TABLE)
    done = call("import", folder / "theirs.csv", "--results", folder / "results", "--suite", "theirs")
    assert done.exit_code == 0, done.output
    assert done.stdout == (
        f"Imported {folder / 'theirs.csv'}: 48 rows, 16 new of suite theirs in {folder / 'results'}: "
        "CPQ [imported], lspc-o [imported].\n"
    )
    return folder / "results"


def test_every_format_marks_what_is_imported(results: Path) -> None:
    text = call("leaderboard", results).stdout
    lines = [line for line in text.splitlines() if "CPQ" in line or "lspc-o" in line]
    assert len(lines) == 6
    assert all("[imported]" in line for line in lines)
    assert "Imported from theirs.csv (SHA-256 " in text
    rows = list(csv.DictReader(io.StringIO(call("leaderboard", results, "--format", "csv").stdout)))
    assert {row["imported"] for row in rows} == {"True"}
    assert sorted({row["policy"] for row in rows}) == MARKED
    (suite,) = json.loads(call("leaderboard", results, "--format", "json").stdout)
    assert all(row["imported"] for row in suite["rows"])
    assert any("were not run here" in note for note in suite["notes"])


def test_status_says_where_it_comes_from(results: Path) -> None:
    text = call("status", results).stdout
    assert text.startswith("Suite theirs: 16 of 16 cells done.")
    assert text.count("[imported]") == 4
    again = call("status", results, "--commands", "cells").stdout
    assert all(line.startswith("#") for line in again.splitlines())  # nothing that a shell would run
    assert "theirs.csv (SHA-256 " in again
    assert call("status", results, "--verify").exit_code == 0


def test_beside_published_numbers_it_is_not_comparable_and_why(results: Path) -> None:
    done = call("compare", results, "--format", "json", "--source", "dsrl-table")
    (suite,) = json.loads(done.stdout)
    mine = [row for row in suite["comparisons"] if row["ours"]]
    assert {row["ours"] for row in mine} == {"CPQ [imported]"}
    assert {row["verdict"] for row in mine} == {"not comparable"}
    assert all("imported: its data, settings and length of training are not known" in row["why"] for row in mine)


def test_nothing_of_it_is_to_work_on(results: Path) -> None:
    assert call("work", results).exit_code == 0
    refused = call("work", results, "--suite", "theirs")
    assert refused.exit_code == 2
    assert "suite theirs was imported: there is nothing to run of it" in refused.stderr


def test_it_cannot_be_run_or_filmed(results: Path, tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text("name: theirs\ntasks: [BallRun]\nalgorithms: [bc]\ndata: {source: demo}\n")
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    for arguments in (("theirs",), (suite,), (suite, "--dry-run"), (suite, "--overwrite", "always")):
        refused = call("run", *arguments, "--results", results)
        assert refused.exit_code == 2
        assert "was imported, and cannot be run" in refused.stderr
    film = call("render", results, "--task", "BallRun", "--policy", "lspc-o [imported]")
    assert film.exit_code == 2
    assert "it has no policies to film" in film.stderr
    assert {path: path.read_bytes() for path in results.rglob("*") if path.is_file()} == before


def test_pages_figures_and_archives_are_made(results: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert call("report", results, "--output", page).exit_code == 0
    text = page.read_text()
    assert "CPQ [imported]</th>" in text
    assert ">CPQ</th>" not in text.partition("Beside published numbers")[0]
    assert "Imported, not run here: theirs.csv, SHA-256" in text
    figures = call("figures", results, "--output", tmp_path / "figures", "--format", "svg")
    assert figures.exit_code == 0, figures.output
    assert call("archive", results, tmp_path / "archive").exit_code == 0
    whole = call("leaderboard", results, "--format", "csv").stdout
    assert call("leaderboard", tmp_path / "archive", "--format", "csv").stdout == whole
    assert call("leaderboard", results, "--selection").exit_code == 0
    refused = call("import", tmp_path / "none.csv", "--results", tmp_path / "archive", "--suite", "more")
    assert refused.exit_code == 2
    assert "is an archive" in refused.stderr


def test_a_page_of_means_is_made(results: Path, tmp_path: Path) -> None:
    path = tmp_path / "means.csv"
    lines = TABLE.splitlines()
    path.write_text("\n".join([lines[0] + ",step,episodes", *(f"{line},{n},5" for n, line in enumerate(lines[1:4]))]))
    assert call("import", path, "--results", tmp_path / "results", "--suite", "means").exit_code == 0
    assert call("report", tmp_path / "results", "--output", tmp_path / "page.html").exit_code == 0
    page = (tmp_path / "page.html").read_text()
    model = json.loads(page.partition('id="model">')[2].partition("</script>")[0])
    assert model[0]["views"]["all:mean"]["overall"][0]["satisfaction"] is None
    assert {run["satisfied"] for run in model[0]["runs"]} == {None}


def test_what_is_wrong_is_listed_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(HEADER + "BallRun,CPQ,0,20,nan,1,100\nBalRun,CPQ,0,20,1,1,100\nBallRun,CPQ,0,20,1,-1,100\n")
    refused = call("import", path, "--results", tmp_path / "results", "--suite", "bad")
    assert refused.exit_code == 2
    assert refused.stderr.splitlines() == [
        "line 2: the return is not a number: 'nan'",
        "line 3: unknown task 'BalRun'. Did you mean 'BallRun'?",
        "line 4: the cost is below 0: '-1'",
        f"Error: {path}: nothing is imported",
        "Try 'main import --help' for help.",
    ]
    assert not (tmp_path / "results").exists()


def test_a_file_or_a_folder_of_osrl_is_wanted(tmp_path: Path) -> None:
    for arguments in ((), ("a.csv", "--osrl", "b")):
        refused = call("import", *arguments, "--results", tmp_path, "--suite", "x")
        assert refused.exit_code == 2
        assert "give either FILE or --osrl DIR" in refused.stderr


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_an_export_holds_every_episode(results: Path, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"all.{ending}"
    done = call("export", results, "--output", path)
    assert done.exit_code == 0, done.output
    frame = pd.read_parquet(path) if ending == "parquet" else pd.read_csv(path)
    pd.testing.assert_frame_equal(frame, load_results(results).episodes, check_dtype=ending == "parquet")
    assert len(frame) == 48
    assert frame["imported"].all()
    assert sorted(frame["row"].unique()) == MARKED
    assert sorted(frame["policy"].unique()) == ["CPQ", "lspc-o"]


def test_an_export_wants_a_known_ending_and_a_suite_that_is_there(results: Path, tmp_path: Path) -> None:
    assert "ends in .csv or .parquet" in call("export", results, "--output", tmp_path / "a.txt").stderr
    assert "no suite 'thiers'" in call("export", results, "--suite", "thiers", "--output", tmp_path / "a.csv").stderr
    assert list(tmp_path.iterdir()) == []


def test_frames_are_the_leaderboards(results: Path) -> None:
    text = call("leaderboard", results, "--format", "csv").stdout
    assert leaderboard(results).to_csv(index=False) == text
    loaded = load_results(results, "theirs")
    pd.testing.assert_frame_equal(leaderboard(loaded), leaderboard(results, "theirs"))
    with pytest.raises(UserError, match=r"no suite 'thiers' was loaded, only theirs\. Did you mean 'theirs'"):
        leaderboard(loaded, "thiers")
    assert len(loaded.runs) == 16
    assert loaded.runs["satisfaction"].between(0, 1).all()
    assert loaded.training.empty
    assert loaded.diagnostics.empty


def test_own_runs_and_imports_lie_side_by_side(results: Path, tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        "name: own\ntasks: [BallRun]\nseeds: 1\ncost_limits: [10]\nevaluation: {final: 1}\ndata: {source: demo}\n"
        "algorithms: {bc: {hyperparameters: {steps: 4, batch_size: 8, hidden_sizes: [4]}}}\n"
    )
    folder = tmp_path / "both"
    (tmp_path / "theirs.csv").write_text(TABLE)
    assert call("import", tmp_path / "theirs.csv", "--results", folder, "--suite", "theirs").exit_code == 0
    ran = call("run", suite, "--results", folder, "--workers", 0, "--device", "cpu")
    assert ran.exit_code == 0, ran.output
    marks = leaderboard(folder).groupby("suite")["imported"].unique()
    assert {name: list(found) for name, found in marks.items()} == {"own": [False], "theirs": [True]}
    joint = list(
        csv.DictReader(io.StringIO(call("leaderboard", folder, "--beside", "theirs", "--format", "csv").stdout))
    )
    found = {row["policy"]: (row["suite"], row["imported"], row["runs"], row["planned_runs"]) for row in joint}
    assert found == {
        "bc-all": ("own", "False", "1", "1"),  # on BallRun at limit 10 alone, as the suite that was run
        "CPQ [imported]": ("own", "True", "2", "2"),
        "lspc-o [imported]": ("own", "True", "2", "2"),
    }
    assert {row["rank"] for row in joint} == {"1", "2", "3"}
    alone = leaderboard(folder, "own").query("task != ''")[["policy", "normalized_reward"]].to_dict("records")
    assert alone[0]["normalized_reward"] == pytest.approx(
        next(float(row["normalized_reward"]) for row in joint if row["policy"] == "bc-all")
    )
    assert call("report", folder, "--beside", "theirs", "--output", tmp_path / "joint.html").exit_code == 0
    assert "CPQ [imported]</th>" in (tmp_path / "joint.html").read_text()
    for options, said in (
        (["--beside", "own"], "takes imported suites, and own was run"),
        (["--suite", "theirs", "--beside", "theirs"], "needs a suite that was run"),
        (["--beside", "none"], "no suite 'none'"),
    ):
        refused = call("leaderboard", folder, *options)
        assert (refused.exit_code, said in refused.stderr) == (2, True), refused.output
    taken = call("import", tmp_path / "theirs.csv", "--results", folder, "--suite", "own")
    assert taken.exit_code == 2
    assert "own was run in" in taken.stderr
    assert [plan.suite for plan in Store(folder).plans()] == ["own", "theirs"]
    loaded = load_results(folder, "own")
    assert set(loaded.training["metric"]) == {"actor_loss"}
    assert loaded.training["step"].max() == 4
