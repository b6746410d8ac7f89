"""Collect demo data with scripted behaviours, in the format of DSRL's files. It does not stand in for DSRL's data."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness import simulators
from harness.data.behaviours import COLLECTABLE, SCRIPTS, Behaviour, Controller
from harness.data.dataset import LABELS
from harness.data.hdf5 import write
from harness.data.manifest import manifest_path
from harness.errors import UserError
from harness.files import file_sha256, replacing
from harness.simulators import Environment, require_sound
from harness.tasks import Task

__all__ = ["COLLECTABLE", "LABEL", "collect", "file_name", "manifest_path"]

LABEL = LABELS["demo"]
PACKAGES = {
    "bullet": ("pybullet", "bullet-safety-gym"),
    "navigation": ("mujoco", "safety-gymnasium"),
    "velocity": ("mujoco", "safety-gymnasium"),
    "metadrive": ("panda3d", "metadrive-simulator"),
}
"""What an episode depends on, beside this project and numpy, by family."""

Manifest = dict[str, Any]
Arrays = dict[str, NDArray[Any]]


def file_name(task: Task) -> str:
    """What the file is called where the user names none."""
    return f"{task.id}.hdf5"


def collect(
    task: Task,
    path: Path,
    episodes: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Roll out the task's scripted behaviours; write the file and, beside it, its manifest.

    Both depend on the arguments and the packages' versions alone. Nothing is written before all episodes are there.

    Args:
        task: one of ``COLLECTABLE``.
        path: the HDF5 file to write; its folder is made.
        episodes: how many, ``None`` for the task's own number.
        seed: what the initial states, grades and noise follow from; not negative.
        progress: called after every episode with the episodes done and their total.

    Returns:
        The manifest.

    Raises:
        UserError: the task has no scripted behaviour, or an argument makes no sense.
    """
    if task.id not in SCRIPTS:
        raise UserError(f"{task.id} has no scripted behaviour to collect with; these have: {', '.join(COLLECTABLE)}.")
    script = SCRIPTS[task.id]
    total = script.episodes if episodes is None else episodes
    if total < 1:
        raise UserError(f"episodes must be at least 1, not {total}.")
    if seed < 0:
        raise UserError(f"the seed must not be negative, not {seed}.")
    if path.is_dir():
        raise UserError(f"{path} is a folder: name the file to write.")

    environment = simulators.make(task)
    try:
        plan = schedule(script.behaviours, total, seed)
        collected: list[Arrays] = []
        for index, (behaviour, grade) in enumerate(plan):
            generator = np.random.default_rng([seed, 1, index])
            collected.append(roll_out(task.name, environment, script.controller, behaviour, grade, generator))
            if progress is not None:
                progress(index + 1, total)
    finally:
        environment.close()
    arrays = {key: np.concatenate([episode[key] for episode in collected]) for key in collected[0]}

    options = "" if episodes is None else f" --episodes {episodes}"
    options += "" if seed == 0 else f" --seed {seed}"
    manifest: Manifest = {
        "task": task.id,
        "label": LABEL,
        "command": f"lspc-bench data collect {task.name}{options}",
        "seed": seed,
        "trajectories": total,
        "transitions": len(arrays["rewards"]),
        "behaviours": [
            {
                "name": behaviour.name,
                "episodes": sum(used is behaviour for used, _ in plan),
                "grades": sorted(round(grade, 4) for used, grade in plan if used is behaviour),
                "parameters": {name: list(ends) for name, ends in behaviour.parameters.items()},
                "noise": list(behaviour.noise),
            }
            for behaviour in script.behaviours
        ],
        "versions": {name: version(name) for name in ("lspc-bench", "numpy", *PACKAGES[task.family])},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as data_file, replacing(manifest_path(path)) as manifest_file:
        write(data_file, arrays, {key: manifest[key] for key in ("task", "label", "command")})
        manifest["sha256"] = file_sha256(data_file)
        manifest_file.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def schedule(behaviours: tuple[Behaviour, ...], episodes: int, seed: int) -> list[tuple[Behaviour, float]]:
    """Which behaviour at which grade for every episode: by share, grades spread evenly, in random order."""
    bounds = np.rint(np.cumsum([0.0, *(behaviour.share for behaviour in behaviours)]) * episodes).astype(int)
    plan = [
        (behaviour, (index + 0.5) / count)
        for behaviour, count in zip(behaviours, np.diff(bounds).tolist(), strict=True)
        for index in range(count)
    ]
    order = np.random.default_rng([seed, 0]).permutation(len(plan))
    return [plan[index] for index in order]


def roll_out(
    name: str,
    environment: Environment,
    controller: Controller,
    behaviour: Behaviour,
    grade: float,
    generator: np.random.Generator,
) -> Arrays:
    """One episode of T steps as DSRL's arrays: observations (T, n), actions (T, m) in [-1, 1], the others (T,).

    Raises:
        SimulatorError: the environment of the task of this name gives what is no data.
    """
    parameters = behaviour.at(grade)
    noise = generator.uniform(*behaviour.noise)
    observation = environment.reset(int(generator.integers(2**32)))
    require_sound(name, 0, observation)
    steps: list[tuple[Any, ...]] = []
    over = False
    while not over:
        wanted = controller(observation, parameters) + noise * generator.standard_normal(environment.action_size)
        action = np.clip(wanted, -1, 1).astype(np.float32)
        following, reward, cost, terminated, truncated = environment.step(action)
        require_sound(name, len(steps) + 1, following, reward, cost)
        steps.append((observation, following, action, reward, cost, terminated, truncated))
        observation, over = following, terminated or truncated
    observations, following_ones, actions, rewards, costs, terminals, timeouts = zip(*steps, strict=True)
    return {
        "observations": np.array(observations, dtype=np.float32),
        "next_observations": np.array(following_ones, dtype=np.float32),
        "actions": np.array(actions, dtype=np.float32),
        "rewards": np.array(rewards, dtype=np.float32),
        "costs": np.array(costs, dtype=np.float32),
        "terminals": np.array(terminals, dtype=np.bool_),
        "timeouts": np.array(timeouts, dtype=np.bool_),
    }
