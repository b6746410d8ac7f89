"""Whatever lies in a file's place is refused at once: a pipe would let a reader wait, a device might never end."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from harness import checkpoint
from harness.cli import main
from harness.errors import DamageError, UserError
from harness.files import NoFileError, file_sha256, read_bytes, read_sealed
from harness.forecast import read_measurement
from harness.report.studies import read_csv
from harness.suite import SuiteFile


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


PLACES: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": _socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": Path.mkdir,
}


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    PLACES[request.param](Path("it"))
    return tmp_path / "it"


@pytest.mark.parametrize("read", [read_bytes, file_sha256, checkpoint.verify])
def test_what_is_no_file_is_not_opened(place: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(NoFileError, match=r"it is a (folder|pipe, socket or device)"):
        read(place)


@pytest.mark.parametrize("read", [SuiteFile, read_measurement, read_csv])
def test_the_user_is_told(place: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(UserError, match=r"it is a (folder|pipe, socket or device)"):
        read(place)


def test_what_takes_a_results_file_s_place_is_damage(place: Path) -> None:
    with pytest.raises(DamageError, match="it cannot be read: it is a"):
        read_sealed(place)


def _run(suite: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["run", str(suite), "--dry-run", *options])


def test_no_file_in_a_dataset_s_place(place: Path, tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text("name: s\ntasks: [BallRun]\nalgorithms: [bc]\ndata:\n  files: {BallRun: it}\n")
    result = _run(suite)
    assert result.exit_code == 2, result.output
    assert f"suite.yaml:5: cannot read the dataset of BallRun, {str(place)!r}: it is a" in result.output


def test_no_file_in_the_place_of_an_own_task_s_dataset(place: Path, tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    own = "{environment: e, episode_length: 9, cost_limits: [1], reference_returns: [0, 1]}"
    suite.write_text(
        f"name: s\ntasks: [Mine]\nalgorithms: [bc]\ndata:\n  files: {{Mine: it}}\nown_tasks:\n  Mine: {own}\n"
    )
    result = _run(suite)
    assert result.exit_code == 2, result.output
    assert "suite.yaml:5: " in result.output
    assert "it is a" in result.output
