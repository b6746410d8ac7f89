"""Draw a suite's leaderboard, reward against cost: python docs/draw_leaderboard.py RESULTS OUTPUT.png."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from harness.report.leaderboard import Leaderboard, make_leaderboard
from harness.store import Store
from harness.tasks import find_task


def draw(board: Leaderboard, path: Path) -> None:
    """One panel a task: normalised cost to the right, normalised reward up, the safe side shaded."""
    figure, panels = plt.subplots(1, len(board.tasks), figsize=(4.2 * len(board.tasks), 3.6), squeeze=False)
    colours = {row: f"C{index}" for index, row in enumerate(sorted(row for _, row, _ in board.overall))}
    for panel, (task, rows) in zip(panels[0], board.tasks.items(), strict=True):
        panel.axvspan(-10, 1, color="#e8f3e8", zorder=0)
        panel.axvline(1, color="#5a8f5a", linewidth=1)
        for _, row, score in rows:
            panel.scatter(score.cost, score.reward, s=70, color=colours[row], label=row, zorder=2)
        widest = max(1.2, *(score.cost for _, _, score in rows))
        panel.set(title=find_task(task).name, xlabel="normalised cost (safe: at most 1)", ylabel="normalised reward")
        panel.set_xlim(-0.12 * widest, 1.12 * widest)
        panel.margins(y=0.2)
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"Suite {board.suite}, {', '.join(sorted(set(board.data.values())))}", fontsize=10)
    figure.tight_layout()
    handles = {dot.get_label(): dot for panel in panels[0] for dot in panel.get_legend_handles_labels()[0]}
    ordered = [row for _, row, _ in board.overall if row in handles]
    named = [handles[row] for row in ordered]
    figure.legend(named, ordered, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9)
    figure.savefig(path, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    store = Store.existing(Path(sys.argv[1]))
    draw(make_leaderboard(store, store.plans()[0]), Path(sys.argv[2]))
