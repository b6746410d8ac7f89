"""Bring the hyperparameter tables of docs/algorithms/ up to date: python docs/write_hyperparameters.py [--check]."""

from __future__ import annotations

import sys
from pathlib import Path

from algorithms import BUILTINS
from harness import registry
from harness.report import hyperparameters
from harness.report.tables import markdown_table

PAGES = Path(__file__).parent / "algorithms"
BEGIN, END = "<!-- hyperparameters -->\n", "<!-- end -->\n"


def tables(name: str) -> str:
    """Defaults and bounds, and the published settings for tasks."""
    algorithm = registry.load(name)
    rows = [
        [f"`{row[0]}`", row[2], row[3] or ("" if row[1] in ("int", "float") else row[1]), row[4]]
        for row in hyperparameters.rows(algorithm)
    ]
    text = markdown_table(["name", "default", "bounds", ""], rows)
    special = [
        [pattern, ", ".join(f"`{key}` {value}" for key, value in values.items())]
        for pattern, values in hyperparameters.published(algorithm).items()
    ]
    if special:
        text += "\n\nPublished settings for tasks (a later line wins):\n\n" + markdown_table(
            ["task", "settings"], special
        )
    return text


def page(name: str) -> tuple[Path, str, str]:
    """A page, its text, and its text with the tables as they are now.

    Raises:
        ValueError: the page does not say where they go.
    """
    path = PAGES / f"{name}.md"
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{path} lacks {BEGIN.strip()} or {END.strip()}")
    return path, text, f"{before}{BEGIN}\n{tables(name)}\n\n{END}{after}"


def main() -> int:
    """Write the pages, or say which are out of date."""
    stale = []
    for name in BUILTINS:
        if name.startswith("osrl-"):
            continue  # one page for all, and our settings
        path, text, wanted = page(name)
        if text != wanted:
            stale.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(wanted, encoding="utf-8")
    print("\n".join(stale) or "all up to date")
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
