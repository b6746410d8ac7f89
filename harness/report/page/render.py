"""The page's HTML."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.report import diagnostics, published, selection
from harness.report.page.charts import charts
from harness.statistics import BOOTSTRAP_SAMPLES

HERE = Path(__file__).parent


def render(model: Sequence[dict[str, Any]], title: str, source: str, version: str) -> str:
    """One file of HTML that needs no other and no network; the same values make the same bytes.

    Whatever a suite, a label or a message holds is text in it.

    Args:
        model: what :func:`harness.report.page.model.make_model` gives.
        title: of the page.
        source: what the results are called.
        version: of this project.
    """
    import jinja2
    import vl_convert

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=False, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"number": _number, "two": _two, "short": _short}
    content = _json(model)
    return environment.get_template("page.html").render(
        title=title,
        source=source,
        version=version,
        digest=hashlib.sha256(content.encode()).hexdigest()[:12],
        suites=model,
        captions=[_captions(suite) for suite in model],
        cells=[_cells(suite) for suite in model],
        samples=BOOTSTRAP_SAMPLES,
        published_legend=published.LEGEND,
        selection_legend=selection.LEGEND,
        diagnostics_legend=diagnostics.LEGEND,
        model_json=content,
        charts_json=_json([charts(suite) for suite in model]),
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        script=(HERE / "page.js").read_text(encoding="utf-8"),
        bundle=vl_convert.javascript_bundle().replace("</script", "<\\/script"),  # type: ignore[call-arg] # its stub lacks the default
    )


def _json(content: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end the element."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _captions(suite: dict[str, Any]) -> dict[str, str]:
    """What each view is over, by its key."""
    labels = {choice["key"]: choice["label"] for choice in suite["limits"]}
    captions = {}
    for key in suite["views"]:
        family, _, limit = key.partition(":")
        captions[key] = f"{'all tasks' if family == 'all' else family}, {labels[limit]}"
    return captions


def _cells(suite: dict[str, Any]) -> dict[str, dict[tuple[str, str], dict[str, Any]]]:
    """The rows of tasks' tables by policy and task, of each view that has them."""
    return {
        key: {(row["policy"], task): row for task, rows in view["tasks"].items() for row in rows}
        for key, view in suite["views"].items()
        if "tasks" in view
    }


def _number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:z.3f}"


def _two(value: float) -> str:
    return f"{value:z.2f}"


def _short(value: float) -> str:
    return f"{value:g}"
