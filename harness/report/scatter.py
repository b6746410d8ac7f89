"""Cost against reward of a dataset's trajectories, for a terminal and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.report.style import BLUE, VERMILION, new_figure, save

Floats = NDArray[np.float64]

SHADES = " .:+*#@"
"""From none to many points."""


def text_scatter(costs: Floats, rewards: Floats, limits: Sequence[float], width: int = 64, height: int = 16) -> str:
    """How many trajectories lie where, cost to the right and reward upwards; ``|`` marks the cost limits.

    Args:
        costs: (T,) cost returns.
        rewards: (T,) reward returns.
        limits: marked where they lie within the range of costs.
        width: columns of the plot.
        height: its rows.
    """
    right = max([float(costs.max()), *limits])
    counts, _, _ = np.histogram2d(
        rewards, costs, bins=(height, width), range=[_range(rewards.min(), rewards.max()), _range(0.0, right)]
    )
    # One point is always seen; the darkest is the fullest.
    shades = np.ceil(np.sqrt(counts / max(counts.max(), 1)) * (len(SHADES) - 1)).astype(int)
    columns = {min(int(limit / max(right, 1e-9) * width), width - 1) for limit in limits}
    labels = {0: f"{rewards.max():.4g}", height - 1: f"{rewards.min():.4g}"}
    margin = max(len(label) for label in labels.values())
    lines = []
    for row in range(height):
        cells = [SHADES[shade] for shade in shades[height - 1 - row]]
        cells = ["|" if cell == " " and column in columns else cell for column, cell in enumerate(cells)]
        lines.append(f"{labels.get(row, ''):>{margin}} {''.join(cells)}".rstrip())
    axis = f"{'0':<{width // 2}}{f'cost {right:.4g}':>{width - width // 2}}"
    return "\n".join(["reward return", *lines, f"{'':>{margin}} {axis}"])


def _range(low: float, high: float) -> tuple[float, float]:
    return (float(low), float(high)) if high > low else (float(low) - 0.5, float(low) + 0.5)


def save_scatter(path: Path, title: str, costs: Floats, rewards: Floats, limits: Sequence[float]) -> None:
    """Write the same as a picture; the file's ending says which kind.

    Raises:
        ValueError: no such kind.
    """
    figure = new_figure(6, 4.5)
    axes = figure.add_subplot()
    axes.scatter(costs, rewards, s=12, alpha=0.5, linewidths=0, color=BLUE)
    for limit in limits:
        axes.axvline(limit, color=VERMILION, linewidth=0.8, linestyle="--")
        axes.annotate(
            f"{limit:g}",
            (limit, 1),
            xycoords=("data", "axes fraction"),
            xytext=(2, -2),
            textcoords="offset points",
            va="top",
            color=VERMILION,
        )
    axes.set(title=title, xlabel="cost return", ylabel="reward return")
    save(figure, path)
