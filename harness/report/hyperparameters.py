"""An algorithm's hyperparameters as rows of a table, for the terminal and for the manual."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from harness.algorithm import Algorithm

HEADER = ("hyperparameter", "type", "default", "bounds", "")
_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "length >=", "max_length": "length <="}


def rows(algorithm: type[Algorithm[Any]]) -> list[list[str]]:
    """A row a hyperparameter, under :data:`HEADER`."""
    return [
        [name, _kind(field), _default(field), ", ".join(_bounds(field)), field.description or ""]
        for name, field in algorithm.Hyperparameters.model_fields.items()
    ]


def _kind(field: FieldInfo) -> str:
    annotation = field.annotation
    if get_origin(annotation) is Literal:
        return " or ".join(str(value) for value in get_args(annotation))
    plain = getattr(annotation, "__name__", "") if not get_args(annotation) else ""
    return plain or str(annotation).replace("typing.", "").replace("NoneType", "None")


def _default(field: FieldInfo) -> str:
    return "required" if field.is_required() else str(field.default)


def _bounds(field: FieldInfo) -> Iterator[str]:
    for metadata in field.metadata:
        for key, sign in _SIGNS.items():
            if hasattr(metadata, key):
                yield f"{sign} {getattr(metadata, key)}"
