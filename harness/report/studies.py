"""The studies that ship with this project: which suites each runs, the numbers it draws, and the figure.

A study's suites vary one thing at a time. The first row of a kind (task, policy, and all settings that are no numbers)
is where its curves start; every other row differs from it in a setting, or in several that move together, and is a
point of that setting's curve. All numbers that a figure shows stand in one table, from which it is drawn again.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from harness import scaling
from harness.errors import UserError, nearest
from harness.files import read_bytes, replacing, where_the_user_says
from harness.plan import Cell, Plan
from harness.report import selection, study_figures
from harness.statistics import RUN, final_episodes, mean_intervals, planned_runs
from harness.store import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES = ("data", "task", "method", "setting", "value", "metric", "mean", "low", "high", "seeds")
SELECTION = ("data", "suite", "of", "policy", "rule", "violations", "regret", "regret_low", "regret_high")
WORDS = ("data", "task", "method", "setting", "metric", "suite", "of", "policy", "rule", "machine")
"""Columns that are no numbers."""
METRICS = ("reward", "cost", "episode_cost", "violation")
UNCHANGED = {"density": 1.0, "share": 1.0, "safe_share": 1.0, "noise": 0.0, "outliers": 0.0}
"""The filters that a study may sweep, and what stands for data that they leave as it is."""
Judged = Literal["together", "where known", "apart"]
"""How a row's limits are told apart: means over them; a point for each where policy or training know the limit; a point
for each."""


@dataclass(frozen=True)
class Study:
    """One question, what is run for it, and how the answer is drawn.

    Args:
        name: as the command line has it.
        title: of the figure.
        draw: the figure of a table.
        columns: that the table has.
        suites: what is run, built-in suites by name; a study without any measures.
        read: the table of the suites' results.
        measure: the table of a study that runs no suite, with settings ``KEY=VALUE``.
    """

    name: str
    title: str
    draw: Callable[[pd.DataFrame, str], Figure]
    columns: Sequence[str] = CURVES
    suites: tuple[str, ...] = ()
    read: Callable[[Results, Sequence[Plan]], pd.DataFrame] | None = None
    measure: Callable[[Sequence[str]], pd.DataFrame] | None = None


# Reading results


@dataclass(frozen=True)
class _Point:
    """A row of a table, at one limit or over all of them."""

    kind: tuple[str, ...]
    method: str
    settings: dict[str, float]
    cell: Cell
    row: str
    limit: float | None


def read_curves(store: Results, plans: Sequence[Plan], limits: Judged = "together") -> pd.DataFrame:
    """What every row reaches, as points of curves.

    Args:
        store: where the results are.
        plans: of the study's suites.
        limits: how a row's cost limits are told apart.

    Returns:
        A line a curve, point and metric: data, task, method (policy, with the suite's label where that is not the
        algorithm's name), setting (what the curve varies; empty where a row is alone), value (its), metric, mean over
        seeds and its 95% interval low to high (NaN for one seed), seeds. Metrics are reward and cost (normalised),
        episode_cost (not normalised) and violation (the share of episodes above their limit). Rows without results are
        left out.
    """
    lines = []
    for plan in plans:
        runs, planned = _runs(store, plan), planned_runs(plan)
        seeds = len({one.cell.seed for one in plan.cells})
        for setting, value, point in _curves(plan, limits):
            mine = runs[(runs["row"] == point.row) & (runs["task"] == point.cell.task)]
            if point.limit is not None:
                mine = mine[mine["limit"] == point.limit]
            else:  # a seed that lacks a limit would be judged by the others alone
                limits_each = len(planned[point.row, point.cell.task]) // seeds
                mine = mine[mine.groupby("seed")["limit"].transform("size") == limits_each]
            if len(mine):
                place = {"data": point.cell.data.name, "task": point.cell.definition.name, "method": point.method}
                lines.append(over_seeds(mine).assign(**place, setting=setting, value=value))
    if not lines:
        return pd.DataFrame(columns=list(CURVES))
    return pd.concat(lines, ignore_index=True)[list(CURVES)].drop_duplicates(ignore_index=True)


def _runs(store: Results, plan: Plan) -> pd.DataFrame:
    """Means over the last checkpoint's episodes, of every row, task, seed and limit."""
    episodes = final_episodes(store, plan)
    episodes["violation"] = 1 - episodes["satisfied"]
    return episodes.groupby(RUN, sort=False, as_index=False)[list(METRICS)].mean()


def over_seeds(runs: pd.DataFrame) -> pd.DataFrame:
    """Columns metric, mean, low, high, seeds: each metric's mean over the runs' seeds and its 95% interval.

    Args:
        runs: of at least one seed, as :func:`_runs` has them.
    """
    values = runs.groupby("seed")[list(METRICS)].mean().to_numpy(dtype=float)
    low, high = mean_intervals(values).T
    found = {"metric": METRICS, "mean": values.mean(0), "low": low, "high": high, "seeds": len(values)}
    return pd.DataFrame(found)


def _curves(plan: Plan, limits: Judged) -> Iterator[tuple[str, float, _Point]]:
    """Every point with the setting that it differs in from the first of its kind, and the setting's value.

    The first point belongs to every curve of its kind; it comes with an empty setting where there is none.
    """
    kinds: dict[tuple[str, ...], list[_Point]] = {}
    for point in _points(plan, limits):
        kinds.setdefault(point.kind, []).append(point)
    for first, *others in kinds.values():
        started = set()
        for other in others:
            differing = [name for name, value in other.settings.items() if value != first.settings[name]]
            setting = " ".join(differing)
            if setting not in started:
                started.add(setting)
                yield setting, first.settings[differing[0]], first
            yield setting, other.settings[differing[0]], replace(other, method=first.method)
        if not others:
            yield "", np.nan, first


def _points(plan: Plan, limits: Judged) -> Iterator[_Point]:
    """Every row of every task, once, or once a limit, in the plan's order."""
    seen = set()
    for planned in plan.cells:
        cell = planned.cell
        apart = limits == "apart" or (limits == "where known" and (cell.told_limit or cell.cost_limit is not None))
        label = planned.label.split()[0]
        settings, words = _settings(cell)
        for policy, row in planned.rows.items():
            kind = (cell.task, cell.algorithm, policy, words)
            method = policy if label == cell.algorithm else f"{policy} [{label}]"
            for limit in cell.evaluation_limits if apart else (None,):
                if (row, cell.task, limit) not in seen:
                    seen.add((row, cell.task, limit))
                    mine = settings if limit is None else {**settings, "limit": limit}
                    yield _Point(kind, method, mine, cell, row, limit)


def _settings(cell: Cell) -> tuple[dict[str, float], str]:
    """A cell's settings of algorithm and data that are numbers, and all others as text."""
    numbers: dict[str, float] = {}
    words: dict[str, Any] = {}
    for name, value in cell.hyperparameters.items():
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        (numbers if plain else words)[name] = value
    for name, unchanged in UNCHANGED.items():
        value = getattr(cell.data.filters, name)
        numbers[name] = unchanged if value is None else value
    return numbers, json.dumps(words, sort_keys=True)


def read_tradeoff(store: Results, plans: Sequence[Plan]) -> pd.DataFrame:
    """:func:`read_curves`, with a point for each limit of a method that knows the limit."""
    return read_curves(store, plans, "where known")


def read_limits(store: Results, plans: Sequence[Plan]) -> pd.DataFrame:
    """:func:`read_curves`, with a point for each limit."""
    return read_curves(store, plans, "apart")


def read_samples(store: Results, plans: Sequence[Plan]) -> pd.DataFrame:
    """:func:`read_curves` over the number of trajectories in the place of their share, and two return gaps.

    The metric gap is the best method's reward with all the data, whether that one is safe or not, less a row's own;
    gap_reference is DSRL's highest return, 1, less it.
    """
    curves = read_curves(store, plans)
    counts = {}
    for planned in (planned for plan in plans for planned in plan.cells):
        if store.status(planned.cell).state == "done":
            record, cell = store.record(planned.cell), planned.cell
            counts[cell.definition.name, cell.data.filters.share] = float(record["dataset"]["trajectories"])
    curves = curves[curves["setting"] == "share"]
    keys = zip(curves["task"], curves["value"], strict=True)
    curves = curves.assign(setting="trajectories", value=[counts[key] for key in keys])
    rewards = curves[curves["metric"] == "reward"]
    best = rewards[rewards["value"] == rewards.groupby("task")["value"].transform("max")].groupby("task")["mean"].max()
    gaps = [
        rewards.assign(metric=name, mean=top - rewards["mean"], low=top - rewards["high"], high=top - rewards["low"])
        for name, top in (("gap", rewards["task"].map(best).astype(float)), ("gap_reference", 1.0))
    ]
    return pd.concat([curves, *gaps], ignore_index=True)


def read_selection(store: Results, plans: Sequence[Plan]) -> pd.DataFrame:
    """The records of :mod:`harness.report.selection`, with the data that was trained on."""
    frame = pd.DataFrame(selection.to_records([selection.make_report(store, plan) for plan in plans]))
    (data,) = {used.name for plan in plans for several in plan.data.values() for used in several}
    return frame.assign(data=data)


# The table of a study


def to_csv(frame: pd.DataFrame) -> str:
    """With six digits: read again and written again it is the same, byte for byte."""
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def read_csv(path: Path) -> pd.DataFrame:
    """What :func:`to_csv` wrote.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return _parsed(read_bytes(path).decode())
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(f"cannot read the study's table: {error}", where=str(path)) from error


def _parsed(text: str) -> pd.DataFrame:
    frame = pd.read_csv(io.StringIO(text), dtype=dict.fromkeys(WORDS, str))
    return frame.fillna(dict.fromkeys(WORDS, ""))  # an empty setting, or policy, is none


def write(study: Study, frame: pd.DataFrame, folder: Path) -> list[Path]:
    """Write a study's table as CSV, and its figure as PNG, drawn from what the CSV holds.

    Raises:
        UserError: the folder cannot be written, or the table is not one of this study.
    """
    paths = [folder / f"{study.name}.csv", folder / f"{study.name}.png"]
    missing = [name for name in study.columns if name not in frame]
    if missing:
        raise UserError(f"this is no table of the study {study.name!r}: it has no {', '.join(missing)}")
    text = to_csv(frame)
    with study_figures.small_text():
        figure = study.draw(_parsed(text), study.title)
    with where_the_user_says(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(paths[0]) as temporary:
            temporary.write_text(text, encoding="utf-8")
        with replacing(paths[1]) as temporary:
            figure.savefig(temporary, format="png", dpi=150)
    return paths


STUDIES = {
    study.name: study
    for study in (
        Study(
            "tradeoff",
            "Reward against cost as LSPC's restriction varies",
            study_figures.tradeoff,
            suites=("study-tradeoff",),
            read=read_tradeoff,
        ),
        Study(
            "scarcity",
            "Little data, and little safe data",
            study_figures.over_settings,
            suites=("study-scarcity", "study-scarcity-safe", "study-density"),
            read=read_curves,
        ),
        Study(
            "noise",
            "Noisy observations, and trajectories that look safe and are not",
            study_figures.over_settings,
            suites=("study-noise", "study-outliers"),
            read=read_curves,
        ),
        Study(
            "samples",
            "Return gap and violations against the number of trajectories",
            study_figures.samples,
            suites=("study-samples",),
            read=read_samples,
        ),
        Study(
            "scaling",
            "Cost of training and acting as observations grow",
            study_figures.scaling,
            scaling.COLUMNS,
            measure=scaling.measure,
        ),
        Study(
            "limits",
            "One agent at cost limits that it was not trained for",
            study_figures.limits,
            suites=("study-limits",),
            read=read_limits,
        ),
        Study(
            "selection",
            "Choosing by the data alone, against peeking",
            study_figures.selection,
            SELECTION,
            suites=("study-selection",),
            read=read_selection,
        ),
    )
}


def find_study(name: str) -> Study:
    """The study of this name.

    Raises:
        UserError: there is none.
    """
    if name not in STUDIES:
        raise UserError(f"no such study: {name!r}.{nearest(name, STUDIES)} Known: {', '.join(STUDIES)}")
    return STUDIES[name]
