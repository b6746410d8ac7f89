"""Files that commands write where the user says."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import pandas as pd


def write_text(path: Path, text: str) -> None:
    """Write a file, and say so.

    Raises:
        UserError: it cannot be written.
    """
    _write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write a table as CSV, or as parquet where the name ends so, and say so.

    Raises:
        UserError: it cannot be written.
    """
    if path.suffix.lower() == ".parquet":
        _write(path, lambda temporary: temporary.write_bytes(frame.to_parquet(index=False)))
    else:
        _write(path, lambda temporary: frame.to_csv(temporary, index=False, lineterminator="\n"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, and say so.

    Raises:
        UserError: it cannot be written.
    """
    _write(path, lambda temporary: temporary.write_bytes(content))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    from harness.files import replacing, where_the_user_says

    with where_the_user_says(path):
        if path.exists() and not path.is_file() and not path.is_dir():  # a pipe or a device, whose place no file takes
            write(path)
        else:
            with replacing(Path(os.path.realpath(path))) as temporary:  # a link stays one
                write(temporary)
    click.echo(f"Wrote {path}.", err=True)


def hand_out(text: str, path: Path | None) -> None:
    """Write a file, or to standard output where no file is named.

    Raises:
        UserError: it cannot be written.
    """
    if path is None:
        click.echo(text, nl=False)
    else:
        write_text(path, text)
