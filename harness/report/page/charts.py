"""The page's figures as Vega-Lite: values in, a specification out. The same ones are written to files for a paper.

A figure follows what is chosen by parameters, which the page sets: ``view`` (a family and a cost limit), ``limit``,
``task``, ``metric``, ``measure``, and ``policy``, a part of the names that are shown.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from harness.report.style import BLUE, GREEN, VERMILION, row_styles
from harness.report.tables import csv_table

Spec = dict[str, Any]
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
SHAPES: dict[Any, str] = {
    "o": "circle",
    "s": "square",
    "D": "diamond",
    "^": "triangle-up",
    "v": "triangle-down",
    "P": "cross",
    "X": "M-1,-1L1,1M-1,1L1,-1",
    "<": "triangle-left",
    "*": "M0,-1L0.3,-0.3L1,-0.2L0.5,0.3L0.6,1L0,0.6L-0.6,1L-0.5,0.3L-1,-0.2L-0.3,-0.3Z",
    ">": "triangle-right",
    "d": "M0,-1L0.6,0L0,1L-0.6,0Z",
    "p": "M0,-1L0.95,-0.31L0.59,0.81L-0.59,0.81L-0.95,-0.31Z",
    "h": "M0,-1L0.87,-0.5L0.87,0.5L0,1L-0.87,0.5L-0.87,-0.5Z",
    (4, 1, 0): "M0,-1L0.25,-0.25L1,0L0.25,0.25L0,1L-0.25,0.25L-1,0L-0.25,-0.25Z",
}
DASHES = {"-": [1, 0], "--": [6, 3], ":": [2, 2], "-.": [6, 2, 2, 2]}
PALE = "#f7f7f7"
COST_SCALE = {"type": "symlog", "constant": 1}
"""To scale around the limit, logarithmic beyond."""


def charts(model: dict[str, Any]) -> dict[str, Spec]:
    """A suite's figures, by name."""
    return {
        "plane": plane(model),
        "scatter": scatter(model),
        "limits": limits(model),
        "curves": curves(model),
        "metrics": metrics(model),
        "held-out": held_out(model),
        "profiles": profiles(model),
        "improvement": improvement(model),
    }


def filled(spec: Spec, model: dict[str, Any]) -> Spec:
    """A figure with the values of the model that it names; the page does the same itself, and holds them once."""
    name = spec["data"].get("name")
    return spec | {"data": {"values": model[name]}} if name else spec


def _spec(title: Any, values: list[dict[str, Any]] | str, **rest: Any) -> Spec:
    """A figure of values, or of those of the model that have this name. A title is a text, or what makes one."""
    return {
        "$schema": SCHEMA,
        "title": {"text": title, "anchor": "start"},
        "data": {"name": values}
        if isinstance(values, str)
        else {"values": csv_table(values), "format": {"type": "csv", "parse": _kinds(values)}},
        "config": {"view": {"stroke": None}, "axis": {"labelLimit": 220}, "legend": {"labelLimit": 260}},
        **rest,
    }


def _kinds(values: list[dict[str, Any]]) -> dict[str, str]:
    """What each column holds. As CSV the values are a third as long as objects, and Vega would guess.

    A column without any value is of numbers: as a text, nothing would be a valid place at 0.
    """
    texts = {key for value in values for key, held in value.items() if isinstance(held, str)}
    return {key: "string" if key in texts else "number" for key in (values[0] if values else {})}


def _parameters(model: dict[str, Any], *names: str) -> list[dict[str, Any]]:
    first = {
        "view": "all:mean",
        "limit": "mean",
        "policy": "",
        "task": next(iter(model["tasks"]), ""),
        "metric": next(iter(model["logged"]), ""),
        "measure": next(iter(model["measured"]), ""),
    }
    return [{"name": name, "value": first[name]} for name in (*names, "policy")]


def _of_policies(field: str = "row") -> dict[str, str]:
    """Of values those whose policy's name is shown."""
    return {"filter": f"indexof(lower(datum.{field}), lower(policy)) >= 0"}


def _of_task(model: dict[str, Any], rest: str) -> dict[str, str]:
    """A title that begins with the task's name; the rest is an expression of Vega's, too."""
    names = {task: about["name"] for task, about in model["tasks"].items()}
    return {"expr": f"{json.dumps(names)}[task] + ': ' + {rest}"}


def _looks(rows: Sequence[str], name: str = "row") -> dict[str, Any]:
    """Colour, shape and line of each row, as in all pictures of this project; the field ``name`` says which it is."""
    styles = row_styles(rows)
    legend = {"title": None, "orient": "bottom", "columns": 4, "symbolOpacity": 1, "symbolStrokeWidth": 2}
    field = {"field": name, "type": "nominal", "legend": legend}

    def scaled(values: list[Any]) -> dict[str, Any]:
        return field | {"scale": {"domain": list(rows), "range": values}}

    return {
        "color": scaled([styles[row]["color"] for row in rows]),
        "fill": scaled([styles[row]["markerfacecolor"] for row in rows]),
        "shape": scaled([SHAPES[styles[row]["marker"]] for row in rows]),
        "strokeDash": scaled([DASHES[styles[row]["linestyle"]] for row in rows]),
    }


REWARD = {"field": "reward", "type": "quantitative", "title": "normalised reward", "scale": {"zero": False}}
COST = {"field": "cost", "type": "quantitative", "title": "normalised cost (safe: at most 1)", "scale": COST_SCALE}
LIMIT_LINE = {
    "data": {"values": [{"limit_line": 1}]},
    "mark": {"type": "rule", "strokeDash": [4, 3], "color": GREEN},
}


def plane(model: dict[str, Any]) -> Spec:
    """Overall reward against cost, with intervals."""
    values = []
    for key, view in model["views"].items():
        for row in view["overall"]:
            if row["reward"] is None:
                continue
            reward, cost = row["reward_interval"] or (None, None), row["cost_interval"] or (None, None)
            values.append(
                {
                    "row": row["policy"],
                    "view": key,
                    "reward": row["reward"],
                    "cost": row["cost"],
                    "reward_low": reward[0],
                    "reward_high": reward[1],
                    "cost_low": cost[0],
                    "cost_high": cost[1],
                    "verdict": row["verdict"],
                }
            )
    looks = _looks(model["rows"])
    return _spec(
        "Reward against cost",
        values,
        params=_parameters(model, "view"),
        transform=[{"filter": "datum.view == view"}, _of_policies()],
        width=520,
        height=340,
        layer=[
            LIMIT_LINE | {"encoding": {"x": {"field": "limit_line", "type": "quantitative"}}},
            {
                "mark": {"type": "rule", "opacity": 0.6},
                "transform": [{"filter": "isValid(datum.cost_low)"}],
                "encoding": {
                    "x": COST | {"field": "cost_low"},
                    "x2": {"field": "cost_high"},
                    "y": REWARD,
                    "color": looks["color"],
                },
            },
            {
                "mark": {"type": "rule", "opacity": 0.6},
                "transform": [{"filter": "isValid(datum.reward_low)"}],
                "encoding": {
                    "x": COST,
                    "y": REWARD | {"field": "reward_low"},
                    "y2": {"field": "reward_high"},
                    "color": looks["color"],
                },
            },
            {
                "mark": {"type": "point", "size": 90, "opacity": 1, "strokeWidth": 2},
                "encoding": {
                    "x": COST,
                    "y": REWARD,
                    "stroke": looks["color"],
                    "fill": looks["fill"],
                    "shape": looks["shape"],
                    "tooltip": _tooltip("row", "reward", "cost", "verdict"),
                },
            },
        ],
    )


def scatter(model: dict[str, Any]) -> Spec:
    """Every run of a task, and each policy's mean."""
    looks = _looks(model["rows"])
    return _spec(
        _of_task(model, "'every run'"),
        "runs",
        params=_parameters(model, "task", "limit"),
        transform=[{"filter": "datum.task == task && (limit == 'mean' || datum.place == limit)"}, _of_policies()],
        width=520,
        height=340,
        layer=[
            LIMIT_LINE | {"encoding": {"x": {"field": "limit_line", "type": "quantitative"}}},
            {
                "mark": {"type": "point", "opacity": 0.45, "size": 24},
                "encoding": {
                    "x": COST,
                    "y": REWARD,
                    "stroke": looks["color"],
                    "shape": looks["shape"],
                    "tooltip": _tooltip("row", "seed", "limit", "reward", "cost", "satisfied"),
                },
            },
            {
                "mark": {"type": "point", "size": 140, "opacity": 1, "strokeWidth": 2},
                "encoding": {
                    "x": COST | {"aggregate": "mean"},
                    "y": REWARD | {"aggregate": "mean"},
                    "stroke": looks["color"],
                    "fill": looks["fill"],
                    "shape": looks["shape"],
                },
            },
        ],
    )


def limits(model: dict[str, Any]) -> Spec:
    """Reward and cost against the cost limit, for one task."""
    looks = _looks(model["rows"])
    zero = any(limit == 0 for task in model["tasks"].values() for limit in task["limits"])  # has no logarithm
    scale = (COST_SCALE if zero else {"type": "log"}) | {"nice": False}
    x = {"field": "limit", "type": "quantitative", "title": "cost limit", "scale": scale}

    def panel(field: str, y: dict[str, Any]) -> Spec:
        return {
            "width": 300,
            "height": 220,
            "mark": {"type": "line", "point": {"size": 36}},
            "encoding": {
                "x": x,
                "y": y | {"aggregate": "mean"},
                "color": looks["color"],
                "strokeDash": looks["strokeDash"],
                "tooltip": _tooltip("row", "limit"),
            },
        }

    return _spec(
        _of_task(model, "'against the cost limit'"),
        "runs",
        params=_parameters(model, "task"),
        transform=[{"filter": "datum.task == task"}, _of_policies()],
        hconcat=[panel("reward", REWARD), panel("cost", COST)],
    )


def curves(model: dict[str, Any]) -> Spec:
    """Learning curves of one task: means over seeds with 95% intervals."""
    looks = _looks(model["rows"])
    x = {"field": "share", "type": "quantitative", "title": "share of the training steps", "axis": {"format": "%"}}

    def panel(name: str, y: dict[str, Any]) -> Spec:
        return {
            "width": 300,
            "height": 220,
            "layer": [
                {
                    "mark": {"type": "area", "opacity": 0.15},
                    "transform": [{"filter": f"isValid(datum.{name}_low)"}],
                    "encoding": {
                        "x": x,
                        "y": y | {"field": f"{name}_low"},
                        "y2": {"field": f"{name}_high"},
                        "color": looks["color"],
                    },
                },
                {
                    "mark": {"type": "line", "point": {"size": 24}},
                    "encoding": {
                        "x": x,
                        "y": y,
                        "color": looks["color"],
                        "strokeDash": looks["strokeDash"],
                        "tooltip": _tooltip("row", "share", "reward", "cost", "seeds"),
                    },
                },
            ],
        }

    return _spec(
        _of_task(model, "'learning curves'"),
        "curves",
        params=_parameters(model, "task", "limit"),
        transform=[
            {"filter": "datum.task == task && datum.place == limit"},
            _of_policies(),
            {"flatten": ["share", "reward", "cost", "reward_low", "reward_high", "cost_low", "cost_high", "seeds"]},
        ],
        hconcat=[panel("reward", REWARD), panel("cost", COST)],
    )


def metrics(model: dict[str, Any]) -> Spec:
    """One logged metric on one task, by the suite's labels: means over agents, and the band from least to most."""
    labels = list(dict.fromkeys(curve["label"] for curve in model["metrics"]))
    return _in_training(model, "metrics", "metric", "' in training'", _looks(labels, "label"), "agents")


def held_out(model: dict[str, Any]) -> Spec:
    """One figure of held-out data on one task, by row: means over runs, and the band from least to most."""
    title = "' on held-out data'"
    return _in_training(model, "held_out", "measure", title, _looks(model["rows"]), "runs")


def _in_training(
    model: dict[str, Any], values: str, parameter: str, title: str, looks: dict[str, Any], count: str
) -> Spec:
    """A mean with its band on one task, while training goes on.

    Args:
        model: of the page.
        values: which of its records, with lists share, mean, low and high.
        parameter: what chooses the records' metric.
        title: an expression of Vega's, behind the metric.
        looks: of the records' names, see :func:`_looks`.
        count: what says how many there are.
    """
    name = looks["color"]["field"]
    x = {"field": "share", "type": "quantitative", "title": "share of the training steps", "axis": {"format": "%"}}
    y = {"type": "quantitative", "title": None, "scale": {"zero": False}}
    return _spec(
        _of_task(model, f"{parameter} + {title}"),
        values,
        params=_parameters(model, "task", parameter),
        transform=[
            {"filter": f"datum.task == task && datum.metric == {parameter}"},
            _of_policies(name),
            {"flatten": ["share", "mean", "low", "high"]},
        ],
        width=520,
        height=240,
        layer=[
            {
                "mark": {"type": "area", "opacity": 0.15},
                "encoding": {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}, "color": looks["color"]},
            },
            {
                "mark": {"type": "line", "point": {"size": 24}},
                "encoding": {
                    "x": x,
                    "y": y | {"field": "mean"},
                    "color": looks["color"],
                    "strokeDash": looks["strokeDash"],
                    "tooltip": _tooltip(name, "metric", "share", "mean", "low", "high", count),
                },
            },
        ],
    )


def profiles(model: dict[str, Any]) -> Spec:
    """The share of runs above a reward, and at or below a cost."""
    looks = _looks(model["rows"])

    def panel(what: str, title: str) -> Spec:
        x = {"field": "level", "type": "quantitative", "title": title}
        share = {"type": "quantitative", "title": "share of runs", "axis": {"format": "%"}}
        band = {"x": x, "y": share | {"field": "low"}, "y2": {"field": "high"}, "color": looks["color"]}
        line = {"x": x, "y": share | {"field": "share"}, "color": looks["color"], "strokeDash": looks["strokeDash"]}
        return {
            "width": 300,
            "height": 220,
            "transform": [{"filter": f"datum.what == '{what}'"}],
            "layer": [
                {
                    "mark": {"type": "area", "opacity": 0.12},
                    "transform": [{"filter": "isValid(datum.low)"}],
                    "encoding": band,
                },
                {"mark": "line", "encoding": line | {"tooltip": _tooltip("row", "level", "share", "low", "high")}},
            ],
        }

    return _spec(
        "Performance profiles",
        "profiles",
        params=_parameters(model, "view"),
        transform=[
            {"filter": "datum.view == view"},
            _of_policies(),
            {"flatten": ["level", "share", "low", "high"]},
        ],
        hconcat=[
            panel("reward", "normalised reward above"),
            panel("cost", "normalised cost at most"),
        ],
    )


def improvement(model: dict[str, Any]) -> Spec:
    """How likely a run of one policy is better than one of another."""
    values = []
    for key, view in model["views"].items():
        for pair in view["improvements"]:
            low, high = pair["interval"] or (None, None)
            rest = {key: value for key, value in pair.items() if key != "interval"}
            values.append(rest | {"view": key, "low": low, "high": high})

    def panel(field: str, title: str, colours: list[str], pale: str) -> Spec:
        cell = {
            "x": {"field": "over", "type": "nominal", "title": "than", "sort": model["rows"]},
            "y": {"field": "row", "type": "nominal", "title": None, "sort": model["rows"]},
        }
        tooltip = _tooltip("row", "over", "probability", "low", "high", "safe_and_better")
        scale = {"domain": [0, 0.5, 1], "range": colours}
        colour = {"field": field, "type": "quantitative", "title": None, "scale": scale}
        text = {
            "text": {"field": field, "type": "quantitative", "format": ".2f"},
            "color": {
                "condition": {"test": pale, "value": "black"},
                "value": "white",
            },
        }
        return {
            "title": {"text": title, "anchor": "start", "fontSize": 11},
            "width": {"step": 34},
            "height": {"step": 24},
            "layer": [
                {"mark": "rect", "encoding": cell | {"color": colour, "tooltip": tooltip}},
                {"mark": {"type": "text", "fontSize": 9}, "encoding": cell | text},
            ],
        }

    return _spec(
        "Probability of improvement",
        values,
        params=_parameters(model, "view"),
        transform=[{"filter": "datum.view == view"}, _of_policies()],
        hconcat=[
            panel("probability", "more reward", [VERMILION, PALE, BLUE], "abs(datum.probability - 0.5) < 0.35"),
            panel(
                "safe_and_better",
                "within the limit and more reward",
                [PALE, "#7fb8d8", BLUE],
                "datum.safe_and_better < 0.8",
            ),
        ],
        resolve={"scale": {"color": "independent"}},
    )


def _tooltip(*fields: str) -> list[dict[str, Any]]:
    return [{"field": field, "format": ".3f"} if field in NUMBERS else {"field": field} for field in fields]


NUMBERS = {"mean", "reward", "cost", "share", "probability", "low", "high", "safe_and_better", "satisfied"}
