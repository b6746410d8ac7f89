"""What commands say of damaged results: the file by its name, and everything else as if nothing were."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fuzz_damage import finish

from harness.archive import open_results
from harness.cli import main
from harness.store import Store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    finish(tmp_path / "runs")
    return tmp_path / "runs"


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def damaged(root: Path) -> Path:
    """An episodes file of suite one with a bit flipped."""
    store = Store(root)
    path = store.folder(store.plans()[0].cells[0].cell) / "episodes.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path


def test_verify_reads_everything(root: Path) -> None:
    result = call("status", root, "--verify")
    assert (result.exit_code, result.stdout) == (0, "29 files read, 0 damaged.\n")
    assert call("status", root, "--verify", "--suite", "one").exit_code == 2


def test_verify_names_every_damaged_file(root: Path, damaged: Path) -> None:
    cut = next((root / "jobs").iterdir())
    cut.write_bytes(cut.read_bytes()[:-1])
    result = call("status", root, "--verify")
    assert result.exit_code == 1
    first, second, last = result.stdout.splitlines()
    assert first.startswith(f"{damaged}: damaged (its SHA-256")
    assert second.startswith(f"{cut}: damaged (")
    assert last == "29 files read, 2 damaged."
    assert cut.exists()  # who reads changes nothing


def test_status_names_a_file_of_another_size_and_what_to_do(root: Path, damaged: Path) -> None:
    damaged.write_bytes(b"")
    result = call("status", root)
    assert result.exit_code == 0
    assert "Suite one: 1 of 2 cells done." in result.stdout
    assert f"damaged: {damaged}: damaged (it has 0 bytes, " in result.stdout
    assert "run its suite again, which makes the cell again" in result.stdout
    assert "Suite two: 2 of 2 cells done." in result.stdout


def test_tables_go_on_without_a_damaged_cell_and_say_so(root: Path, damaged: Path) -> None:
    result = call("leaderboard", root)
    assert result.exit_code == 0
    assert "1 of 2" in result.stdout or "2 of 4" in result.stdout
    assert f"is left out: {damaged}: damaged (" in result.stdout
    assert f"is left out: {damaged}: damaged (" in call("leaderboard", root, "--selection").stdout


def test_an_archive_leaves_it_out_and_says_so(root: Path, damaged: Path, tmp_path: Path) -> None:
    result = call("archive", root, tmp_path / "archive", "--suite", "one")
    assert result.exit_code == 0
    assert "1 of 2 cells of suite one done" in result.stdout
    assert f"note: left out: {damaged}" in result.stderr
    (tmp_path / "archive").rename(tmp_path / "moved")
    assert call("status", tmp_path / "moved", "--verify").exit_code == 0
    (table,) = (tmp_path / "moved").glob("episodes-*")
    table.write_bytes(table.read_bytes()[:-1])
    assert str(table) in call("status", tmp_path / "moved", "--verify").stdout
    assert len(open_results(tmp_path / "moved").plans()) == 1


def test_a_damaged_plan_is_named_and_the_other_suites_are_shown(root: Path) -> None:
    path = root / "suites" / "one.json"
    path.write_text("{")
    for command in ("status", "leaderboard"):
        result = call(command, root)
        assert result.exit_code == 0
        assert f"note: {path}: damaged (it is no JSON); run its suite again, which writes it anew" in result.stderr
        assert "two" in result.stdout
    (root / "suites" / "two.json").write_text("")
    result = call("status", root)
    assert result.exit_code == 2
    assert f"Error: {path}: damaged" in result.stderr
