"""Docstrings name other objects as Sphinx does, :meth:`update`; the site shows links in their place, see mkdocs.yml."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`~?([\w.]+)`")


class DocstringRoles(griffe.Extension):
    """Turns every role into a link, if what it names is on a page of the site, or else into code."""

    def on_object(self, *, obj: griffe.Object, **extra: Any) -> None:
        """Rewrite the object's docstring."""
        if obj.docstring:
            obj.docstring.value = ROLE.sub(lambda role: _link(obj, role[1]), obj.docstring.value)


def _link(obj: griffe.Object, name: str) -> str:
    first, *rest = name.split(".")
    try:
        path = ".".join([obj.resolve(first), *rest])
    except griffe.NameResolutionError:
        path = name
    return f'<autoref identifier="{path}" optional><code>{name}</code></autoref>'
