"""An algorithm's hyperparameters as rows of a table, for the terminal and for the manual."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

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


def published(algorithm: type[Algorithm[Any]]) -> dict[str, dict[str, str]]:
    """The settings for tasks, by pattern and name; those of :attr:`Algorithm.extrapolated` are marked so."""
    marks = dict.fromkeys(algorithm.extrapolated, " (extrapolated)")
    return {
        pattern: {name: f"{value}{marks.get(name, '')}" for name, value in values.items()}
        for pattern, values in algorithm.per_task.items()
    }


def _kind(field: FieldInfo) -> str:
    annotation = field.annotation
    if get_origin(annotation) is Literal:
        return " or ".join(str(value) for value in get_args(annotation))
    annotation = _bare(annotation)
    plain = getattr(annotation, "__name__", "") if not get_args(annotation) else ""
    return plain or str(annotation).replace("typing.", "").replace("NoneType", "None")


def _bare(annotation: Any) -> Any:
    """A type without the bounds of what it holds."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) is tuple:
        return tuple[tuple(map(_bare, get_args(annotation)))]  # type: ignore[misc]
    return annotation


def _default(field: FieldInfo) -> str:
    return "required" if field.is_required() else str(field.default)


def _bounds(field: FieldInfo) -> Iterator[str]:
    yield from _signs(field.metadata)
    for part in get_args(field.annotation):
        if get_origin(part) is Annotated:
            yield from (f"each {bound}" for bound in _signs(get_args(part)[1:]))


def _signs(metadata: Iterable[Any]) -> Iterator[str]:
    for one in metadata:
        for constraint in one.metadata if isinstance(one, FieldInfo) else [one]:
            for key, sign in _SIGNS.items():
                if getattr(constraint, key, None) is not None:
                    yield f"{sign} {getattr(constraint, key)}"
