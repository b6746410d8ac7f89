"""What planning asks of a plugin's class, behind a guard, and the answers checked."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from harness.algorithm import Algorithm, Selection
from harness.bounds import MOST_WEIGHTS
from harness.data.dataset import Dataset
from harness.guard import guard

POLICY_NAME = re.compile(r"[^\s/](?:[^/\n\r\t]{0,98}[^\s/])?")
"""Part of file keys, where a slash separates, and of rows in tables."""

MOST_STEPS = 10_000
"""Of a window."""

Check = Callable[[Any], Any]


def guarded(kind: type[Algorithm[Any]], who: str) -> type[Algorithm[Any]]:
    """A class like this one, whose class methods raise nothing but :class:`harness.guard.UserCodeError`.

    Args:
        kind: a plugin's.
        who: whose, as :class:`harness.guard.UserCodeError` has it.
    """
    made: type[Algorithm[Any]]

    def hook(name: str, check: Check) -> Any:
        def call(cls: type[Algorithm[Any]], *args: Any, **named: Any) -> Any:
            shown = [arg.sealed if isinstance(arg, Dataset) else arg for arg in args]
            with guard(who, name):
                return check(getattr(super(made, cls), name)(*shown, **named))

        return classmethod(call)

    body = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    hooks = {name: hook(name, check) for name, check in CHECKS.items()}
    metaclass: Any = type(kind)
    made = metaclass(kind.__name__, (kind,), {**body, **hooks})
    return made


def declaration(kind: type[Algorithm[Any]]) -> str | None:
    """What is wrong with the attributes that a class declares, if anything is."""
    wanted = {
        "summary": (isinstance(kind.summary, str), "text"),
        "version": (_whole(kind.version, 0), "a whole number"),
        "max_replicas": (kind.max_replicas is None or _whole(kind.max_replicas, 1), "None or a number from 1 on"),
        "synchronises": (isinstance(kind.synchronises, bool), "True or False"),
        "requires": (_names(kind.requires, dotted), "a tuple of names of packages"),
        "per_task": (
            isinstance(kind.per_task, Mapping) and all(isinstance(one, Mapping) for one in kind.per_task.values()),
            "settings by task pattern",
        ),
        "extrapolated": (_names(kind.extrapolated), "a tuple of names of settings"),
    }
    wrong = [f"its {name} must be {what}" for name, (right, what) in wanted.items() if not right]
    return "; ".join(wrong) or None


def dotted(name: str) -> bool:
    """Whether this can be a package's or a module's name."""
    return all(part.isidentifier() for part in name.split("."))


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _names(value: Any, fine: Callable[[str], Any] = bool) -> bool:
    return isinstance(value, (tuple, list)) and all(isinstance(name, str) and bool(fine(name)) for name in value)


def _require(right: bool, what: str, answer: Any) -> None:
    if not right:
        raise TypeError(f"must give {what}, not {answer!r}")


def _flag(answer: Any) -> bool:
    _require(isinstance(answer, (bool, np.bool_)), "True or False", answer)
    return bool(answer)


def _policies(answer: Any) -> tuple[str, ...]:
    fine = _names(answer, lambda name: POLICY_NAME.fullmatch(name) and name.isprintable()) and 0 < len(answer) == len(
        set(answer)
    )
    _require(fine, "a tuple of one name or more, all different, of up to 100 characters and without a slash", answer)
    return tuple(map(str, answer))


def _columns(answer: Any) -> tuple[str, ...]:
    _require(_names(answer), "a tuple of names of columns", answer)
    return tuple(answer)


def _length(answer: Any) -> int | None:
    fine = answer is None or (_whole(answer, 1) and answer <= MOST_STEPS)
    _require(fine, f"None or a number of steps up to {MOST_STEPS}", answer)
    return None if answer is None else int(answer)


def _settings(answer: Any) -> dict[str, Any]:
    _require(isinstance(answer, Mapping) and all(isinstance(name, str) for name in answer), "settings by name", answer)
    return dict(answer)


def _shapes(answer: Any) -> dict[str, tuple[int, ...]]:
    fine = isinstance(answer, Mapping) and all(
        isinstance(name, str) and isinstance(shape, Iterable) and all(_whole(size, 0) for size in shape)
        for name, shape in answer.items()
    )
    _require(fine, "shapes by name", answer)
    shapes = {name: tuple(shape) for name, shape in answer.items()}
    numbers = sum(map(math.prod, shapes.values()))
    _require(numbers <= MOST_WEIGHTS, f"shapes of up to {MOST_WEIGHTS} numbers for each agent", answer)
    return shapes


def _selection(answer: Any) -> Selection:
    from safetensors.numpy import save

    _require(isinstance(answer, Selection), "a Selection", answer)
    selection: Selection = answer
    save({name: np.ascontiguousarray(values) for name, values in selection.statistics.items()})  # as results hold them
    return selection


def _sentences(answer: Any) -> tuple[str, ...]:
    _require(_names(answer, str.isprintable), "a tuple of half sentences", answer)
    return tuple(map(str, answer))


def _discount(answer: Any) -> float:
    _require(isinstance(answer, (int, float)) and 0 <= answer <= 1, "a number from 0 to 1", answer)
    return float(answer)


CHECKS: Mapping[str, Check] = {
    "published": _settings,
    "depends_on_cost_limit": _flag,
    "acts_on_cost_limit": _flag,
    "policy_names": _policies,
    "columns": _columns,
    "sequence_length": _length,
    "select": _selection,
    "noise": _shapes,
    "warnings": _sentences,
    "diagnostic_columns": _columns,
    "diagnostic_discount": _discount,
}
