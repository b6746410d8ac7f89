"""Tables of strings, as Markdown or as aligned text, and of records as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import Any


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in plain text, too; numbers to the right."""
    right = [_numeric([row[index] for row in rows]) for index in range(len(header))]
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[index]) for row in escaped)) for index in range(len(header))]
    rule = [f"{'-' * (width - 1)}:" if to_right else "-" * width for width, to_right in zip(widths, right, strict=True)]
    lines = [escaped[0], rule, *escaped[1:]]
    return "\n".join(f"| {' | '.join(_pad(line, widths, right))} |" for line in lines)


MEANING = re.compile(r"[\\`*$~]|<(?=[A-Za-z/!?])|&(?=#?\w+;)|\](?=[(\[:])|(?<!\w)_|_(?!\w)|^[#>]|\n")
"""What Markdown may read as more than text."""


def markdown_text(text: str) -> str:
    """A text of anyone's as one line that Markdown shows as it is; in a table, which escapes its bars, or outside."""
    return MEANING.sub(lambda found: " " if found[0] == "\n" else f"\\{found[0]}", text)


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns for a terminal, two spaces apart; numbers to the right."""
    right = [_numeric([row[index] for row in rows]) for index in range(len(header))]
    widths = [max(len(row[index]) for row in (header, *rows)) for index in range(len(header))]
    return "\n".join("  ".join(_pad(line, widths, right)).rstrip() for line in (header, *rows))


def csv_table(records: Sequence[dict[str, Any]]) -> str:
    """Records with the same keys as CSV under a header; nothing where there is none."""
    text = io.StringIO()
    if records:
        writer = csv.DictWriter(text, fieldnames=list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    return text.getvalue()


def _pad(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> list[str]:
    return [
        cell.rjust(width) if to_right else cell.ljust(width)
        for cell, width, to_right in zip(cells, widths, right, strict=True)
    ]


NUMBER = re.compile(r"-?|-?[\d.]+(e[+-]?\d+)?%?( (of|to) -?[\d.]+)?")


def _numeric(cells: Sequence[str]) -> bool:
    return bool(cells) and all(NUMBER.fullmatch(cell) for cell in cells)
