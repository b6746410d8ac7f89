"""Whatever a dataset file holds, it is read or refused in words: tests/fuzz_hdf5.py with a fixed seed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from fuzz_hdf5 import GOOD, SECONDS, WAYS, Draft, apart, array, explore, problem


@pytest.fixture(scope="module")
def fresh() -> Iterator[Executor]:
    """A process that nothing has run in: what other tests have freed here would hide what a case takes."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        yield process


def explored(folder: Path) -> list[tuple[int, list[str], str]]:
    return list(explore(folder, 250, 0))


def test_no_dataset_file_ends_in_a_traceback(fresh: Executor, tmp_path: Path) -> None:
    tried = fresh.submit(explored, tmp_path).result()
    assert {number: told for number, _, told in tried if told} == {}
    assert {way for _, how, _ in tried for way in how} == {way.__name__.strip("_") for way in WAYS}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good file."""
    path = tmp_path / "file.hdf5"
    Draft({key: array(values) for key, values in GOOD.items()}).write(path)
    return path


def test_the_file_that_is_changed_is_good(fresh: Executor, path: Path) -> None:
    assert fresh.submit(problem, path).result() == fresh.submit(apart, path).result() == ""
    assert path.with_name("converted.hdf5").exists()


def raises(_: Path) -> str:
    return str(1 / 0)


def crashes(_: Path) -> str:
    os.kill(os.getpid(), signal.SIGSEGV)
    return ""


def hangs(_: Path) -> str:
    while True:
        pass


def takes(_: Path) -> str:
    return "" if bytearray(b"x") * (300 << 20) else "nothing"


def takes_too_much(_: Path) -> str:
    return "" if bytearray(5 << 30) else "nothing"


@pytest.mark.parametrize(
    ("find", "told"),
    [
        (raises, "ZeroDivisionError: division by zero"),
        (crashes, "it ends by signal 11"),
        (hangs, "it ends by signal 9"),
        (takes, "it takes "),
        (takes_too_much, "MemoryError"),
    ],
)
def test_what_is_wrong_is_found(fresh: Executor, path: Path, find: Callable[[Path], str], told: str) -> None:
    seconds = 2 if find is hangs else SECONDS
    assert fresh.submit(apart, path, seconds, 50 << 20, find).result().startswith(told)
