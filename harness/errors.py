"""What goes wrong that is nobody's mistake in this code, told in the user's words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

MOST_LETTERS = {"where": 300, "message": 1000}
"""Of what an error says: what the user gave is repeated to be recognised, not to be read."""


def shortened(text: str, most: int) -> str:
    """The text, or where it is longer its beginning and its end."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} ... ({len(text) - 2 * half} letters) ... {text[-half:]}"


class UserError(Exception):
    """The input is wrong: the command line prints the message alone and exits with status 2.

    Args:
        message: what is wrong and what to do about it.
        where: the place, such as ``suites/demo.yaml:12``; printed in front of the message.
    """

    def __init__(self, message: str, where: str | None = None) -> None:
        message = shortened(message, MOST_LETTERS["message"])
        super().__init__(f"{shortened(where, MOST_LETTERS['where'])}: {message}" if where else message)


class SuiteError(UserError):
    """Something in a suite is wrong; what the suite was read from turns the place into a file and a line.

    Args:
        message: what is wrong and what to do about it.
        place: the keys that lead there, such as ``"algorithms", "lspc"``.
    """

    def __init__(self, message: str, *place: str | int) -> None:
        self.place = place
        super().__init__(message)


@contextmanager
def at(*place: str | int, also: type[Exception] = UserError) -> Iterator[None]:
    """Give what is raised inside a place in the suite, unless it has one.

    Args:
        place: see :class:`SuiteError`.
        also: what is the suite's mistake there beside a :class:`UserError`.

    Raises:
        SuiteError: in the place of what is raised.
    """
    try:
        yield
    except SuiteError:
        raise
    except (UserError, also) as error:
        raise SuiteError(str(error), *place) from error


class DamageError(UserError):
    """A file does not hold what was written to it.

    Args:
        path: of the file.
        what: is wrong with it.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        super().__init__(f"damaged ({what})", where=str(path))


class ResultsError(Exception):
    """Results cannot be made or written; no cell is to blame, and it ends: the command line exits with status 1."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the known name nearest to ``name``, or an empty string when none is near."""
    spelled = {candidate.lower(): candidate for candidate in known}
    match = difflib.get_close_matches(name.lower(), spelled, n=1, cutoff=0.6)
    return f" Did you mean {spelled[match[0]]!r}?" if match else ""
