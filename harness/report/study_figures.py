"""The figures of the studies, each drawn from its table alone.

A policy keeps its colour and marker, and a variant of its algorithm has another line. Whiskers are 95% intervals over
seeds.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from harness.report.style import new_figure, row_styles
from harness.tasks import all_names, all_tasks, find_task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Style = dict[str, Any]
LIMIT: Style = {"color": "#666666", "linewidth": 0.9, "linestyle": (0, (1, 2)), "zorder": 0}
SIZES: Any = {"font.size": 8, "axes.titlesize": 9, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7}
NAMES = {
    "reward": "normalised reward",
    "cost": "normalised cost (safe: at most 1)",
    "episode_cost": "cost of an episode",
    "violation": "share of episodes above the limit",
    "gap": "return gap to the best\nwith all the data",
    "gap_reference": "return gap to DSRL's\nhighest return",
    "share": "share of all trajectories",
    "safe_share": "share of the safe trajectories",
    "density": "density (DSRL's filter)",
    "noise": "noise (standard deviations)",
    "outliers": "share of disguised trajectories",
    "trajectories": "trajectories",
    "limit": "cost limit",
}


def tradeoff(table: pd.DataFrame, title: str) -> Figure:
    """Reward against an episode's cost: a row of panels a setting; methods that vary with the limit are in each."""
    settings = [name for name in table["setting"].unique() if name not in ("", "limit")] or ["limit"]
    styles = _styles(table["method"])
    figure, panels = _panels(settings, table["task"].unique(), 2.6)
    for (setting, task), axes in panels.items():
        here = table[(table["task"] == task) & table["setting"].isin([setting, "limit", ""])]
        for method, curve in _pairs(here, "method", "setting"):
            mine = here[(here["method"] == method) & (here["setting"] == curve)].sort_values("value")
            x, y = (mine[mine["metric"] == metric] for metric in ("episode_cost", "reward"))
            axes.errorbar(x["mean"], y["mean"], _whiskers(y), _whiskers(x), **styles[method])
            for end in (0, -1) if curve else ():
                at, text = (x["mean"].iloc[end], y["mean"].iloc[end]), f"{x['value'].iloc[end]:g}"
                colour = styles[method]["color"]
                axes.annotate(text, at, (4, 4), textcoords="offset points", fontsize=7, color=colour)
        for limit in _limits(task):
            axes.axvline(limit, **LIMIT)
        axes.set_title(f"{task}: {' = '.join(setting.split())}")
        axes.set(xlabel=NAMES["episode_cost"], ylabel=NAMES["reward"])
    return _finished(figure, panels, title, f"{_data(table)}; dotted: the task's limits; numbers: a curve's ends")


def over_settings(table: pd.DataFrame, title: str) -> Figure:
    """Reward, and below it cost, as each setting varies, a column of panels a task and setting."""
    pairs = _pairs(table[table["setting"] != ""], "setting", "task")
    styles = _styles(table["method"])
    figure, panels = _panels(["reward", "cost"], pairs, 2.9)
    for (metric, (setting, task)), axes in panels.items():
        here = table[(table["task"] == task) & (table["setting"] == setting) & (table["metric"] == metric)]
        _curves(axes, here, styles)
        _axis(axes, here["value"])
        axes.set(title=task, xlabel=NAMES.get(setting, setting), ylabel=NAMES[metric])
        if metric == "cost":
            axes.axhline(1, **LIMIT)
    return _finished(figure, panels, title, f"{_data(table)}; dotted: the limit")


def samples(table: pd.DataFrame, title: str) -> Figure:
    """Return gaps and violations over the number of trajectories, beside 1 / sqrt(n)."""
    styles = _styles(table["method"])
    figure, panels = _panels(["gap", "gap_reference", "violation"], table["task"].unique(), 2.9)
    for (metric, task), axes in panels.items():
        here = table[(table["task"] == task) & (table["metric"] == metric)]
        _curves(axes, here, styles)
        if len(here):
            counts = np.sort(here["value"].unique())
            top = here.loc[here["value"] == counts[0], "mean"].max()
            rate: Style = {"color": "#000000", "linewidth": 0.9, "linestyle": (0, (6, 3)), "label": "1 / sqrt(n)"}
            axes.plot(counts, top * np.sqrt(counts[0] / counts), **rate)
        _axis(axes, here["value"])
        axes.set_yscale("symlog", linthresh=0.02)
        axes.set(title=task, xlabel=NAMES["trajectories"], ylabel=NAMES[metric])
    note = "axes are logarithmic, but for values below 0.02; 1 / sqrt(n) begins at the highest first point"
    return _finished(figure, panels, title, f"{_data(table)}; {note}")


def limits(table: pd.DataFrame, title: str) -> Figure:
    """Episode cost, violations and reward over the limit that a policy is judged by, or told."""
    styles = _styles(table["method"])
    figure, panels = _panels(["episode_cost", "violation", "reward"], table["task"].unique(), 2.9)
    for (metric, task), axes in panels.items():
        here = table[(table["task"] == task) & (table["metric"] == metric)]
        _curves(axes, here, styles)
        _axis(axes, here["value"])
        if metric == "episode_cost":
            values = np.sort(here["value"].unique())
            axes.plot(values, values, **LIMIT)
            axes.set_yscale("symlog", linthresh=2.5)
        axes.set(title=task, xlabel=NAMES["limit"], ylabel=NAMES[metric])
    return _finished(figure, panels, title, f"{_data(table)}; dotted: cost equal to the limit")


def selection(table: pd.DataFrame, title: str) -> Figure:
    """Regret and violations of each rule, over all policies."""
    chosen = {"checkpoint": "which checkpoint of a policy", "policy": "which policy"}
    table = table[table["policy"] == ""]
    rules = list(table["rule"].unique())
    styles = _styles(rules)
    figure, panels = _panels(["regret", "violations"], [of for of in chosen if of in set(table["of"])], 1.8)
    for (metric, of), axes in panels.items():
        here = table[table["of"] == of].set_index("rule")
        for place, rule in enumerate(rule for rule in rules if rule in here.index):
            one = here.loc[rule]
            low, high = (one["regret_low"], one["regret_high"]) if metric == "regret" else (np.nan, np.nan)
            whiskers = _whiskers(pd.DataFrame({"mean": [one[metric]], "low": [low], "high": [high]}))
            axes.errorbar([one[metric]], [place], xerr=whiskers, **{**styles[rule], "linestyle": ""})
        present = [rule for rule in rules if rule in here.index]
        axes.set_yticks(range(len(present)), present)
        axes.invert_yaxis()
        axes.axvline(0, **LIMIT)
        name = "regret (normalised reward)" if metric == "regret" else "share of runs whose choice costs too much"
        axes.set(title=chosen[of], xlabel=name)
    return _finished(figure, {}, title, _data(table))


def scaling(table: pd.DataFrame, title: str) -> Figure:
    """Milliseconds of an update and of an action over the size of observations."""
    names = {"update_ms": "an update", "act_ms": "an action"}
    figure, panels = _panels(["ms"], [name for name in names if name in set(table["metric"])], 4.2, 5.2)
    renamed = table.rename(columns={"median": "mean", "observation_size": "value"})
    for (_, metric), axes in panels.items():
        here = renamed[renamed["metric"] == metric]
        _curves(axes, here, _styles(here["method"]))
        _axis(axes, here["value"])
        axes.set_yscale("log")
        axes.set(title=names[metric], xlabel="numbers in an observation", ylabel="milliseconds of CPU time")
        axes.legend(fontsize=7, frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    (machine,) = table["machine"].unique()
    sizes = " and ".join(map(str, table["batch_size"].unique()))
    note = f"{machine}, time of one thread; made-up data, batches of {sizes}; median and quartiles over rounds"
    return _finished(figure, {}, title, note)


# What they share


@contextmanager
def small_text() -> Iterator[None]:
    """Inside the block, figures are made with text of sizes that go with many panels."""
    from matplotlib import rc_context

    with rc_context(SIZES):
        yield


def _panels(
    rows: Sequence[Any], columns: Iterable[Any], height: float, width: float = 3.7
) -> tuple[Figure, dict[tuple[Any, Any], Axes]]:
    """A figure with a panel for every row and column, by both."""
    columns = list(columns)
    figure = new_figure(max(width * len(columns), 6.5), height * len(rows) + 1.2)
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    panels = {(row, column): grid[i, j] for i, row in enumerate(rows) for j, column in enumerate(columns)}
    for axes in panels.values():
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _pairs(table: pd.DataFrame, one: str, other: str) -> list[tuple[str, str]]:
    """What stands together in two columns, in order."""
    return list(dict.fromkeys(zip(table[one], table[other], strict=True)))


def _styles(methods: Iterable[str]) -> dict[str, Style]:
    """How each method is drawn: ``lspc-o [lspc-live]`` as ``lspc-o``, with another line."""
    drawn = {"linewidth": 1.4, "markersize": 4.5, "elinewidth": 0.8, "capsize": 2}
    return {name: {"label": name, **style, **drawn} for name, style in row_styles(methods).items()}


def _curves(axes: Axes, points: pd.DataFrame, styles: dict[str, Style]) -> None:
    """Each method's mean over value, with whiskers."""
    for method, group in points.groupby("method", sort=False):
        ordered = group.sort_values("value")
        axes.errorbar(ordered["value"], ordered["mean"], _whiskers(ordered), **styles[str(method)])


def _whiskers(points: pd.DataFrame) -> Any:
    """How far low and high lie from the mean: (2, n), none where there is no interval."""
    return np.nan_to_num(np.maximum([points["mean"] - points["low"], points["high"] - points["mean"]], 0))


def _axis(axes: Axes, values: pd.Series[float]) -> None:
    """A tick at each value; logarithmic where they are positive and lie far apart."""
    ticks = np.sort(values.unique())
    if len(ticks) and ticks[0] > 0 and ticks[-1] >= 8 * ticks[0]:
        axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)


def _limits(task: str) -> tuple[float, ...]:
    """The limits of a task of DSRL's."""
    return find_task(task).cost_limits if task in all_names(all_tasks().values()) else ()


def _data(table: pd.DataFrame) -> str:
    """What was trained on; the name says where it is not DSRL's."""
    return f"Trained on {' and '.join(table['data'].unique())}"


def _finished(figure: Figure, panels: dict[Any, Axes], title: str, note: str) -> Figure:
    """With title and note, and one legend of all that is in the panels."""
    lines = textwrap.fill(note, int(16 * figure.get_figwidth()))
    figure.suptitle(f"{title}\n{lines}", fontsize=9)
    named: dict[str, Any] = {}
    for axes in panels.values():
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    if named:
        columns = min(len(named), max(2, int(figure.get_figwidth() / 1.7)))
        figure.legend(
            list(named.values()), list(named), loc="outside lower center", ncols=columns, frameon=False, fontsize=8
        )
    return figure
