"""The page's figures as files, for a paper."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files import replacing
from harness.report.page.charts import Spec, charts


def save_figures(model: Sequence[dict[str, Any]], folder: Path, kinds: Sequence[str], limit: str) -> Iterator[Path]:
    """Write every figure of every suite, those of a task once for each task.

    Args:
        model: what :func:`harness.report.page.model.make_model` gives.
        folder: where to; it is made.
        kinds: pdf, svg or png.
        limit: ``mean``, or a cost limit by its value.

    Yields:
        The files, when they are written.

    Raises:
        UserError: a suite has no such limit.
        OSError: they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for suite in model:
        place = _place(suite, limit)
        for name, spec in charts(suite).items():
            for task in suite["tasks"] if _has(spec, "task") else [None]:
                title = "-".join([suite["suite"], name, *([suite["tasks"][task]["name"]] if task else [])])
                chosen = _chosen(spec, {"limit": place, "task": task})
                for kind in kinds:
                    path = folder / f"{title}.{kind}"
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
    for choice in suite["limits"][1:]:
        if limit in choice["label"].removeprefix("limit ").split(" or "):
            return str(choice["key"])
    known = ", ".join(choice["label"].removeprefix("limit ") for choice in suite["limits"][1:]) or "one alone"
    raise UserError(f"--limit {limit}: suite {suite['suite']} has {known}, and 'mean'")


def _has(spec: Spec, parameter: str) -> bool:
    return any(one["name"] == parameter for one in spec["params"])


def _chosen(spec: Spec, values: dict[str, Any]) -> Spec:
    """The figure with its parameters set."""
    chosen = copy.deepcopy(spec)
    for parameter in chosen["params"]:
        parameter["value"] = values[parameter["name"]]
    return chosen
