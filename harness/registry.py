"""Algorithm plugins by name: the built-ins, and the entry points of installed packages, each loaded when asked for.

A package offers a plugin in its own pyproject.toml::

    [project.entry-points."lspc_bench.algorithms"]
    my-algorithm = "my_package.my_module:MyAlgorithm"
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from algorithms import BUILTINS
from harness.errors import UserError, nearest
from harness.guard import UserCodeError, guard, restored, within
from harness.packages import entry_points

if TYPE_CHECKING:
    from harness.algorithm import Algorithm

GROUP = "lspc_bench.algorithms"
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Plugin:
    """A name and where it leads; nothing is imported yet.

    Args:
        name: as suites write it.
        target: ``module:attribute``.
        origin: ``built-in``, or the distribution that offers it.
        problem: why it cannot be used, as far as that is known without loading it.
    """

    name: str
    target: str
    origin: str
    problem: str | None = None


@cache
def plugins() -> dict[str, Plugin]:
    """Every plugin by name. A name that two packages offer belongs to the built-in or else to nobody."""
    found = {name: Plugin(name, target, "built-in") for name, target in BUILTINS.items()}
    offered: list[tuple[EntryPoint, str]] = []
    for origin, points in entry_points(GROUP):
        if isinstance(points, Exception):
            problem = f"what it offers cannot be read: {type(points).__name__}: {points}"
            found[f"({origin})"] = Plugin(f"({origin})", "", origin, problem)
        else:
            offered += [(point, origin) for point in points]
    for point, origin in sorted(offered, key=lambda offer: (offer[0].name, offer[0].value)):
        other = found.get(point.name)
        if not NAME.fullmatch(point.name):
            problem = "its name is not of lower-case letters, digits and single dashes"
        elif other is None:
            found[point.name] = Plugin(point.name, point.value, origin)
            continue
        elif (other.target, other.origin) == (point.value, origin):
            continue
        else:
            problem = f"the name {point.name!r} is taken by {other.target} ({other.origin})"
        # Kept under a key that no suite can name, so that it is listed with its reason.
        found[f"{point.name} ({origin})"] = Plugin(point.name, point.value, origin, problem)
        if other is not None and other.origin != "built-in":
            reason = f"the name {point.name!r} is offered by {point.value} ({origin}) too"
            found[point.name] = Plugin(other.name, other.target, other.origin, reason)
    return found


def load(name: str) -> type[Algorithm[Any]]:
    """The algorithm of this name.

    Raises:
        UserError: no such name, two packages claim it, or the plugin fails to import or is no algorithm; the message
            names the plugin and its origin.
    """
    plugin = plugins().get(name)
    if plugin is None:
        raise UserError(f"unknown algorithm {name!r}.{nearest(name, plugins())} 'lspc-bench algorithms' lists them.")
    if plugin.problem:
        raise UserError(f"the algorithm {plugin.name!r} of {plugin.origin} cannot be used: {plugin.problem}")
    return _import(plugin)


def require_packages(name: str) -> None:
    """Refuse an algorithm whose packages are not all there; of a dotted name only what stands before the last dot is
    imported.

    Raises:
        UserError: names them.
        UserCodeError: a package that is looked into for another one raised something.
    """
    with guard(named(name), "requires"):
        absent = [package for package in load(name).requires if not _is_installed(package)]
    if absent:
        raise UserError(f"{name} needs {' and '.join(absent)}, not installed here: make install")


def named(name: str) -> str:
    """How messages call an algorithm."""
    return f"the algorithm {name!r}"


@contextmanager
def own_code(name: str, doing: str, limit: float, spent: float = 0.0) -> Iterator[None]:
    """Around what an algorithm's code does in a job: what it raises names it, and it ends when the job's time is up.

    Args:
        name: the algorithm's.
        doing: what it is asked for.
        limit: seconds that the job may train.
        spent: of these.

    Raises:
        UserCodeError: it raised something.
        TookTooLong: the time is up.
    """
    what = f"the {limit:g} s that a job may train (time_limits.job)"
    with within(limit - spent, what), guard(named(name), doing), restored():
        yield


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of a dotted name what stands before the last dot
        return False


@cache
def _import(plugin: Plugin) -> type[Algorithm[Any]]:
    from harness.hooks import guarded

    where = f"{named(plugin.name)} ({plugin.target}, {plugin.origin})"
    module, _, attribute = plugin.target.partition(":")
    try:
        with guard(where, "import"), restored():
            loaded = getattr(import_module(module), attribute)
            problem = _problem(loaded)
            if problem is None and plugin.origin != "built-in":
                loaded = guarded(loaded, named(plugin.name))
    except UserCodeError as error:
        raise UserError(f"{where} fails to import: {error.reason}") from error
    if problem is not None:
        raise UserError(f"{where} {problem}")
    algorithm: type[Algorithm[Any]] = loaded
    return algorithm


def _problem(loaded: Any) -> str | None:
    """Why this is no algorithm, if it is none."""
    from harness.algorithm import Algorithm, Hyperparameters
    from harness.hooks import declaration

    if not (isinstance(loaded, type) and issubclass(loaded, Algorithm)):
        return "is no subclass of harness.algorithm.Algorithm"
    missing = sorted(getattr(loaded, "__abstractmethods__", ()))
    if loaded.parts is Algorithm.parts and (
        loaded.state_dict is Algorithm.state_dict or loaded.load_state_dict is Algorithm.load_state_dict
    ):
        missing.append("parts (or state_dict and load_state_dict)")
    if missing:
        return f"does not implement {', '.join(missing)}"
    model = getattr(loaded, "Hyperparameters", None)
    if not (isinstance(model, type) and issubclass(model, Hyperparameters)):
        return "has no Hyperparameters, a subclass of harness.algorithm.Hyperparameters"
    wrong = declaration(loaded)
    return None if wrong is None else f"cannot be used: {wrong}"
