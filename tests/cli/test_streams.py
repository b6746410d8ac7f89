"""Standard streams that are closed, full, or lack a letter."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli.streams import _Lossy

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")


def run(redirection: str, command: str = "click.echo('a € b'); click.echo('c € d', err=True)") -> tuple[int, str, str]:
    """A command of ours in a shell with these redirections; exit status, standard output, standard error."""
    code = (
        f"import click; from harness.cli import main; main.command('x')(lambda: [{command.replace(';', ',')}]); main()"
    )
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "$CODE" x {redirection}'],
        env={**os.environ, "CODE": code},
        capture_output=True,
        text=True,
        errors="replace",
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("redirection", "status", "stdout", "stderr"),
    [
        ("> /dev/full", 1, "", "Error: cannot read or write standard output: No space left on device\n"),
        ("2> /dev/full", 0, "a € b\n", ""),
        (">&-", 0, "", "c € d\n"),
        ("2>&-", 0, "a € b\n", ""),
        ("<&- >&- 2>&-", 0, "", ""),
    ],
)
def test_full_and_closed_streams(redirection: str, status: int, stdout: str, stderr: str) -> None:
    assert run(redirection) == (status, stdout, stderr)


def test_nobody_who_reads_on() -> None:
    assert run("| true; exit ${PIPESTATUS[0]}", "click.echo('x' * 10**6)")[2] == ""


def test_an_encoding_without_the_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    assert run("") == (0, "a ? b\n", "c ? d\n")


def test_a_file_of_ours_never_takes_the_number_of_a_closed_stream() -> None:
    number = "click.echo(str(open('/dev/null').fileno()), err=True)"
    status, _, stderr = run(">&-", number)
    assert status == 0
    assert int(stderr) > 2


def test_what_cannot_be_written_is_lost() -> None:
    with Path("/dev/full").open("wb") as full:
        stream = io.TextIOWrapper(io.BufferedWriter(_Lossy(full.fileno(), "w", closefd=False)), line_buffering=True)
        assert stream.write("something\n") == 10
        stream.flush()
