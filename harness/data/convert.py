"""DSRL's format from the layouts that D4RL and Minari keep their datasets in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from harness.data.hdf5 import UnusableError, find_array, opened, require_room, write
from harness.errors import UserError
from harness.files import replacing, where_the_user_says

COSTS = ("costs", "cost", "infos/cost", "infos/costs")
"""Where costs are looked for."""
EPISODE = re.compile("episode_([0-9]{1,18})")

Arrays = dict[str, NDArray[Any]]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Converted:
    """What became of a file.

    Args:
        layout: that it had: ``D4RL's`` or ``Minari's``.
        rows: transitions of the new file.
        trajectories: of the new file.
        dropped: rows at the ends of trajectories that were left out, as their next observation is not known.
    """

    layout: str
    rows: int
    trajectories: int
    dropped: int


def foreign_layout(file: h5py.File) -> str | None:
    """Whose layout a file has that :func:`convert` knows, in words; ``None``: nobody's."""
    if any(EPISODE.fullmatch(name) for name in file):
        return "it has Minari's layout, an episode a group"
    try:
        found = [find_array(file, name) for name in ("observations", "actions", "rewards", "terminals")]
        costs = [find_array(file, name) for name in COSTS]
    except UnusableError:
        return None
    known = all(array is not None for array in found) and any(array is not None for array in costs)
    return "it has D4RL's layout, not DSRL's" if known else None


def convert(path: Path, output: Path, costs: str | None = None, episode_length: int | None = None) -> Converted:
    """Write a file in DSRL's format from one in D4RL's layout or Minari's (its ``main_data.hdf5``).

    D4RL keeps no next observations: they are the next row's, and, where a trajectory ends in a terminal state, the
    row's own, as nothing comes behind it. A row that ends a trajectory otherwise is left out, and the one before it
    becomes the end.

    Args:
        path: the file.
        output: the new one; it must not be there yet.
        costs: the name of the array of costs, in Minari's layout within an episode; ``None``: one of :data:`COSTS`.
        episode_length: a trajectory ends by time after so many steps, where no flag says so.

    Raises:
        UserError: something is missing or does not fit together, or the output cannot be written.
    """
    if output.exists():
        raise UserError(f"{output} is there already: name a new file")
    try:
        with opened(path) as file:
            if any(EPISODE.fullmatch(name) for name in file):
                layout, arrays = "Minari's", _minari(path, file, costs)
            else:
                layout, arrays = "D4RL's", _d4rl(path, file, costs)
    except UnusableError as error:
        raise UserError(f"cannot be converted: {error}", where=str(path)) from error
    rows = len(arrays["rewards"])
    if episode_length is not None:
        arrays["timeouts"] = _timed(arrays["terminals"] | arrays.get("timeouts", np.zeros(rows, bool)), episode_length)
        arrays["timeouts"] &= ~arrays["terminals"]
    elif "timeouts" not in arrays:
        raise UserError(
            "it does not say where trajectories end by time: --episode-length N says after how many steps",
            where=str(path),
        )
    if "next_observations" not in arrays:
        arrays = _with_next_observations(arrays)
    left = len(arrays["rewards"])
    if not left:
        raise UserError("no transition with a known next observation is in it", where=str(path))
    done = arrays["terminals"] | arrays["timeouts"]
    with where_the_user_says(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        with replacing(output) as temporary:
            write(temporary, arrays, {"label": f"converted from {layout} layout"})
    return Converted(layout, left, int(done.sum()) + int(not done[-1]), rows - left)


def _d4rl(path: Path, file: h5py.File, costs: str | None) -> Arrays:
    names: dict[str, tuple[str, ...]] = {name: (name,) for name in ("observations", "actions", "rewards", "terminals")}
    optional = {name: (name,) for name in ("timeouts", "next_observations")}
    found = _find(file, names | {"costs": _places(costs)}, optional)
    require_room(path, found.values())
    arrays = {key: _values(key, array) for key, array in found.items()}
    _require_equal(arrays, len(arrays["rewards"]))
    return arrays


def _minari(path: Path, file: h5py.File, costs: str | None) -> Arrays:
    """Observations are one more than actions: the last is what came behind the last action. So may infos be, whose
    first belongs to the reset.
    """
    numbered = sorted((int(match[1]), name) for name in file if (match := EPISODE.fullmatch(name)))
    wanted = ("observations", "actions", "rewards", "terminations", "truncations")
    episodes = []
    for _, name in numbered:
        places = {key: (f"{name}/{key}",) for key in wanted} | {"costs": tuple(f"{name}/{at}" for at in _places(costs))}
        episodes.append(_find(file, places, {}))
    require_room(path, [array for episode in episodes for array in episode.values()])
    parts: dict[str, list[NDArray[Any]]] = {}
    for (_, name), found in zip(numbered, episodes, strict=True):
        episode = {key: _values(key, array) for key, array in found.items()}
        steps = len(episode["rewards"])
        if not steps:
            continue
        if len(episode["observations"]) != steps + 1:
            raise UnusableError(f"{name}/observations has {len(episode['observations'])} rows, not {steps + 1}")
        if len(episode["costs"]) == steps + 1:
            episode["costs"] = episode["costs"][1:]
        observations, terminals = episode.pop("observations"), episode.pop("terminations")
        timeouts = episode.pop("truncations")
        if len(timeouts) == steps == len(terminals):
            timeouts[-1] |= not terminals[-1]
        episode |= {"observations": observations[:-1], "next_observations": observations[1:]}
        episode |= {"terminals": terminals, "timeouts": timeouts}
        _require_equal(episode, steps, f"{name}/")
        for key, values in episode.items():
            parts.setdefault(key, []).append(values)
    if not parts:
        raise UnusableError("its episodes have no steps")
    shapes = {key: {values.shape[1:] for values in arrays} for key, arrays in parts.items()}
    for key, widths in shapes.items():
        if len(widths) > 1:
            raise UnusableError(f"{key} is not equally wide in all episodes")
    return {key: np.concatenate(arrays) for key, arrays in parts.items()}


def _places(costs: str | None) -> tuple[str, ...]:
    return COSTS if costs is None else (costs,)


def _find(
    file: h5py.File, required: Mapping[str, tuple[str, ...]], optional: Mapping[str, tuple[str, ...]]
) -> dict[str, h5py.Dataset]:
    """The first array for each key that is there.

    Raises:
        UnusableError: a required one is missing, or one is not usable.
    """
    found = {}
    for key, places in {**required, **optional}.items():
        for place in places:
            try:
                array = find_array(file, place)
            except UnusableError as error:
                raise UnusableError(f"{place} {error}") from error
            if array is not None:
                found[key] = array
                break
        else:
            if key in required:
                also = "; --costs names another array" if key == "costs" else ""
                raise UnusableError(f"there is no array {' or '.join(places)}{also}")
    return found


def _values(key: str, array: h5py.Dataset) -> NDArray[Any]:
    """An array's content: observations and actions (T, dim), all else (T,), flags bool."""
    axes = 2 if key in ("observations", "next_observations", "actions") else 1
    values = np.asarray(array[()])
    if axes == 1 and values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != axes:
        raise UnusableError(f"{array.name} has shape {values.shape}, not {axes} ax{'is' if axes == 1 else 'es'}")
    if key in ("terminals", "timeouts", "terminations", "truncations"):
        if not np.isin(values, (0, 1)).all():
            raise UnusableError(f"{array.name} holds other values than 0 and 1")
        return values.astype(bool)
    with np.errstate(over="ignore"):  # becomes infinite, which every check of the new file finds
        return values.astype(np.float32)


def _require_equal(arrays: Arrays, rows: int, where: str = "") -> None:
    for key, values in arrays.items():
        if len(values) != rows:
            raise UnusableError(f"{where}{key} has {len(values)} rows, {where}rewards {rows}")


def _timed(done: Bools, length: int) -> Bools:
    """Where trajectories (N,) end, if each that goes on for so many steps ends by time."""
    ends = done.copy()
    starts = np.concatenate([[0], np.flatnonzero(done) + 1])
    for start, stop in zip(starts, [*starts[1:], len(done)], strict=True):
        ends[start + length - 1 : stop : length] = True
    return ends


def _with_next_observations(arrays: Arrays) -> Arrays:
    """The same with next observations, less the rows that have none."""
    terminals, timeouts = arrays["terminals"], arrays["timeouts"] & ~arrays["terminals"]
    observations = arrays["observations"]
    unknown = timeouts.copy()
    unknown[-1:] |= ~terminals[-1:]
    following = np.concatenate([observations[1:], observations[-1:]])
    following[terminals] = observations[terminals]
    ends = np.zeros(len(unknown), bool)
    ends[:-1] = unknown[1:] & ~terminals[:-1] & ~timeouts[:-1]
    arrays = {**arrays, "next_observations": following, "timeouts": ends}
    return {key: values[~unknown] for key, values in arrays.items()}
