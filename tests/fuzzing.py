"""What the fuzzers share: what may come of a command, whatever it is given."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from click.testing import CliRunner

from harness.cli import main

MOST_LETTERS = 2000
"""Of an error: more is not read."""


class Hang(BaseException):
    """No Exception: what is tried may catch those."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """End the block after so many seconds.

    Raises:
        Hang: it was not done.
    """

    def hang(*_: object) -> None:
        raise Hang(f"it takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fault(arguments: Sequence[str], named: str, seconds: int = 60) -> str:
    """What is wrong with what comes of a command; empty where nothing is.

    Right is exit status 0, or 2 with an error of reasonable length; never a traceback, never a hang.

    Args:
        arguments: of the command line.
        named: what an error has to say, such as ``Error: `` or the file that is meant.
        seconds: after which it counts as hanging.
    """
    try:
        with limited(seconds):
            done = CliRunner().invoke(main, arguments)
    except Hang as error:
        return str(error)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        return f"{type(done.exception).__name__}: {done.exception}"
    if done.exit_code not in (0, 2):
        return f"exit status {done.exit_code}"
    if done.exit_code == 2 and not (named in done.stderr and len(done.stderr) < MOST_LETTERS):
        return f"an error of {len(done.stderr)} letters: {done.stderr[:100]!r}"
    strange = {letter for letter in done.output if not letter.isprintable() and letter != "\n"}
    return f"it prints {sorted(strange)}" if strange else ""
