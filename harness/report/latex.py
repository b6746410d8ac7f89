"""LaTeX: texts that mean only themselves, and tables with booktabs' rules."""

from __future__ import annotations

import re
from collections.abc import Sequence

SIGNS = {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    '"': r"\textquotedbl{}",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    # At a row's beginning these would be arguments of the \\ before it; two hyphens would be a dash.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "-": "{-}",
    "\n": " ",
} | {sign: f"\\{sign}" for sign in "{}$&#%_"}
SPECIAL = re.compile("|".join(map(re.escape, sorted(set(SIGNS) - {"-"}))) + "|(?<=-)-")

PREAMBLE = r"% In the preamble: \usepackage[T1]{fontenc} \usepackage{textcomp,booktabs,xcolor,graphicx}"
UNUSUAL = "% It has letters beyond ASCII: compile it with LuaLaTeX or XeLaTeX and a font that has them."


def escape(text: str) -> str:
    """A text of anyone's as LaTeX that prints it."""
    return SPECIAL.sub(lambda found: SIGNS[found[0]], text)


def bold(text: str) -> str:
    """Of LaTeX, LaTeX."""
    return rf"\textbf{{{text}}}"


def coloured(text: str, colour: str) -> str:
    """Of LaTeX, LaTeX."""
    return rf"\textcolor{{{colour}}}{{{text}}}"


def table(
    columns: str, header: Sequence[str], groups: Sequence[Sequence[Sequence[str]]], caption: str, notes: Sequence[str]
) -> str:
    """A float that spans the page, no wider than it.

    Args:
        columns: their alignment, such as ``lrr``.
        header: lines of LaTeX between the upper rules.
        groups: rows of cells of LaTeX, with a rule between groups.
        caption: LaTeX.
        notes: LaTeX, a paragraph each under the table.
    """
    body = "\n\\midrule\n".join("\n".join(f"{' & '.join(row)} \\\\" for row in group) for group in groups if group)
    lines = [
        r"\begin{table*}",
        r"\centering",
        rf"\caption{{{caption}}}",
        r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        *header,
        r"\midrule",
        *([body] if body else []),
        r"\bottomrule",
        r"\end{tabular}}",
        *(rf"\par\smallskip{{\footnotesize {note}\par}}" for note in notes),
        r"\end{table*}",
    ]
    return "\n".join(lines)
