"""Whatever a dataset file holds, it is read or refused in words: tests/fuzz_hdf5.py with a fixed seed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import fuzz_hdf5
import pytest
from fuzz_hdf5 import GOOD, WAYS, Draft, apart, array, explore, problem


def test_no_dataset_file_ends_in_a_traceback(tmp_path: Path) -> None:
    tried = list(explore(tmp_path, 250, 0))
    assert {number: told for number, _, told in tried if told} == {}
    assert {how for _, draft, _ in tried for how in draft.how} == {way.__name__.strip("_") for way in WAYS}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good file."""
    path = tmp_path / "file.hdf5"
    Draft({key: array(values) for key, values in GOOD.items()}).write(path)
    return path


def test_the_file_that_is_changed_is_good(path: Path) -> None:
    assert problem(path) == apart(path) == ""
    assert path.with_name("converted.hdf5").exists()


def hang() -> None:
    while True:
        pass


@pytest.mark.parametrize(
    ("fails", "told"),
    [
        (lambda: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "it ends by signal 11"),
        (hang, "it ends by signal 9"),
        (lambda: b"x" * (300 << 20), "it takes "),
        (lambda: bytearray(5 << 30), "MemoryError"),
    ],
)
def test_what_is_wrong_is_found(path: Path, monkeypatch: pytest.MonkeyPatch, fails: object, told: str) -> None:
    def instead(_: Path) -> str:
        assert callable(fails)
        fails()
        return ""

    monkeypatch.setattr(fuzz_hdf5, "problem", instead)
    assert apart(path, seconds=2 if fails is hang else fuzz_hdf5.SECONDS, memory=50 << 20).startswith(told)
