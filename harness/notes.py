"""What the user should know of a thing that goes on, told to whoever listens."""

from __future__ import annotations

from collections.abc import Callable

Note = Callable[[str], None]
"""Is told it."""


def silent(text: str) -> None:
    """Nobody listens."""
