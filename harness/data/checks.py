"""What can be wrong with a dataset's shapes and values, and what is odd about them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.trajectories import Trajectories
from harness.tasks import Task

# Logged actions of unbounded Gaussian policies may leave [-1, 1] a little (the simulator clips them); actions that
# were never scaled to it leave it by far.
GROSS_ACTION = 10.0

Arrays = dict[str, NDArray[Any]]
Shape = tuple[int, ...]


def shape_problems(shapes: Mapping[str, Shape], task: Task) -> list[str]:
    """What is wrong with the shapes of DSRL's seven arrays, for a task."""
    rows = (shapes["observations"] or (0,))[0]
    widths = {
        "observations": task.observation_size,
        "next_observations": task.observation_size,
        "actions": task.action_size,
    }
    problems = []
    for key, shape in shapes.items():
        wanted = (rows, widths[key]) if key in widths else (rows,)
        if shape != wanted:
            problems.append(f"{key} has shape {shape}, {task.name} needs {wanted}")
    if rows == 0:
        problems.append("it holds no transition")
    return problems


def examine(arrays: Arrays, task: Task) -> tuple[list[str], list[str]]:
    """Check the values of arrays of the right shapes, and bring the arrays to float32 and bool in place.

    Returns:
        Problems, for which the data is refused, and warnings.
    """
    problems = []
    for key, values in arrays.items():
        if key in ("terminals", "timeouts"):
            if not np.isin(values, (0, 1)).all():
                problems.append(f"{key} holds other values than 0 and 1")
            arrays[key] = values.astype(bool)
            continue
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is found
            arrays[key] = values.astype(np.float32)
        wrong = int((~np.isfinite(arrays[key])).sum())
        if wrong:
            problems.append(f"{key} holds {wrong} values that are not finite in float32")
    if problems:
        return problems, []
    warnings = []
    rows = len(arrays["rewards"])
    extreme = float(np.abs(arrays["actions"]).max(initial=0))
    if extreme > GROSS_ACTION:
        problems.append(f"actions reach {extreme:g}; they are to lie in [-1, 1]")
    elif extreme > 1 + 1e-6:
        outside = int((np.abs(arrays["actions"]) > 1 + 1e-6).any(1).sum())
        warnings.append(f"{outside} of {rows} actions leave [-1, 1] (up to {extreme:g})")
    if (arrays["costs"] < 0).any():
        problems.append("costs are negative in places")
    both = int((arrays["terminals"] & arrays["timeouts"]).sum())
    if both:
        warnings.append(f"{both} rows carry both terminal flags; they count as one end")
    done = arrays["terminals"] | arrays["timeouts"]
    if not done.any():
        warnings.append(f"no row carries a terminal or timeout flag; all {rows} rows count as one trajectory")
    elif not done[-1]:
        warnings.append("the last trajectory has no end; it counts as a trajectory of its own")
    sizes = Trajectories.split(done, np.abs(arrays["rewards"]), np.abs(arrays["costs"]))
    for key, totals in (("rewards", sizes.reward_returns()), ("costs", sizes.cost_returns())):
        if (totals > np.finfo(np.float32).max).any():
            problems.append(f"{key} of a trajectory add up to more than float32 holds")
    return problems + _overlong(sizes, task), warnings + _not_following(arrays, done)


def _overlong(trajectories: Trajectories, task: Task) -> list[str]:
    """Trajectories that cannot be of one episode of the task."""
    lengths = trajectories.lengths
    overlong = int((lengths > task.max_episode_steps).sum())
    if not overlong:
        return []
    longest = int(lengths.argmax())
    are = f"{overlong} of {len(lengths)} trajectories {'is' if overlong == 1 else 'are'}"
    unmarked = "Are timeouts not marked" + (", or is its episode_length too small?" if task.family == "own" else "?")
    return [
        f"{are} longer than an episode of {task.name}, {task.max_episode_steps} steps: the longest, of "
        f"{lengths[longest]} steps, begins at row {trajectories.starts[longest]}. {unmarked}"
    ]


def _not_following(arrays: Arrays, done: NDArray[np.bool_]) -> list[str]:
    """Whether the next observation is, inside a trajectory, that of the next row, as it is in DSRL's files."""
    observations, following = arrays["observations"], arrays["next_observations"]
    pairs = np.flatnonzero(~done[:-1] & (observations[1:] != following[:-1]).any(1))
    wrong = int((~np.isclose(following[pairs], observations[pairs + 1], rtol=1e-4, atol=1e-5)).any(1).sum())
    inside = int((~done[:-1]).sum())
    if inside and not wrong:
        return []
    if not following.any() and observations.any():
        return ["next_observations are all zero"]
    if np.array_equal(following, observations):
        return ["next_observations are copies of observations"]
    if not wrong:
        return []
    return [f"in {wrong} of {inside} steps inside trajectories next_observations is not the next row's observation"]
