"""What OSRL's training scripts leave behind: a folder a run, with ``config.yaml`` and ``progress.txt``.

``progress.txt`` is a table with tabs, a row an evaluation: ``Steps`` (the index of the update, from 0 on) and means
over ``eval_episodes`` episodes, as raw sums: its trainers divide the scales of training out again. That is
``eval/Reward``, ``eval/Cost`` and ``eval/Length``; for CDT, which is told a return and a cost, ``ret/c_10_r_450`` and
so on for every pair in ``target_returns``. Single episodes are nowhere. ``config.yaml`` has Python's tuples in it;
nothing is run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from harness.errors import UserError, shortened
from harness.exchange.table import Episodes, Raw, checked
from harness.files import file_sha256
from harness.tasks import Task

CONFIG, PROGRESS = "config.yaml", "progress.txt"
MOST_RUNS = 10_000
MOST_BYTES = {CONFIG: 1 << 18, PROGRESS: 1 << 26}
MOST_DIGITS = 15
"""Of a step."""
WANTED: Mapping[str, tuple[type, ...]] = {
    "task": (str,),
    "seed": (int,),
    "eval_episodes": (int,),
    "cost_limit": (int, float),
    "prefix": (str,),
    "suffix": (str,),
    "bc_mode": (str,),
    "update_steps": (int,),
    "target_returns": (list,),
}
"""What is read of a run's settings."""
OPTIONAL = ("cost_limit", "prefix", "suffix", "bc_mode", "update_steps", "target_returns")
EVALUATED = {"episode_return": "eval/Reward", "cost": "eval/Cost", "length": "eval/Length"}
TOLD = {"episode_return": "ret", "cost": "cost", "length": "length"}
"""Of CDT: what stands before ``/c_<cost>_r_<return>``."""
TARGET = re.compile(r"ret/(c_(-?\d+)_r_(-?\d+))")
Row = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """YAML without code: Python's tuples are lists, its other objects nothing."""


def _python(loader: _Loader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode) and suffix == "tuple":
        return loader.construct_sequence(node, deep=True)
    return None


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", _python)


def read_runs(root: Path, tasks: Iterable[Task]) -> Episodes:
    """Read all runs in or below a folder.

    Args:
        root: the folder.
        tasks: those there are.

    Returns:
        A row an evaluation, which is a mean over episodes.

    Raises:
        UserError: there is no run.
    """
    if not root.is_dir():
        raise UserError("no such folder", where=str(root))
    paths = sorted(root.rglob(PROGRESS))
    if not paths:
        raise UserError(f"no run of OSRL's scripts in it: none has a {PROGRESS}", where=str(root))
    if len(paths) > MOST_RUNS:
        raise UserError(f"{len(paths)} runs, at most {MOST_RUNS} are read: import them in parts", where=str(root))
    rows: list[Row] = []
    places: list[str] = []
    problems: list[str] = []
    notes: list[str] = []
    digest = hashlib.sha256()
    runs: dict[tuple[Any, ...], str] = {}
    for path in paths:
        name = str(path.relative_to(root))
        try:
            config = _config(path.with_name(CONFIG))
            of_run, lines = _rows(path, config, notes, name)
        except UserError as error:
            problems.append(str(error))
            continue
        for key in dict.fromkeys((row["task"], row["policy"], row["seed"], row["cost_limit"]) for row in of_run):
            other = runs.setdefault(key, name)
            if other != name:
                limit = "" if key[3] is None else f", limit {key[3]:g}"
                problems.append(
                    f"{name} and {other} are both {key[1]} on {key[0]}, seed {key[2]}{limit}: leave one out"
                )
        rows += of_run
        places += [f"{name}, line {line}" for line in lines]
        for one in (path.with_name(CONFIG), path):
            digest.update(file_sha256(one).encode())
    if not rows:
        rest = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"no evaluation in it{f': {problems[0]}{rest}' if problems else ''}", where=str(root))
    notes.append(
        f"{len(paths)} runs: returns and costs are raw, as OSRL's trainers log them, and means over episodes, which "
        "they do not keep: P(safe) and tail cannot be told, and are '-'"
    )
    raw = Raw(pd.DataFrame(rows, dtype=object), lambda index: places[index])
    return checked(raw, root, digest.hexdigest(), tasks, problems, notes)


def _config(path: Path) -> dict[str, Any]:
    """What a run was set to.

    Raises:
        UserError: it cannot be read, or does not say what is needed.
    """
    try:
        content = yaml.load(_text(path), _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"not valid YAML: {str(error).splitlines()[0]}", where=str(path)) from error
    if not isinstance(content, dict):
        raise UserError("no settings by name in it", where=str(path))
    if missing := [key for key in WANTED if key not in OPTIONAL and content.get(key) is None]:
        raise UserError(f"it does not say {', '.join(missing)}", where=str(path))
    for key, kinds in WANTED.items():
        if content.get(key) is not None and (not isinstance(content[key], kinds) or isinstance(content[key], bool)):
            shown = shortened(repr(content[key]), 40)
            raise UserError(
                f"{key} is to be {' or '.join(kind.__name__ for kind in kinds)}, not {shown}", where=str(path)
            )
    return content


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            raise UserError("it is not there" if not path.exists() else "it is no file", where=str(path))
        if path.stat().st_size > MOST_BYTES[path.name]:
            raise UserError(
                f"of {path.stat().st_size} bytes; at most {MOST_BYTES[path.name]} are read", where=str(path)
            )
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise UserError("not UTF-8 text", where=str(path)) from error


def _rows(path: Path, config: Mapping[str, Any], notes: list[str], name: str) -> tuple[list[Row], list[int]]:
    """A run's evaluations, and the line of each.

    Raises:
        UserError: it has none, or it cannot be told what its columns are.
    """
    text = _text(path)
    whole = text.endswith("\n")
    header, *lines = [line.split("\t") for line in text.splitlines()] or [[""]]
    if not whole and lines and len(lines[-1]) != len(header):
        notes.append(f"{name}: its last line was not written to the end, and is left out")
        lines.pop()
    if not lines:
        raise UserError("no evaluation in it", where=str(path))
    columns = _evaluations(header, config, path)
    shared = {
        "task": config["task"],
        "policy": _policy(config),
        "seed": config["seed"],
        "episodes": config["eval_episodes"],
        "episode": 0,
        "last_step": _whole(config.get("update_steps")),
    }
    rows, numbers = [], []
    for number, fields in enumerate(lines, 2):
        if len(fields) != len(header):
            raise UserError(f"{len(fields)} fields, and the header has {len(header)}", where=f"{path}:{number}")
        values = dict(zip(header, fields, strict=True))
        counted = values["Steps"].isdecimal() and len(values["Steps"]) <= MOST_DIGITS
        step = int(values["Steps"]) + 1 if counted else values["Steps"]
        for limit, of_limit in columns:
            found = {key: values[column] for key, column in of_limit.items()}
            rows.append({**shared, "cost_limit": limit, "step": step, **found})
            numbers.append(number)
    return rows, numbers


def _evaluations(
    header: Sequence[str], config: Mapping[str, Any], path: Path
) -> list[tuple[float | None, dict[str, str]]]:
    """The columns of each evaluation, and the limit that it was told or trained for."""
    if "Steps" in header and not set(EVALUATED.values()) - set(header):
        limit = config.get("cost_limit")
        return [(None if config.get("bc_mode") == "all" or limit is None else limit, EVALUATED)]
    exact = {
        f"c_{int(cost)}_r_{int(reward)}": float(cost)
        for reward, cost in filter(_is_pair, config.get("target_returns") or [])
    }
    told: dict[float, dict[str, str]] = {}
    for column in header if "Steps" in header else ():
        match = TARGET.fullmatch(column)
        names = {key: f"{before}/{match[1]}" for key, before in TOLD.items()} if match else {}
        if match is None or set(names.values()) - set(header):
            continue
        limit = exact.get(match[1], float(match[2]))
        if limit in told:
            what = f"cost {limit:g} was told with more than one return, so that it is not one policy's"
            raise UserError(what, where=str(path))
        told[limit] = names
    if told:
        return list(told.items())
    raise UserError(
        f"needs the columns Steps, {', '.join(EVALUATED.values())} (raw, not normalised), or for every target of CDT "
        f"ret/c_10_r_450, cost/..., length/...; it has {', '.join(header[:20])}{', ...' if len(header) > 20 else ''}",
        where=str(path),
    )


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(one, (int, float)) and abs(one) < 1e15 for one in value)
    )


def _policy(config: Mapping[str, Any]) -> str:
    """The algorithm, as OSRL names its runs: ``BCQL``, ``BC-safe``, with the suffix that a run was given."""
    prefix = config.get("prefix") or "OSRL"
    mode = config.get("bc_mode")
    parts = [prefix if not mode or prefix.endswith(f"-{mode}") else f"{prefix}-{mode}", config.get("suffix")]
    return "-".join(part.strip("-_ ") for part in parts if part)


def _whole(value: int | None) -> float:
    """A number of steps; NaN where there is none."""
    return float(value) if value is not None and 0 < value < 2**53 else float("nan")
