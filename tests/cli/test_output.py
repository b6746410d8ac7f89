"""Files that commands write where the user says."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from harness.cli.output import write_frame, write_text
from harness.errors import ResultsError


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link.txt"
    link.symlink_to("there/file.txt")
    for text in ("new", "again"):
        write_text(link, text)
        assert link.is_symlink()
        assert (tmp_path / "there" / "file.txt").read_text() == text
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["file.txt"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_nothing_takes_the_place_of_a_pipe(tmp_path: Path, suffix: str) -> None:
    pipe = tmp_path / f"pipe.{suffix}"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        write_frame(pipe, pd.DataFrame({"number": [1]}))
        said = reader.communicate()[0]
    assert pipe.is_fifo()
    assert said.startswith({"csv": b"number\n1\n", "parquet": b"PAR1"}[suffix])


def test_a_full_disk_is_not_the_users_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ResultsError, match=r"cannot write '.*table.md': No space left on device"):
        write_text(tmp_path / "table.md", "text")
    assert list(tmp_path.iterdir()) == []
