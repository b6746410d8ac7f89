"""Suites and ``--set`` as no one would write them: refused or read, in one line, and soon."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_suites import GOOD, Case, cases, fault


def test_no_mutated_suite_ends_in_a_traceback(tmp_path: Path) -> None:
    """Some hundreds, always the same; for more: ``python -m tests.fuzz_suites 5000 SEED``."""
    wrong = {number: problem for number, case in enumerate(islice(cases(0), 250)) if (problem := fault(case, tmp_path))}
    assert wrong == {}


def test_the_suite_that_is_mutated_is_good(tmp_path: Path) -> None:
    assert fault(Case(GOOD), tmp_path) == ""


@pytest.mark.parametrize(
    ("raised", "told"),
    [(KeyError("x"), "KeyError: 'x'"), (SystemExit(1), "exit status 1"), (SystemExit(2), "an error")],
)
def test_what_is_wrong_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, told: str
) -> None:
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr("harness.plan.make_plan", fail)
    assert fault(Case(GOOD), tmp_path).startswith(told)


def test_what_hangs_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: object) -> None:
        while True:
            pass

    monkeypatch.setattr("harness.plan.make_plan", hang)
    assert fault(Case(GOOD), tmp_path, seconds=1) == "TimeoutError: more than 1 s"
