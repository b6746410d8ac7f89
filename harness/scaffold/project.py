"""An algorithm's package of the user's own, written from the templates beside this file."""

from __future__ import annotations

import ast
import builtins
import keyword
import os
import re
import shutil
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from harness import processes, registry
from harness.errors import UserError
from harness.files import where_the_user_says

Kind = Literal["transitions", "sequences", "actor-critic", "unstacked"]

TEMPLATES = Path(__file__).parent / "templates"
MOST_LETTERS = 32
"""Of a name: what is written keeps within its lines."""


def module_of(name: str) -> str:
    """The Python module of an algorithm's name: ``my-clone`` is ``my_clone``."""
    return name.replace("-", "_")


def files(name: str, kind: Kind) -> Mapping[str, str]:
    """What a package consists of.

    Args:
        name: of the algorithm.
        kind: what it trains on, or how.

    Returns:
        Texts by path within the package's folder.
    """
    import jinja2

    module = module_of(name)
    title = "".join(part.capitalize() for part in name.split("-"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=False,  # noqa: S701 - no HTML
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    templates = {
        "pyproject.toml": "pyproject.toml",
        f"{module}.py": f"{kind}.py",
        f"tests/test_{module}.py": "test.py",
        "suite.yaml": "suite.yaml",
        "README.md": "README.md",
        ".gitignore": "gitignore",
    }
    return {
        path: environment.get_template(f"{template}.j2").render(name=name, kind=kind, module=module, title=title)
        for path, template in templates.items()
    }


def write_project(name: str, kind: Kind, folder: Path) -> list[Path]:
    """Write a package: all of it, or nothing.

    Args:
        name: of the algorithm.
        kind: what it trains on, or how.
        folder: to be made, and what is missing above it.

    Returns:
        The files.

    Raises:
        UserError: the name is none or is taken, or the folder is there or cannot be made.
        ResultsError: the disk is full, or broken.
    """
    written = files(name, kind)
    require_name(name, written[f"{module_of(name)}.py"])
    with where_the_user_says(folder):
        if folder.exists() or folder.is_symlink():
            raise UserError(f"{str(folder)!r} exists already: choose another --output, or remove it")
        top = place = Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() would follow links
        while not top.parent.exists():
            top = top.parent
        temporary = top.with_name(f".{top.name}.{processes.name()}.tmp")
        try:
            for path, text in written.items():
                file = temporary / place.relative_to(top) / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
            temporary.rename(top)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return [folder / path for path in written]


def require_name(name: str, code: str) -> None:
    """Refuse a name under which no new algorithm can be installed.

    Args:
        name: of the algorithm.
        code: of its module.

    Raises:
        UserError: says why.
    """
    module = module_of(name)
    if not _is_name(name):
        suggestion = "-".join(re.findall("[a-z0-9]+", name.lower()))
        near = f" Try {suggestion!r}." if _is_name(suggestion) else ""
        raise UserError(
            f"{name!r} is no name for an algorithm: up to {MOST_LETTERS} lower-case letters and digits, with single "
            f"dashes between them.{near}"
        )
    if not module.isidentifier() or keyword.iskeyword(module):
        why = "is a word of the language" if keyword.iskeyword(module) else "would begin with a digit"
        raise UserError(f"no Python module can be called {module!r} (it {why}): choose another name than {name!r}")
    plugin = registry.plugins().get(name)
    if plugin is not None:
        raise UserError(f"the name {name!r} is taken by {plugin.target} ({plugin.origin}): choose another one")
    if module in sys.stdlib_module_names or _is_module(find_spec(module)):
        raise UserError(f"there is a Python module {module!r} already: choose another name than {name!r}")
    try:
        version = distribution(name).version
    except PackageNotFoundError:
        pass
    else:
        raise UserError(f"a package {name!r} is installed already ({version}): choose another name")
    tree = ast.parse(code)
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    hidden = [one for one in classes if one in imported or hasattr(builtins, one) or classes.count(one) > 1]
    if hidden:
        raise UserError(f"its class {hidden[0]} would hide another one: choose another name than {name!r}")


def _is_name(name: str) -> bool:
    return registry.NAME.fullmatch(name) is not None and len(name) <= MOST_LETTERS


def _is_module(spec: ModuleSpec | None) -> bool:
    """Whether there is one; a mere folder on the path is none."""
    return spec is not None and spec.origin is not None
