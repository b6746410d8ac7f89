"""Standard streams that are closed, full, or lack a letter."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
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
        stream = io.TextIOWrapper(_Lossy(full.fileno(), "w", closefd=False), write_through=True)
        assert stream.write("something\n") == 10
        stream.flush()


def test_a_signal_speaks_while_something_is_written() -> None:
    """Its handler runs in the midst of a write that waits for a reader, of more than goes through at once."""
    reading, writing = os.pipe()
    code = (
        "import click, signal, threading, os\n"
        "from harness.cli.streams import standard_streams\n"
        "with standard_streams():\n"
        "    signal.signal(signal.SIGINT, lambda *_: click.echo('stopping', err=True))\n"
        "    threading.Timer(0.3, lambda: os.write(1, b'full')).start()\n"
        "    click.echo('x' * 300_000, err=True)\n"
        "    click.echo('end', err=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=writing)
    os.close(writing)
    assert process.stdout is not None
    with process, process.stdout, os.fdopen(reading, encoding="utf-8") as errors:
        assert process.stdout.read(4) == b"full"
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)  # the handler begins
        told = errors.read()
    assert process.returncode == 0
    assert told.count("x") == 300_000
    assert "stopping\n" in told
    assert told.endswith("end\n")
