"""A table of episodes that other code made: read, checked like a dataset, and everything wrong with it said at once."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.errors import UserError, nearest
from harness.files import file_sha256
from harness.plan import MARK
from harness.suite import MOST_LETTERS
from harness.tasks import Task

Mask = NDArray[np.bool_]

NAMES: Mapping[str, tuple[str, ...]] = {
    "task": ("env", "env_id", "env_name", "environment", "task_id", "task_name"),
    "policy": ("algorithm", "algo", "method", "agent"),
    "seed": ("random_seed", "run_seed"),
    "cost_limit": ("limit", "budget", "cost_budget", "cost_threshold"),
    "episode_return": ("return", "ret", "reward", "episode_reward", "ep_ret"),
    "cost": ("episode_cost", "cost_return", "ep_cost"),
    "length": ("episode_length", "ep_len"),
    "step": ("training_step", "train_step", "update_step", "gradient_step"),
    "episode": ("episode_index", "episode_id"),
    "episodes": ("n_episodes", "num_episodes", "eval_episodes"),
}
"""The columns, and what each may also be called where only one of these is there."""
OPTIONAL = ("step", "episode", "episodes")
KEY = ["task", "policy", "seed", "cost_limit"]
"""What tells cells apart."""

MOST_ROWS = 5_000_000
MOST_LINES = 20
"""Of what is wrong; the rest is counted."""
MOST_LIMIT, LEAST_LIMIT = 1e9, 1e-6
FAR = 1.0
"""How many times the width of a task's reference range a return may lie outside of it before it is asked about."""


@dataclass(frozen=True)
class Episodes:
    """A table that was read.

    Args:
        source: its path, and what a cell calls its source by.
        sha256: of the source.
        rows: a row an episode: task (id), policy, seed, cost_limit (NaN: none was told), step, episode (NaN where it
            is not numbered), episode_return, cost, length, episodes (of how many it is the mean), and last (the step
            that training was to end at, NaN where that is not known). Of use only without problems.
        problems: everything that is wrong, a line each; nothing is to be imported then.
        notes: what a reader must know.
    """

    source: Path
    sha256: str
    rows: pd.DataFrame
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Raw:
    """Columns under their names here, as texts or as numbers, and where each row stands in the source."""

    columns: pd.DataFrame
    place: Callable[[int], str]


def read_episodes(path: Path, tasks: Iterable[Task]) -> Episodes:
    """Read a CSV or parquet file.

    Args:
        path: the file.
        tasks: those there are.

    Raises:
        UserError: it is no such table at all, or its columns are not those wanted.
    """
    if not path.is_file():
        raise UserError("no such file" if not path.exists() else "no file to read a table from", where=str(path))
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise UserError("needs a file that ends in .csv or .parquet", where=str(path))
    try:
        sha256 = file_sha256(path)
        raw, ragged, notes = readers[path.suffix.lower()](path)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from error
    if not len(raw.columns) and not ragged:
        raise UserError("it holds no episode: a header, and no line below it", where=str(path))
    return checked(raw, path, sha256, tasks, ragged, notes)


def _read_csv(path: Path) -> tuple[Raw, list[str], list[str]]:
    lines: list[int] = []
    rows: list[list[str]] = []
    ragged = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next((row for row in reader if any(map(str.strip, row))), None)
            if header is None:
                raise UserError("it is empty; its first line is to name the columns", where=str(path))
            _require_commas(path, header)
            for row in reader:
                if not any(row):
                    continue
                if len(row) != len(header):
                    ragged.append(f"line {reader.line_num}: {len(row)} fields, and the header has {len(header)}")
                    continue
                lines.append(reader.line_num)
                rows.append(row)
                if len(rows) > MOST_ROWS:
                    raise UserError(f"more than {MOST_ROWS} lines: import it in parts", where=str(path))
    except UnicodeDecodeError as error:
        message = f"not UTF-8 text ({error.reason} at byte {error.start}); a parquet file ends in .parquet"
        raise UserError(message, where=str(path)) from error
    except csv.Error as error:
        raise UserError(f"not valid CSV: {error}", where=f"{path}:{reader.line_num}") from error
    found, notes = _columns(path, header)
    wanted = [header.index(theirs) for theirs in found.values()]
    columns = pd.DataFrame([[row[index] for index in wanted] for row in rows], columns=list(found), dtype=object)
    return Raw(columns, lambda index: f"line {lines[index]}"), ragged, notes


def _require_commas(path: Path, header: Sequence[str]) -> None:
    """Refuse a table whose fields are separated otherwise, and one without a header.

    Raises:
        UserError: says which it is.
    """
    for separator, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")):
        if len(header) < 3 and header[0].count(separator) > 1:
            raise UserError(f"its fields are separated by {name}; commas are wanted", where=str(path))
    if any(map(_is_number, header)):
        raise UserError("it has no header: the first line is to name the columns", where=str(path))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_parquet(path: Path) -> tuple[Raw, list[str], list[str]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            if file.metadata.num_rows > MOST_ROWS:
                raise UserError(f"more than {MOST_ROWS} rows: import it in parts", where=str(path))
            found, notes = _columns(path, file.schema_arrow.names)
            frame = file.read(columns=list(found.values())).to_pandas(ignore_metadata=True)
    except (ArrowException, OSError, ValueError, MemoryError) as error:
        brief = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"not a parquet file that can be read: {brief}", where=str(path)) from error
    columns = frame[list(found.values())].set_axis(list(found), axis="columns").reset_index(drop=True)
    return Raw(columns, lambda index: f"row {index + 1}"), [], notes


def _columns(path: Path, header: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Which of a table's columns is which here, and what is not read.

    Raises:
        UserError: one is not there, or more than one may be meant.
    """
    spelled: dict[str, list[str]] = {}
    for name in header:
        spelled.setdefault(re.sub(r"[\s./-]+", "_", name.strip().lower()), []).append(name)
    if twice := [name for names in spelled.values() if len(names) > 1 for name in names[:1] if name.strip()]:
        raise UserError(f"two columns are called {twice[0]!r}", where=str(path))
    if "suite" in spelled and "row" in spelled:
        spelled["policy"] = spelled.pop("row")  # our own export: rows of a grid share their policy
    found, wrong = {}, []
    for name, others in NAMES.items():
        alike = [other for other in others if other in spelled]
        if name in spelled:
            found[name] = spelled[name][0]
        elif len(alike) == 1:
            found[name] = spelled[alike[0]][0]
        elif alike:
            wrong.append(f"{name} may be {' or '.join(alike)}: call the one that is meant {name}")
        elif name not in OPTIONAL:
            empty = " (empty where a policy was told none)" if name == "cost_limit" else ""
            wrong.append(f"{name}{empty} is not there")
    if wrong:
        wanted = ", ".join(name for name in NAMES if name not in OPTIONAL)
        raise UserError(
            f"{'; '.join(wrong)}. Wanted are the columns {wanted}, and if there are such {', '.join(OPTIONAL)}; it "
            f"has {', '.join(map(repr, header))}. Returns and costs are raw sums of an episode, not normalised",
            where=str(path),
        )
    if "suite" in spelled:
        found["suite"] = spelled["suite"][0]
    left = [name for name in header if name not in found.values()]
    renamed = [f"{theirs} as {name}" for name, theirs in found.items() if theirs.strip().lower() != name]
    notes = [f"read {', '.join(renamed)}"] if renamed else []
    return found, notes + ([f"not read: {', '.join(left)}"] if left else [])


def _first(lines: Sequence[str]) -> list[str]:
    more = len(lines) - MOST_LINES
    return [*lines[:MOST_LINES], *([f"and {more} more like these"] if more > 0 else [])]


class _Findings:
    """What is wrong with which rows; of each kind a few are told and the rest is counted."""

    def __init__(self, place: Callable[[int], str]) -> None:
        self._place = place
        self._told: list[tuple[int, int, str]] = []
        self.total = 0

    def add(self, wrong: Mask | pd.Series[bool], say: Callable[[int], str]) -> None:
        """Something is wrong with these rows."""
        rows = [int(row) for row in np.flatnonzero(np.asarray(wrong))]
        self.total += len(rows)
        self._told += [(row, 1, f"{self._place(row)}: {say(row)}") for row in rows[:MOST_LINES]]

    def once(self, row: int, count: int, text: str) -> None:
        """The same is wrong with so many rows, of which this is the first."""
        self.total += count
        more = f" (and {count - 1} more)" if count > 1 else ""
        self._told.append((row, count, f"{self._place(row)}{more}: {text}"))

    def lines(self) -> list[str]:
        """The first of it, in the table's order, and how much more there is."""
        told = sorted(self._told)[:MOST_LINES]
        left = self.total - sum(count for _, count, _ in told)
        return [text for *_, text in told] + ([f"and {left} more"] if left else [])


def checked(
    raw: Raw,
    source: Path,
    sha256: str,
    tasks: Iterable[Task],
    problems: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Episodes:
    """Check every row.

    Args:
        raw: what was read.
        source: where from.
        sha256: of it.
        tasks: those there are.
        problems: what was wrong with what is no row.
        notes: what there is to know so far.
    """
    columns, found = raw.columns, _Findings(raw.place)
    known = {name: task for task in tasks for name in task.names}
    rows = pd.DataFrame(index=columns.index)
    names = _texts(columns["task"])
    rows["task"] = names.map({name: task.id for name, task in known.items()})
    for name, indices in names.groupby(names, sort=False).groups.items():
        if name not in known:
            spelled = f"unknown task {name!r}.{nearest(str(name), known)}" if name else "no task"
            found.once(int(indices[0]), len(indices), spelled)
    rows["policy"] = _policies(_texts(columns["policy"]), found)
    rows["seed"] = _numbers(columns["seed"], "the seed", found, whole=True, most=2**32 - 1)
    rows["cost_limit"] = _numbers(columns["cost_limit"], "the cost limit", found, empty=True, most=MOST_LIMIT)
    tiny = rows["cost_limit"].between(0, LEAST_LIMIT, inclusive="neither")
    found.add(tiny, lambda row: "the cost limit is 0, or at least 1e-6: costs are divided by it")
    rows["episode_return"] = _numbers(columns["episode_return"], "the return", found, least=-np.inf)
    rows["cost"] = _numbers(columns["cost"], "the cost", found)
    for name, what, least in (("step", "the step", 0), ("episode", "the episode", 0), ("episodes", "episodes", 1)):
        given = columns.get(name)
        if given is not None:
            rows[name] = _numbers(given, what, found, least=least, most=2**53, whole=True)
    rows["step"] = rows.get("step", 0)
    rows["episode"] = rows.get("episode", np.nan)
    rows["episodes"] = rows.get("episodes", 1)
    rows["last"] = columns["last_step"].astype(float) if "last_step" in columns else np.nan
    lengths = _numbers(columns["length"], "the length", found, least=0)
    found.add(
        (rows["episodes"] == 1) & (lengths % 1 != 0) & lengths.notna(), lambda row: "the length is no whole number"
    )
    most = names.map({name: task.max_episode_steps for name, task in known.items()})
    found.add(
        lengths > most,
        lambda row: f"the length is {lengths[row]:g}, an episode of {names[row]} has at most {most[row]:g} steps",
    )
    found.add(lengths < 1, lambda row: "the length is below 1")
    rows["length"] = lengths
    _of_one_suite(columns, found)
    if not found.total:
        _once(rows, raw, found)
        _one_kind(rows, found)
    problems = [*_first(problems), *found.lines()]
    asked = [] if problems else _odd(rows, raw, {task.id: task for task in known.values()})
    return Episodes(source, sha256, rows.reset_index(drop=True), problems, [*notes, *asked])


def _texts(column: pd.Series[str]) -> pd.Series[str]:
    """As text without spaces around it; empty where there is nothing."""
    return column.astype(object).where(column.notna(), "").map(lambda value: str(value).strip()).astype(object)


def look(name: str) -> str:
    """What a name looks like: equal for names that a reader of tables cannot tell apart."""
    return " ".join(unicodedata.normalize("NFKC", name).split())


def _policies(names: pd.Series[str], found: _Findings) -> pd.Series[str]:
    """What policies are called, without the mark of what we exported ourselves."""
    spellings: dict[str, str] = {}
    for name, indices in names.groupby(names, sort=False).groups.items():
        row, count = int(indices[0]), len(indices)
        looks = look(str(name).removesuffix(MARK))
        if not name:
            found.once(row, count, "no policy")
        elif not str(name).isprintable() or len(str(name)) > MOST_LETTERS:
            found.once(row, count, f"a policy's name has at most {MOST_LETTERS} letters that can be printed")
        elif spellings.setdefault(looks, str(name)) != name:
            found.once(row, count, f"the policies {name!r} and {spellings[looks]!r} would look alike in tables")
    return names.str.removesuffix(MARK)


def _numbers(
    column: pd.Series[str],
    what: str,
    found: _Findings,
    least: float = 0.0,
    most: float = np.inf,
    whole: bool = False,
    empty: bool = False,
) -> pd.Series[float]:
    """A column as float64; what is missing where it must not, no number, not finite or outside is found."""
    texts = _texts(column)
    # Columns repeat themselves: each text is looked at once.
    parsed = {text: _parsed(text) for text in texts.unique()}
    values = texts.map(parsed).astype(float)
    missing = texts == ""
    if not empty:
        found.add(missing, lambda row: f"{what} is missing")
    found.add(values.isna() & ~missing, lambda row: f"{what} is not a number: {_shown(texts[row])}")
    infinite = np.isinf(values)
    found.add(infinite, lambda row: f"{what} is not finite: {_shown(texts[row])}")
    fine = values.notna() & ~infinite
    found.add(fine & (values < least), lambda row: f"{what} is below {least:g}: {_shown(texts[row])}")
    found.add(fine & (values > most), lambda row: f"{what} is above {most:.10g}: {_shown(texts[row])}")
    if whole:
        found.add(fine & (values % 1 != 0), lambda row: f"{what} is no whole number: {_shown(texts[row])}")
    return values


NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(inf|infinity)", re.ASCII | re.IGNORECASE)


def _parsed(text: str) -> float:
    """A number in plain decimals, or infinite; NaN where it is none."""
    if text in ("True", "False") or not NUMBER.fullmatch(text):
        return np.nan
    return float(text)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")


def _of_one_suite(columns: pd.DataFrame, found: _Findings) -> None:
    """Of our own export, whose rows stand for one suite each."""
    if "suite" not in columns:
        return
    names = _texts(columns["suite"])
    other = names != names.iloc[0] if len(names) else names == ""
    if other.any():
        row = int(np.flatnonzero(other)[0])
        text = f"of suite {names[row]!r}, the first one of {names.iloc[0]!r}: export one with --suite"
        found.once(row, int(other.sum()), text)


def _once(rows: pd.DataFrame, raw: Raw, found: _Findings) -> None:
    """Find episodes that stand there twice."""
    keys = [*KEY, "step"]
    numbered = rows["episode"].notna()
    index = rows.index.to_series()
    first = index.groupby([rows[key] for key in (*keys, "episode")], dropna=False, sort=False).transform("min")
    found.add(
        numbered & (first != rows.index),
        lambda row: (
            f"episode {rows['episode'][row]:g} of this policy and step again, as in {raw.place(int(first[row]))}"
        ),
    )
    values = [*keys, "episode_return", "cost", "length", "episodes"]
    same = index.groupby([rows[key] for key in values], dropna=False, sort=False).transform("min")
    found.add(
        ~numbered & (same != rows.index),
        lambda row: (
            f"the same as {raw.place(int(same[row]))}; if these are two episodes, number them in a column episode"
        ),
    )


def _one_kind(rows: pd.DataFrame, found: _Findings) -> None:
    """Find runs that were told a limit in places and none in others: both would count for that limit."""
    told = rows["cost_limit"].notna()
    groups = [rows["task"], rows["policy"], rows["seed"]]
    some, every = (told.groupby(groups, sort=False).transform(how) for how in ("any", "all"))
    mixed = (some & ~every).to_numpy()
    if mixed.any():
        row = int(np.flatnonzero(mixed & ~told.to_numpy())[0])
        text = f"no cost limit, where others of {rows['policy'][row]!r} with seed {rows['seed'][row]:g} there have one"
        found.once(row, int((mixed & ~told).sum()), text)


def _odd(rows: pd.DataFrame, raw: Raw, tasks: Mapping[str, Task]) -> list[str]:
    """What may be right and looks wrong: returns far from a task's reference returns, or normalised already."""
    notes = []
    for key, here in rows.groupby("task", sort=False):
        task = tasks[str(key)]
        low, high = task.min_episode_reward, task.max_episode_reward
        returns, span = here["episode_return"], high - low
        references = f"{task.name}'s reference returns are {low:g} to {high:g}"
        far = (returns < low - FAR * span) | (returns > high + FAR * span)
        if far.any():
            first = int(far.idxmax())
            notes.append(
                f"{raw.place(first)}{f' and {far.sum() - 1} more' if far.sum() > 1 else ''}: a return of "
                f"{returns[first]:g} is far outside; {references}"
            )
        elif returns.abs().max() <= 2 and span > 20:
            notes.append(
                f"all returns of {task.name} lie within 2 of 0: are they normalised? Raw is wanted; {references}"
            )
        costs = here["cost"][here["episodes"] == 1]
        if (costs % 1).any() and costs.max() <= 2:
            notes.append(f"all costs of {task.name} are at most 2, not all whole: are they normalised? Raw is wanted")
    return notes
