"""``KEY=VALUE`` of the command line as a model's fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from harness.errors import UserError, nearest
from harness.yaml_text import YamlError, read_yaml

Model = TypeVar("Model", bound=BaseModel)


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
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{option}: {f'{place}: ' if place else ''}{first['msg'].removeprefix('Value error, ')}"
        ) from error
