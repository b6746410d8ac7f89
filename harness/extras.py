"""Packages that only some need: the extras of ``pyproject.toml``."""

from __future__ import annotations

from importlib.util import find_spec

SIMULATORS = "simulators"


def install(extra: str) -> str:
    """The command that adds an extra to this environment.

    Where the simulators are, it names them too: otherwise pip may bring a numpy that they do not work with.
    """
    kept = [SIMULATORS] if extra != SIMULATORS and find_spec("bullet_safety_gym") is not None else []
    return f"pip install 'lspc-bench[{','.join([*kept, extra])}]'"
