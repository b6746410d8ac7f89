"""Which code an environment of the user's consists of, so that results of other code are not taken for it."""

from __future__ import annotations

import ast
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files import read_bytes
from harness.imports import OURS

MOST_FILES = 2000
"""Python files of a package that are read; what has more is no package as people write them."""
INSTALLED = {"site-packages", "dist-packages"}


def describe(environment: Any, modules: Iterable[str]) -> str:
    """The code behind an environment.

    Installed packages are known by name and version. What is not installed, or is edited where it lies, is known by its
    content: the top-level modules and packages that the environment's classes come from, with those they import that
    are not installed either.

    Args:
        environment: as gymnasium made it.
        modules: that registered it and made it.

    Returns:
        Such as ``safety-gymnasium 0.4.0, code 0123456789abcdef``.

    Raises:
        UserError: a package has more than :data:`MOST_FILES` files, or one that cannot be read.
    """
    found = {name.partition(".")[0] for name in (*modules, *_classes(environment))}
    found = {name for name in found if name not in sys.stdlib_module_names and name not in (*OURS, "__main__")}
    origins = packages_distributions()
    packages, digests, seen = set(), {}, set()
    waiting = sorted(found)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        files = _files(name, everywhere=name not in origins)
        if files:
            for place, path in files:
                try:
                    content = read_bytes(path)
                except OSError as error:
                    raise UserError(f"cannot read the environment's code, {str(path)!r}: {error.strerror}") from error
                digests[f"{name}/{place}"] = hashlib.sha256(content).hexdigest()
                waiting += sorted(_imported(content) - seen - sys.stdlib_module_names - {*OURS})
        elif name in found and name in origins:
            packages |= {f"{origin} {version(origin)}" for origin in origins[name]}
    gymnasium = {package for package in packages if package.startswith("gymnasium ")}
    named = sorted(packages - gymnasium or (packages if not digests else ()))  # it wraps every environment
    if digests:
        text = "\n".join(f"{place} {digest}" for place, digest in sorted(digests.items()))
        named.append(f"code {hashlib.sha256(text.encode()).hexdigest()[:16]}")
    return ", ".join(named)


def _classes(environment: Any) -> Iterator[str]:
    """The modules of the classes that an environment and its wrappers are of."""
    from gymnasium import Wrapper

    while True:
        yield from (kind.__module__ for kind in type(environment).__mro__)
        if not isinstance(environment, Wrapper):
            return
        environment = environment.env


def _files(name: str, everywhere: bool) -> list[tuple[str, Path]]:
    """The files of a top-level module or package with their places in it; none where it lies with what is installed,
    unless ``everywhere`` is looked."""
    try:
        found = find_spec(name)
    except (ImportError, ValueError):  # a module that was made by hand
        return []
    if found is None:
        return []

    def counts(path: Path) -> bool:
        return everywhere or not INSTALLED.intersection(path.parts)

    if found.submodule_search_locations is not None:
        folders = [folder for folder in map(Path, found.submodule_search_locations) if counts(folder)]
        return [(str(path.relative_to(folder)), path) for folder in folders for path in _sources(folder, name)]
    path = Path(found.origin or "")
    return [(path.name, path)] if found.has_location and counts(path) else []


def _sources(folder: Path, name: str) -> list[Path]:
    """The Python files under a folder, but for hidden folders."""
    paths: list[Path] = []
    for place, folders, files in os.walk(folder):
        folders[:] = [one for one in folders if not one.startswith(".") and one not in INSTALLED]
        paths += [Path(place, file) for file in files if file.endswith(".py")]
        if len(paths) > MOST_FILES:
            raise UserError(
                f"the package {name!r}, in {str(folder)!r}, has more than {MOST_FILES} Python files, too many to read "
                "them for changes: install it, and it is known by its version"
            )
    return sorted(paths)


def _imported(content: bytes) -> set[str]:
    """The top-level names that a module imports; of what is no Python none."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError):
        return set()
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names
