"""How large, and of what kind, what a user sets may be: types of a suite's and an algorithm's settings.

Their limits are far above what anyone runs. They are there for typing errors, which should be told with their line, at
once, and not by a process that takes all memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

MOST_WEIGHTS = 2**25
"""Between the hidden layers of one network, or ensemble: hundreds of times the published ones, and still 128 MiB.
Beyond it a typing error is likelier than a wish, and even a dry run would build it."""


def require_weights(count: int) -> None:
    """Refuse networks that nobody could mean.

    Raises:
        ValueError: more weights than :data:`MOST_WEIGHTS`.
    """
    if count > MOST_WEIGHTS:
        raise ValueError(f"networks of {count} weights are refused: at most {MOST_WEIGHTS} go into one ensemble")


def weights(widths: Sequence[int]) -> int:
    """How many there are between layers of these widths."""
    return sum(one * other for one, other in itertools.pairwise(widths))


def _affordable(widths: tuple[int, ...]) -> tuple[int, ...]:
    require_weights(weights(widths))
    return widths


Steps = Annotated[int, Field(ge=1, le=10**9)]
"""Gradient steps."""
BatchSize = Annotated[int, Field(ge=1, le=2**20)]
"""Transitions, or windows, a step."""
Count = Annotated[int, Field(ge=1, le=100)]
"""Of networks in an ensemble, or of samples a state."""
Width = Annotated[int, Field(ge=1, le=2**14)]
"""Of a layer."""
AnyHiddenSizes = Annotated[tuple[Width, ...], Field(max_length=32), AfterValidator(_affordable)]
"""Widths of hidden layers, or none."""
HiddenSizes = Annotated[AnyHiddenSizes, Field(min_length=1)]
"""Widths of at least one hidden layer."""


def holds_flag(value: Any) -> bool:
    """Whether a value, or one in a list at any depth, is true or false, which pydantic takes for 1 and 0."""
    if isinstance(value, list | tuple):
        return any(map(holds_flag, value))
    return isinstance(value, bool)


def allows_flag(annotation: Any) -> bool:
    """Whether a type has a place for true and false."""
    if annotation in (bool, Any) or isinstance(annotation, bool):
        return True
    return any(map(allows_flag, get_args(annotation)))


class Settings(BaseModel):
    """Settings none of which is true or false, infinite or NaN; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_flags(cls, value: Any) -> Any:
        if holds_flag(value):
            raise PydanticCustomError("flag", "must not be true or false")
        return value
