"""Pictures of a suite's results: reward against cost, and learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.plan import Plan
from harness.report.curves import learning_curves
from harness.report.leaderboard import Leaderboard
from harness.report.style import GREEN, SAFE, new_figure, row_styles, save
from harness.statistics import checkpoint_episodes
from harness.store import Results

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REWARD, COST = "normalised reward", "normalised cost (safe: at most 1)"
COSTS = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


def save_plane(board: Leaderboard, plan: Plan, path: Path, texts: Mapping[str, str] | None = None) -> None:
    """Draw each policy's reward against its cost, a panel a task, the safe side shaded.

    Costs up to 1 are drawn to scale, larger ones logarithmically. A policy that lacks runs is hollow. The picture holds
    the texts, by name.
    """
    columns = min(len(board.tasks), 2)
    lines = -(-len(board.tasks) // columns)
    figure = new_figure(4.2 * columns, 3.3 * lines + 0.8)
    panels = figure.subplots(lines, columns, squeeze=False)
    styles = row_styles(row for planned in plan.cells for row in planned.rows.values())
    for panel in panels.flat[len(board.tasks) :]:
        panel.set_visible(False)
    for panel, (task, rows) in zip(panels.flat, board.tasks.items(), strict=False):
        panel.axvspan(-1, 1, color=SAFE, zorder=0)
        panel.axvline(1, color=GREEN, linewidth=1)
        scores = {row.policy: row.score for row in rows if row.score is not None}
        for policy, score in scores.items():
            style = styles[policy] | {"linestyle": "none"} | ({} if score.complete else {"fillstyle": "none"})
            panel.plot(score.cost, score.reward, **style, markersize=8, label=policy)
        panel.set(title=board.names[task], xlabel=COST, ylabel=REWARD)
        _cost_scale(panel, "x", [score.cost for score in scores.values()])
        panel.margins(y=0.15)
    _finish(figure, panels.flat, styles, board)
    save(figure, path, texts=texts)


def save_curves(
    results: Results, board: Leaderboard, plan: Plan, path: Path, texts: Mapping[str, str] | None = None
) -> None:
    """Draw reward and cost against training, two panels a task, a line a row and a band of 95% over seeds.

    The picture holds the texts, by name.
    """
    curves = learning_curves(checkpoint_episodes(results, plan))
    figure = new_figure(8.4, 2.4 * len(board.tasks) + 1.2)
    panels = figure.subplots(len(board.tasks), 2, squeeze=False)
    styles = row_styles(row for planned in plan.cells for row in planned.rows.values())
    for (reward, cost), task in zip(panels, board.tasks, strict=True):
        here = curves[curves["task"] == task]
        for row, curve in here.groupby("row", sort=False):
            for panel, name in ((reward, "reward"), (cost, "cost")):
                _curve(panel, curve, name, str(row), styles[str(row)])
        cost.axhspan(-1, 1, color=SAFE, zorder=0)
        cost.axhline(1, color=GREEN, linewidth=1)
        _cost_scale(cost, "y", here["cost"].tolist())
        reward.set(title=board.names[task], ylabel=REWARD)
        cost.set(title=f"{board.names[task]} (safe: at most 1)", ylabel="normalised cost")
    for panel in panels.flat:
        panel.set_xlim(0, 1.03)
    for panel in panels[-1]:
        panel.set(xlabel="share of the training steps")
    _finish(figure, panels.flat, styles, board)
    save(figure, path, dpi=110, texts=texts)


def _curve(panel: Axes, curve: pd.DataFrame, name: str, row: str, style: Mapping[str, Any]) -> None:
    ordered = curve.sort_values("share")
    share, mean = ordered["share"], ordered[name]
    often = max(1, len(ordered) // 5)
    panel.plot(share, mean, **style, linewidth=1.4, markersize=4.5, markevery=(-1 % often, often), label=row)
    panel.fill_between(
        share, ordered[f"{name}_low"], ordered[f"{name}_high"], color=style["color"], alpha=0.12, linewidth=0
    )


def _cost_scale(panel: Axes, axis: str, costs: Sequence[float]) -> None:
    """To scale up to 1, logarithmic beyond."""
    most = max([1.2, *costs])
    ticks = [cost for cost in COSTS if cost <= 1.3 * most]
    getattr(panel, f"set_{axis}scale")("symlog", linthresh=1, linscale=1)
    getattr(panel, f"set_{axis}ticks")(ticks, [f"{tick:g}" for tick in ticks])
    getattr(panel, f"set_{axis}ticks")([], minor=True)
    getattr(panel, f"set_{axis}lim")(-0.08, 1.3 * most)


def _finish(figure: Figure, panels: Any, styles: Mapping[str, Any], board: Leaderboard) -> None:
    """One legend for all panels, and what was trained on."""
    handles: dict[str, Any] = {}
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        for handle, row in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(row, handle)
    rows = [row for row in styles if row in handles]
    if rows:
        named = [handles[row] for row in rows]
        figure.legend(named, rows, loc="outside lower center", ncols=min(4, len(rows)), frameon=False, fontsize=9)
    figure.suptitle(f"Suite {board.suite}: {', '.join(sorted(set(board.data.values())))}", fontsize=10)
