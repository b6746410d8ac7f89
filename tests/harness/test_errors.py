"""harness.errors: errors that know their place in a suite."""

from __future__ import annotations

import pytest

from harness.errors import SuiteError, UserError, at


def test_an_error_keeps_the_innermost_place() -> None:
    with pytest.raises(SuiteError, match="wrong") as caught, at("algorithms"), at("algorithms", "bc"):
        raise UserError("wrong")
    assert caught.value.place == ("algorithms", "bc")
    assert isinstance(caught.value.__cause__, UserError)


def test_what_is_not_the_suites_mistake_goes_by() -> None:
    with pytest.raises(KeyError), at("algorithms"):
        raise KeyError("a bug")
    with pytest.raises(SuiteError, match="late"), at("algorithms", also=TimeoutError):
        raise TimeoutError("late")
