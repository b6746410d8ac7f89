"""Settings from YAML, in a file or as ``KEY=VALUE``, against a model: each mistake with where it stands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from harness.errors import UserError, nearest
from harness.files import read_bytes
from harness.yaml_text import Place, YamlError, read_yaml

Model = TypeVar("Model", bound=BaseModel)

LIST, MAPPING = "[list]", "[mapping]"
"""Tags of a union's kinds; they stand in pydantic's places of mistakes, and in no file."""


class ConfigFile(Generic[Model]):
    """A file of settings, with the line of every key.

    Args:
        path: the file.
        model: of its settings.

    Raises:
        UserError: it cannot be read, or is no mapping.
    """

    def __init__(self, path: Path, model: type[Model]) -> None:
        self.path, self.model = path, model
        try:
            self.text = read_bytes(path).decode()
            content, self.lines = read_yaml(self.text)
        except OSError as error:
            raise UserError(f"cannot read it: {error.strerror}", where=str(path)) from error
        except UnicodeDecodeError as error:
            raise UserError(f"cannot read it, it is no text: {error}", where=str(path)) from error
        except YamlError as error:
            raise UserError(str(error), where=f"{path}:{error.line}") from error
        if not isinstance(content, dict):
            keys = [name for name, field in model.model_fields.items() if field.is_required()]
            raise UserError(f"needs a mapping with keys such as {', '.join(keys)}", where=str(path))
        self.content: dict[str, Any] = content

    def where(self, place: Place) -> str:
        """The file, with the line of the place or of the nearest above it."""
        lines = (self.lines.get(place[:end]) for end in range(len(place), 0, -1))
        line = next(filter(None, lines), None)
        return f"{self.path}:{line}" if line else str(self.path)

    def check(self) -> Model:
        """The settings.

        Raises:
            UserError: anything in them is wrong.
        """
        try:
            return self.model.model_validate(self.content)
        except ValidationError as error:
            place, message = _mistake(self.model, error)
            raise UserError(message, self.where(place)) from error


def parse_settings(model: type[Model], settings: Sequence[str], option: str, kind: str) -> Model:
    """The model with these fields set; values are YAML.

    Args:
        model: what is set.
        settings: ``KEY=VALUE`` each.
        option: that they are given with.
        kind: what a key is called.

    Raises:
        UserError: a setting is none, or its value is wrong.
    """
    given = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or key not in model.model_fields:
            known = nearest(key, model.model_fields)
            raise UserError(f"{option} {setting}: no such {kind}.{known} Known: {', '.join(model.model_fields)}")
        try:
            given[key], _ = read_yaml(text)
        except YamlError as error:
            raise UserError(str(error), where=f"{option} {setting}") from error
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise UserError(_mistake(model, error)[1], where=option) from error


_REASONS = {
    "model_type": "must be a mapping",
    "dict_type": "must be a mapping",
    "too_short": "must not be empty: nothing would run",
}
"""What pydantic says less well."""


def _mistake(model: type[BaseModel], error: ValidationError) -> tuple[Place, str]:
    """The place of the first mistake, and what is wrong there."""
    first = error.errors()[0]
    kind, given = first["type"], first["input"]
    place = tuple(str(part) for part in first["loc"] if part not in ("[key]", LIST, MAPPING))
    name = ".".join(place)
    if kind == "extra_forbidden":
        known = list(_model_at(model, place[:-1]).model_fields)
        return place, f"unknown key {name!r}.{nearest(place[-1], known)} Known here: {', '.join(known)}"
    if kind == "missing":
        return place, f"the key {name!r} is missing"
    reason = _REASONS.get(kind, first["msg"].removeprefix("Value error, "))
    instead = "" if kind in ("value_error", "too_short") else f", not {given!r}"
    return place, f"{name}: {reason}{instead}" if name else f"{reason}{instead}"


def _model_at(model: type[BaseModel], place: Place) -> type[BaseModel]:
    """The model whose keys stand at a place."""
    parts = iter(place)
    for part in parts:
        annotation = model.model_fields[part].annotation
        (model,) = (
            kind
            for kind in (annotation, *get_args(annotation))
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        )
        if get_origin(annotation) is dict:
            next(parts)  # a label of the user's
    return model
