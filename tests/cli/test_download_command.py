"""``lspc-bench data download`` as a user types it: output and exit status."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import h5py
import pytest
from click.testing import CliRunner, Result

from harness.cli import _Group
from harness.cli.download import download
from harness.data.dataset import dataset_path
from harness.tasks import find_task

RUN, CIRCLE = find_task("BallRun"), find_task("BallCircle")

group = _Group("data", commands=[download])


def call(*arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(group, ["download", *map(str, arguments)], env=environment)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """What the mirror holds: BallRun's demo data under the name of DSRL's, without its label."""
    folder = tmp_path / "shared"
    folder.mkdir()
    shutil.copy(dataset_path(RUN, "demo"), folder / RUN.dataset_file)
    with h5py.File(folder / RUN.dataset_file, "r+") as file:
        del file.attrs["label"]
    return folder


def test_data_of_another_kind_is_refused(shared: Path, mirror: str, tmp_path: Path) -> None:
    shutil.copy(dataset_path(RUN, "demo"), shared / RUN.dataset_file)
    refused = call("BallRun", "--mirror", mirror, "--folder", tmp_path / "new")
    assert refused.exit_code == 1
    assert "does not give the data: it is labelled 'agent-collected data, not DSRL'" in refused.output
    assert list((tmp_path / "new").iterdir()) == []


@pytest.fixture
def mirror(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=shared))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_is_downloaded_and_then_verified(mirror: str, tmp_path: Path) -> None:
    first = call("BallRun", "--mirror", mirror, "--folder", tmp_path / "new")
    assert (first.exit_code, first.stderr) == (0, "")
    assert first.stdout.startswith("BallRun: downloaded, 1,185,250 bytes, SHA-256 ")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [RUN.dataset_file, f"{RUN.dataset_file}.json"]
    again = call("BallRun", "--mirror", mirror, "--folder", tmp_path / "new")
    assert (again.exit_code, again.stdout) == (0, "BallRun: already there, verified\n")
    forced = call("BallRun", "--mirror", mirror, "--folder", tmp_path / "new", "--force")
    assert (forced.exit_code, forced.stdout) == (0, first.stdout)


def test_mirror_and_folder_of_the_environment(mirror: str, tmp_path: Path) -> None:
    done = call("BallRun", LSPC_BENCH_MIRROR=mirror, DSRL_DATASET_DIR=str(tmp_path / "new"))
    assert done.exit_code == 0, done.output
    assert (tmp_path / "new" / RUN.dataset_file).exists()


@pytest.mark.parametrize("patterns", [["Ball*"], ["BallRun", CIRCLE.id]])
def test_one_of_two_fails(mirror: str, tmp_path: Path, patterns: list[str]) -> None:
    done = call(*patterns, "--mirror", mirror, "--folder", tmp_path, "--jobs", 1)
    assert done.exit_code == 1
    circle, run = sorted(done.stdout.splitlines())
    assert circle.startswith(f"BallCircle: FAILED: {mirror}/{CIRCLE.dataset_file}: status 404 ")
    assert run.startswith("BallRun: downloaded")
    assert not (tmp_path / CIRCLE.dataset_file).exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["BalRun"], "no task matches 'BalRun'. Did you mean 'BallRun'?"),
        ([], "Missing argument"),
        (["BallRun", "--mirror", "ftp://host"], "the mirror must be the http:// or https:// URL of a folder, not 'ftp"),
        (["BallRun", "--folder", __file__], "cannot make the folder"),
        (["BallRun", "--jobs", "0"], "Invalid value for '--jobs'"),
    ],
)
def test_wrong_input(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = call(*arguments, DSRL_DATASET_DIR=str(tmp_path))
    assert (done.exit_code, message in done.stderr) == (2, True), done.output


def test_an_interrupt(mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.data.download.download", interrupted)
    done = call("BallRun", "--mirror", mirror, "--folder", tmp_path)
    assert (done.exit_code, done.stderr) == (130, "Interrupted.\n")


def test_help_names_the_defaults() -> None:
    text = call("--help").output
    assert "download [OPTIONS] TASK|FAMILY|GLOB|all..." in text
    assert "LSPC_BENCH_MIRROR" in text
    assert "~/.dsrl/datasets" in text
