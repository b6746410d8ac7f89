"""Suites and ``--set`` as no one would write them: refused or read, in one line, and soon."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
from fuzz_suites import GOOD, Case, cases, problem


def test_no_mutated_suite_ends_in_a_traceback(tmp_path: Path) -> None:
    """Some hundreds, always the same; for more: ``python tests/fuzz_suites.py --cases 5000 --seed SEED``."""
    wrong = {number: told for number, case in enumerate(islice(cases(0), 250)) if (told := problem(case, tmp_path))}
    assert wrong == {}


def test_the_suite_that_is_mutated_is_good(tmp_path: Path) -> None:
    assert problem(Case(GOOD), tmp_path) == ""


@pytest.mark.parametrize(
    ("raised", "told"),
    [(KeyError("x"), "KeyError: 'x'"), (SystemExit(1), "exit status 1"), (SystemExit(2), "an error")],
)
def test_what_is_wrong_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, told: str
) -> None:
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr("harness.planning.make_plan", fail)
    assert problem(Case(GOOD), tmp_path).startswith(told)


def test_what_hangs_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: object) -> None:
        while True:
            pass

    monkeypatch.setattr("harness.planning.make_plan", hang)
    assert problem(Case(GOOD), tmp_path, seconds=5) == "it takes more than 5 s"
