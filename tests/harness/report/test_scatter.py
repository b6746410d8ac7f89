"""The scatter shows every trajectory, where it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from harness.report.scatter import SHADES, save_scatter, text_scatter

POINTS = st.lists(st.tuples(st.floats(0, 1e4), st.floats(-1e4, 1e4)), min_size=1, max_size=30)


@given(POINTS, st.lists(st.floats(0, 1e4), min_size=1, max_size=3))
def test_every_point_is_seen_whatever_the_range(points: list[tuple[float, float]], limits: list[float]) -> None:
    costs, rewards = np.array(points).T
    lines = text_scatter(costs, rewards, limits, width=30, height=8).splitlines()
    assert len(lines) == 10
    assert lines[0] == "reward return"
    margin = len(lines[-1]) - 31
    cells = [line[margin + 1 :] for line in lines[1:9]]
    shown = sum(cell in SHADES[1:] for line in cells for cell in line)
    assert 1 <= shown <= len(points)
    assert all(len(line) <= 30 for line in cells)


def test_places_and_shades() -> None:
    costs = np.array([0.0, 0.0, 0.0, 0.0, 9.9, 5.0])
    rewards = np.array([0.0, 0.0, 0.0, 0.0, 9.9, 5.0])
    rows = text_scatter(costs, rewards, [2.5, 10.0], width=10, height=5).splitlines()
    assert rows[1:6] == [
        "9.9   |      +",
        "      |      |",
        "      |  +   |",
        "      |      |",
        "  0 @ |      |",
    ]
    assert rows[6] == "    0    cost 10"


def test_a_picture_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    values = np.arange(10.0)
    save_scatter(tmp_path / "a.png", "a title", values, values, [5])
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (900, 675)
    with pytest.raises(ValueError, match="doc"):
        save_scatter(tmp_path / "a.doc", "a title", values, values, [5])
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
