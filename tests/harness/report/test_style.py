"""Rows can be told apart in a picture, without colour, too."""

from __future__ import annotations

from harness.report.page.charts import SHAPES
from harness.report.style import COLOURS, LINES, MARKERS, row_styles

ROWS = ["lspc-s [lspc]", "lspc-o [lspc]", "lspc-s [lspc-live]", "lspc-o [lspc-live]"]
ROWS += ["bc-all", "bc-safe", "bcq-lag", "bear-lag", "cpq", "coptidice", "cdt"]
ROWS += ["caps-iql", "caps-sac", "ccac", "fisor", "trac"]


def test_rows_differ_with_and_without_colour() -> None:
    styles = row_styles(ROWS)
    assert list(styles) == ROWS
    assert len({tuple(style.values()) for style in styles.values()}) == len(ROWS)
    hollow = {row: style["markerfacecolor"] == "white" for row, style in styles.items()}
    assert len({(style["marker"], hollow[row]) for row, style in styles.items()}) == len(ROWS)


def test_a_variant_looks_like_its_policy() -> None:
    styles = row_styles(ROWS)
    plain, variant = styles["lspc-o [lspc]"], styles["lspc-o [lspc-live]"]
    assert (plain["color"], plain["marker"]) == (variant["color"], variant["marker"])
    assert plain["linestyle"] != variant["linestyle"]
    assert variant["markerfacecolor"] == "white"


def test_more_rows_than_colours_have_other_lines() -> None:
    assert len(set(COLOURS)) == len(COLOURS) < len(set(MARKERS)) == len(MARKERS)
    styles = row_styles(f"policy-{index}" for index in range(len(COLOURS) * len(LINES)))
    assert len({tuple(style.values()) for style in styles.values()}) == len(styles)


def test_every_marker_has_its_shape_on_the_page() -> None:
    assert set(SHAPES) == set(MARKERS)
    assert len(set(SHAPES.values())) == len(MARKERS)
