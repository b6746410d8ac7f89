"""Bring docs/plugins.md up to date with what 'lspc-bench new' writes: python docs/write_plugin.py [--check]."""

from __future__ import annotations

import sys
from pathlib import Path

from harness.scaffold.project import files

PAGE = Path(__file__).parent / "plugins.md"
NAME = "my-clone"
SHOWN = {"pyproject.toml": "toml", "my_clone.py": "python"}
"""The files that the page shows, and their languages."""
END = "<!-- end -->\n"


def shown(path: str, text: str) -> str:
    """A file as the page has it; of pyproject.toml what announces the class."""
    if path == "pyproject.toml":
        _, entry, rest = text.partition('[project.entry-points."lspc_bench.algorithms"]\n')
        text = entry + rest.partition("\n\n")[0] + "\n"
    return f"```{SHOWN[path]}\n# {NAME}/{path}\n{text}```\n"


def page(text: str) -> str:
    """The page's text with the files as they are now.

    Raises:
        ValueError: it does not say where they go.
    """
    written = files(NAME, "transitions")
    for path in SHOWN:
        mark = f"<!-- {path} -->\n"
        before, begin, rest = text.partition(mark)
        _, end, after = rest.partition(END)
        if not (begin and end):
            raise ValueError(f"{PAGE} lacks {mark.strip()} or {END.strip()}")
        text = f"{before}{mark}\n{shown(path, written[path])}\n{END}{after}"
    return text


def main() -> int:
    """Write the page, or say that it is out of date."""
    text = PAGE.read_text(encoding="utf-8")
    wanted = page(text)
    stale = text != wanted
    if stale and "--check" not in sys.argv:
        PAGE.write_text(wanted, encoding="utf-8")
    print(f"{PAGE.name} was out of date" if stale else "up to date")
    return int(stale and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
