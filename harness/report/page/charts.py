"""The page's figures as Vega-Lite: values in, a specification out. The same ones are written to files for a paper.

A figure follows the chosen cost limit and task by parameters of these names, which the page sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.report.style import BLUE, GREEN, VERMILLION, row_styles
from harness.report.tables import csv_table

Spec = dict[str, Any]
SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
SHAPES = {
    "o": "circle",
    "s": "square",
    "D": "diamond",
    "^": "triangle-up",
    "v": "triangle-down",
    "P": "cross",
    "X": "M-1,-1L1,1M-1,1L1,-1",
    "<": "triangle-left",
    "*": "M0,-1L0.3,-0.3L1,-0.2L0.5,0.3L0.6,1L0,0.6L-0.6,1L-0.5,0.3L-1,-0.2L-0.3,-0.3Z",
}
DASHES = {"-": [1, 0], "--": [6, 3], ":": [2, 2], "-.": [6, 2, 2, 2]}
COST_SCALE = {"type": "symlog", "constant": 1}
"""To scale around the limit, logarithmic beyond."""


def charts(model: dict[str, Any]) -> dict[str, Spec]:
    """A suite's figures, by name."""
    return {
        "plane": plane(model),
        "scatter": scatter(model),
        "limits": limits(model),
        "curves": curves(model),
        "profiles": profiles(model),
        "improvement": improvement(model),
    }


def _spec(title: str, values: list[dict[str, Any]], **rest: Any) -> Spec:
    return {
        "$schema": SCHEMA,
        "title": {"text": title, "anchor": "start"},
        "data": {"values": csv_table(values), "format": {"type": "csv", "parse": _kinds(values)}},
        "config": {"view": {"stroke": None}, "axis": {"labelLimit": 220}, "legend": {"labelLimit": 260}},
        **rest,
    }


def _kinds(values: list[dict[str, Any]]) -> dict[str, str]:
    """What each column holds. As CSV the values are a third as long as objects, and Vega would guess."""
    numbers = {key for value in values for key, held in value.items() if isinstance(held, (int, float))}
    return {key: "number" if key in numbers else "string" for key in (values[0] if values else {})}


def _parameters(model: dict[str, Any], *names: str) -> list[dict[str, Any]]:
    first = {"limit": "mean", "task": next(iter(model["tasks"]), "")}
    return [{"name": name, "value": first[name]} for name in names]


def _looks(rows: Sequence[str]) -> dict[str, Any]:
    """Colour, shape and line of each row, as in all pictures of this project."""
    styles = row_styles(rows)
    legend = {"title": None, "orient": "bottom", "columns": 4, "symbolOpacity": 1, "symbolStrokeWidth": 2}
    field = {"field": "row", "type": "nominal", "legend": legend}

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
    for limit in [choice["key"] for choice in model["limits"]]:
        for row in model["views"][f"all:{limit}"]["overall"]:
            if row["reward"] is None:
                continue
            reward, cost = row["reward_interval"] or (None, None), row["cost_interval"] or (None, None)
            values.append(
                {
                    "row": row["policy"],
                    "limit": limit,
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
        params=_parameters(model, "limit"),
        transform=[{"filter": "datum.limit == limit"}],
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
    position = {task: {limit: str(place) for place, limit in enumerate(one["limits"])}
                for task, one in model["tasks"].items()}  # fmt: skip
    values = [run | {"place": position[run["task"]][run["limit"]]} for run in model["runs"]]
    return _spec(
        "Runs of one task",
        values,
        params=_parameters(model, "task", "limit"),
        transform=[{"filter": "datum.task == task && (limit == 'mean' || datum.place == limit)"}],
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
    x = {"field": "limit", "type": "quantitative", "title": "cost limit", "scale": {"type": "log", "nice": False}}

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
        "Against the cost limit",
        model["runs"],
        params=_parameters(model, "task"),
        transform=[{"filter": "datum.task == task"}],
        hconcat=[panel("reward", REWARD), panel("cost", COST)],
    )


def curves(model: dict[str, Any]) -> Spec:
    """Learning curves of one task: means over seeds with a standard error."""
    looks = _looks(model["rows"])
    x = {"field": "share", "type": "quantitative", "title": "share of the training steps", "axis": {"format": "%"}}

    def panel(name: str, y: dict[str, Any]) -> Spec:
        return {
            "width": 300,
            "height": 220,
            "transform": [
                {"calculate": f"datum.{name} - datum.{name}_error", "as": "low"},
                {"calculate": f"datum.{name} + datum.{name}_error", "as": "high"},
            ],
            "layer": [
                {
                    "mark": {"type": "area", "opacity": 0.15},
                    "encoding": {
                        "x": x,
                        "y": y | {"field": "low"},
                        "y2": {"field": "high"},
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
        "Learning curves",
        model["curves"],
        params=_parameters(model, "task"),
        transform=[{"filter": "datum.task == task"}],
        hconcat=[panel("reward", REWARD), panel("cost", COST)],
    )


def profiles(model: dict[str, Any]) -> Spec:
    """The share of runs above a reward, and at or below a cost."""
    looks = _looks(model["rows"])
    values = [
        point | {"limit": choice["key"]}
        for choice in model["limits"]
        for point in model["views"][f"all:{choice['key']}"]["profiles"]
    ]

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
        values,
        params=_parameters(model, "limit"),
        transform=[{"filter": "datum.limit == limit"}],
        hconcat=[
            panel("reward", "normalised reward above"),
            panel("cost", "normalised cost at most"),
        ],
    )


def improvement(model: dict[str, Any]) -> Spec:
    """How likely a run of one policy is better than one of another."""
    values = []
    for choice in model["limits"]:
        for pair in model["views"][f"all:{choice['key']}"]["improvements"]:
            low, high = pair["interval"] or (None, None)
            rest = {key: value for key, value in pair.items() if key != "interval"}
            values.append(rest | {"limit": choice["key"], "low": low, "high": high})

    def panel(field: str, title: str, colours: list[str], middle: float) -> Spec:
        cell = {
            "x": {"field": "over", "type": "nominal", "title": "than", "sort": model["rows"]},
            "y": {"field": "row", "type": "nominal", "title": None, "sort": model["rows"]},
        }
        tooltip = _tooltip("row", "over", "probability", "low", "high", "safe_and_better")
        scale = {"domain": [0, middle, 1], "range": colours}
        colour = {"field": field, "type": "quantitative", "title": None, "scale": scale}
        text = {
            "text": {"field": field, "type": "quantitative", "format": ".2f"},
            "color": {
                "condition": {"test": f"abs(datum.{field} - {middle}) > 0.35", "value": "white"},
                "value": "black",
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
        params=_parameters(model, "limit"),
        transform=[{"filter": "datum.limit == limit"}],
        hconcat=[
            panel("probability", "more reward", [VERMILLION, "#f7f7f7", BLUE], 0.5),
            panel("safe_and_better", "within the limit and more reward", ["#f7f7f7", "#7fb8d8", BLUE], 0.5),
        ],
        resolve={"scale": {"color": "independent"}},
    )


def _tooltip(*fields: str) -> list[dict[str, Any]]:
    return [{"field": field, "format": ".3f"} if field in NUMBERS else {"field": field} for field in fields]


NUMBERS = {"reward", "cost", "share", "probability", "low", "high", "safe_and_better", "satisfied"}
