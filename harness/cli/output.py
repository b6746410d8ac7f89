"""Files that commands write where the user says."""

from __future__ import annotations

from pathlib import Path

import click


def write_text(path: Path, text: str) -> None:
    """Write a file, and say so.

    Raises:
        UserError: it cannot be written.
    """
    from harness.errors import UserError
    from harness.files import replacing

    try:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror}") from error
    click.echo(f"Wrote {path}.", err=True)
