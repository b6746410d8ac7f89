"""The page's figures as files, for a paper."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from harness.errors import UserError, nearest
from harness.files import replacing
from harness.report.limits import find_limit, limit_labels
from harness.report.page.charts import Spec, charts, filled

KINDS = {"metric": "logged", "measure": "measured"}
"""Parameters that choose a metric, and where a suite names those that there are."""


def save_figures(
    model: Sequence[dict[str, Any]], folder: Path, kinds: Sequence[str], limit: str, wanted: Sequence[str] = ()
) -> Iterator[Path]:
    """Write every figure of every suite, those of a task once for each task.

    Args:
        model: what :func:`harness.report.page.model.make_model` gives.
        folder: where to; it is made.
        kinds: pdf, svg or png.
        limit: ``mean``, or a cost limit by its value.
        wanted: which metrics are drawn, logged ones and those of held-out data.

    Yields:
        The files, when they are written.

    Raises:
        UserError: a suite has no such limit or metric.
        OSError: they cannot be written.
    """
    places = [_place(suite, limit) for suite in model]
    for suite in model:
        for one in wanted:
            _require_metric(suite, one)
    folder.mkdir(parents=True, exist_ok=True)
    for suite, place in zip(model, places, strict=True):
        for name, spec in charts(suite).items():
            spec = filled(spec, suite)
            tasks = suite["tasks"] if _has(spec, "task") else [None]
            for metric, task in product(_metrics(spec, suite, wanted), tasks):
                shown = [suite["tasks"][task]["name"]] if task else []
                title = "-".join([suite["suite"], name, *([metric] if metric else []), *shown])
                of_metric = dict.fromkeys(KINDS, metric)
                chosen = _chosen(spec, {"view": f"all:{place}", "limit": place, "policy": "", "task": task} | of_metric)
                for kind in kinds:
                    path = folder / f"{title.replace('/', '-')}.{kind}"
                    with replacing(path) as temporary:
                        temporary.write_bytes(_drawn(json.dumps(chosen), kind))
                    yield path


def _drawn(spec: str, kind: str) -> bytes:
    import vl_convert

    if kind == "pdf":
        return bytes(vl_convert.vegalite_to_pdf(spec))
    if kind == "png":
        return bytes(vl_convert.vegalite_to_png(spec, scale=3))
    return str(vl_convert.vegalite_to_svg(spec)).encode()


def _place(suite: dict[str, Any], limit: str) -> str:
    """A limit's key in the suite's views."""
    if limit == "mean":
        return limit
    choices = suite["limits"][1:]
    labels = limit_labels({key: task["limits"] for key, task in suite["tasks"].items()})
    place = find_limit(suite["suite"], labels, limit)
    return str(choices[place]["key"]) if choices else "mean"  # which is over the only one there is


def _metrics(spec: Spec, suite: dict[str, Any], wanted: Sequence[str]) -> list[str | None]:
    """Those of the wanted that the figure draws one at a time; one figure without where it draws none."""
    for parameter, names in KINDS.items():
        if _has(spec, parameter):
            return [one for one in wanted if one in suite[names]]
    return [None]


def _require_metric(suite: dict[str, Any], metric: str) -> None:
    known = [one for names in KINDS.values() for one in suite[names]]
    if metric not in known:
        raise UserError(f"--metric {metric}: suite {suite['suite']} has no such.{nearest(metric, known)}")


def _has(spec: Spec, parameter: str) -> bool:
    return any(one["name"] == parameter for one in spec["params"])


def _chosen(spec: Spec, values: dict[str, Any]) -> Spec:
    """The figure with its parameters set."""
    chosen = copy.deepcopy(spec)
    for parameter in chosen["params"]:
        parameter["value"] = values[parameter["name"]]
    return chosen
