"""Tables of strings line up, and whatever stands in a cell stays in it."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from harness.report.tables import markdown_table, text_table

cells = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=8).map(str.strip)
tables = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(cells, min_size=width, max_size=width), min_size=1, max_size=5)
)


def test_markdown_golden() -> None:
    assert markdown_table(["#", "policy", "reward"], [["1", "bc|all", "0.500"], ["-", "cdt", "-0.250"]]) == (
        "|   # | policy  | reward |\n"
        "| --: | ------- | -----: |\n"
        "|   1 | bc\\|all |  0.500 |\n"
        "|   - | cdt     | -0.250 |"
    )


def test_text_golden() -> None:
    assert text_table(["task", "done"], [["BallRun", "3 of 12"], ["CarRun", "12 of 12"]]) == (
        "task         done\nBallRun   3 of 12\nCarRun   12 of 12"
    )


def test_a_table_without_rows_is_its_header() -> None:
    assert markdown_table(["a", "long"], []) == "| a   | long |\n| --- | ---- |"
    assert text_table(["a", "long"], []) == "a  long"


@given(tables)
def test_a_markdown_table_can_be_read_back(rows: list[list[str]]) -> None:
    lines = markdown_table(rows[0], rows[1:]).split("\n")
    assert len({len(line) for line in lines}) == 1
    read = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert [[cell.replace("\\|", "|") for cell in line] for line in (read[0], *read[2:])] == rows
