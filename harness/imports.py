"""Which modules Python finds, for us and for the user's code beside us.

:mod:`harness` calls :func:`prepare` when it is imported, in every process and before any code of the user's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

HOME = Path(__file__).parent.parent
"""Where the packages of this project lie."""
OURS = ("harness", "algorithms")
COLOURS = "safety_gymnasium.assets.color"


def prepare() -> None:
    """Find this project's packages, whatever else is called so, and let safety-gymnasium be imported."""
    claim("algorithms")
    if not any(isinstance(finder, _SafetyGymnasium) for finder in sys.meta_path):
        sys.meta_path.insert(0, _SafetyGymnasium())


def claim(package: str) -> None:
    """Import a package of this project before another of its name on ``PYTHONPATH``, or in this folder, is found.

    Raises:
        ImportError: the other one has been imported already.
    """
    sys.path.insert(0, str(HOME))
    try:
        found = import_module(package)
    finally:
        sys.path.remove(str(HOME))
    place = Path(found.__file__ or "").parent
    if place != HOME / package:
        raise ImportError(
            f"lspc-bench needs its own package {package!r}, but that of {place} was imported before it: import harness "
            "first, or rename yours"
        )


def hidden(error: BaseException | None) -> str:
    """What to add to an error of the user's code that looked for a package of its own, and found ours; or nothing."""
    package = (getattr(error, "name", None) or "").partition(".")[0]
    if not isinstance(error, ImportError) or package not in OURS:
        return ""
    return f" (the package {package!r} is lspc-bench's here: rename yours)"


class _SafetyGymnasium(MetaPathFinder):
    """Lets safety-gymnasium 0.4.0 be imported on Python 3.11, whoever imports it.

    Its dataclasses have numpy arrays (the colours) as defaults, and since 3.11 dataclasses refuse every default that is
    not hashable. So the colours become hashable as soon as they are there. No release mends this, and 0.4.0 is the
    version that the datasets were made with.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "safety_gymnasium":
            os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # pygame greets on standard output otherwise
        if fullname != COLOURS:
            return None
        found = PathFinder.find_spec(fullname, path, target)
        if found is None or found.origin is None:
            return found
        return spec_from_file_location(fullname, found.origin, loader=_Hashable(fullname, found.origin))


class _Hashable(SourceFileLoader):
    """Loads the colours, and makes them hashable."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        import numpy as np

        class Colour(np.ndarray[Any, np.dtype[Any]]):
            __hash__ = object.__hash__  # type: ignore[assignment]  # an ndarray has none

        colours = module.COLOR
        colours.update({name: value.view(Colour) for name, value in colours.items()})
