"""Texts in LaTeX print what they are, and tables of them are tables."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from latex_check import check_latex

from harness.report.latex import SIGNS, escape, table

UNDONE = {latex: sign for sign, latex in SIGNS.items() if sign != "\n"}
PIECE = re.compile("|".join(map(re.escape, sorted(UNDONE, key=len, reverse=True))))
texts = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=20).filter(
    lambda text: len(text.splitlines()) < 2
)


@given(texts)
def test_what_is_escaped_can_be_read_back(text: str) -> None:
    assert PIECE.sub(lambda found: UNDONE[found[0]], escape(text)) == text


@given(st.lists(st.lists(texts.map(str.strip), min_size=3, max_size=3), max_size=4), texts)
def test_a_table_of_anything_is_a_table(rows: list[list[str]], caption: str) -> None:
    cells = [[escape(cell) for cell in row] for row in rows]
    made = table("lrc", [r"a & b & c \\"], [cells], escape(caption), [escape(caption)])
    (read,) = check_latex(made)
    assert read == [["a", "b", "c"], *cells]


def test_signs_of_latex() -> None:
    assert escape("50% & $x_1$ {a} #2 ^~ \\") == (
        r"50\% \& \$x\_1\$ \{a\} \#2 \textasciicircum{}\textasciitilde{} \textbackslash{}"
    )
    assert escape("a--b [x]* a <= b\nc") == r"a-{-}b {[}x{]}{*} a \textless{}= b c"
