"""How pictures look: colours that the colour-blind tell apart, a marker beside each, and how a picture is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's, without their yellow, which is lost on white; then two that differ from them in lightness. Behind the
# ninth policy they begin anew, with other lines.
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7"),
    *("#E69F00", "#56B4E9", "#000000"),
)
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK, "#882255", "#999999")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", "*", ">", "d", "p", "h", (4, 1, 0))
"""One for each policy of the suite with most; there are more of them than colours that can be told apart. The last is
a star of four points."""
LINES = ("-", "--", ":", "-.")
SAFE = "#e8f3e8"
"""Behind what is within the limit."""


def row_styles(rows: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour, marker and line of each row, as matplotlib names them.

    A variant (``lspc-o [lspc-live]``) has its policy's colour and marker, the marker hollow, and another line.
    """
    names = list(dict.fromkeys(rows))
    policies = list(dict.fromkeys(name.partition(" [")[0] for name in names))
    variants: dict[str, list[str]] = {}
    for name in names:
        variants.setdefault(name.partition(" [")[0], []).append(name)
    styles = {}
    for name in names:
        policy = name.partition(" [")[0]
        number, variant = policies.index(policy), variants[policy].index(name)
        colour = COLOURS[number % len(COLOURS)]
        styles[name] = {
            "color": colour,
            "marker": MARKERS[number % len(MARKERS)],
            "markerfacecolor": "white" if variant else colour,
            "linestyle": LINES[(number // len(COLOURS) + variant) % len(LINES)],
        }
    return styles


def new_figure(width: float, height: float) -> Figure:
    """A figure of so many inches that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path, dpi: int = 150, texts: Mapping[str, str] | None = None) -> None:
    """Write a picture; the file's ending says which kind.

    Args:
        figure: the picture.
        path: where to.
        dpi: pixels an inch.
        texts: that a PNG is to hold, by name.

    Raises:
        ValueError: no such kind.
    """
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix(".") or "png", dpi=dpi, metadata=texts)
