"""What is recorded of a data file, and every way in which file and manifest can disagree."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from harness.data.dataset import dataset_path
from harness.data.manifest import manifest_path, read, record, verify
from harness.tasks import find_task

TASK = find_task("BallRun")
URL = "https://mirror.example/file.hdf5"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file.hdf5"
    path.write_bytes(b"data")
    return path


def test_what_is_recorded(path: Path) -> None:
    manifest = record(path, TASK, URL)
    assert manifest_path(path) == path.with_name("file.hdf5.json")
    assert json.loads(manifest_path(path).read_text()) == manifest == read(path)
    recorded = datetime.fromisoformat(manifest.pop("recorded"))
    assert timedelta(0) <= datetime.now(UTC) - recorded < timedelta(minutes=1)
    assert manifest == {
        "file": "file.hdf5",
        "task": TASK.id,
        "size": 4,
        "sha256": hashlib.sha256(b"data").hexdigest(),
        "url": URL,
    }
    assert verify(path) is None


def test_a_known_hash_is_not_taken_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.data.manifest.file_sha256", lambda _: pytest.fail("hashed"))
    record(path, TASK, None, sha256="ab" * 32)
    assert verify(path, sha256="ab" * 32) is None
    assert verify(path, sha256="cd" * 32) == f"its SHA-256 is {'cd' * 32}, its manifest file.hdf5.json says {'ab' * 32}"


def test_without_a_manifest_nothing_is_wrong(path: Path) -> None:
    assert read(path) is None
    assert verify(path) is None


def test_the_manifests_of_demo_data_hold() -> None:
    assert read(dataset_path(TASK, "demo")) is not None
    assert verify(dataset_path(TASK, "demo")) is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda path: path.write_bytes(b"dat"), "it has 3 bytes, its manifest file.hdf5.json says 4"),
        (lambda path: path.write_bytes(b"date"), "its SHA-256 is "),
        (lambda path: path.unlink(), "it cannot be read (No such file or directory)"),
        (lambda path: cut(manifest_path(path), 40), "cannot be read (Unterminated string"),
        (lambda path: manifest_path(path).write_text('{"sha256": 5}'), "file.hdf5.json holds no SHA-256"),
        (
            lambda path: manifest_path(path).write_text('{"file": "file.hdf5", "task": "x", "sha255": "00"}'),
            "file.hdf5.json holds no SHA-256",
        ),
    ],
)
def test_what_can_be_wrong(path: Path, change: Callable[[Path], object], problem: str) -> None:
    record(path, TASK, URL)
    change(path)
    assert problem in str(verify(path))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize("content", [b"{}", b"[]", b"{", b"\xff", b"", b'{"author": "me"}\n{}', b"[" * 10**5])
def test_a_side_file_that_is_no_manifest_is_left_alone(path: Path, content: bytes) -> None:
    manifest_path(path).write_bytes(content)
    assert read(path) is None
    assert verify(path) is None
    with pytest.raises(FileExistsError, match=r"file.hdf5.json is there, and is no manifest"):
        record(path, TASK, URL)
    assert manifest_path(path).read_bytes() == content


def test_a_folder_in_a_manifests_place(path: Path) -> None:
    manifest_path(path).mkdir()
    assert verify(path) is None
    with pytest.raises(FileExistsError):
        record(path, TASK, URL)
