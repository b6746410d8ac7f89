"""The environments that policies are rolled out in, with one face for every simulator.

Simulators are imported where an environment is made, so that training on arrays needs none of them.
"""

from __future__ import annotations

import math
import os
import platform
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from harness import extras
from harness.errors import UserError
from harness.tasks import Task

FloatArray = NDArray[np.float32]
Picture = NDArray[np.uint8]
Step = tuple[FloatArray, float, float, bool, bool]
"""Observation, reward, cost, terminated, truncated."""


class Environment(Protocol):
    """One task's environment. Several may live in one process and be stepped in turn, unless it lives alone."""

    observation_size: int
    action_size: int

    def reset(self, seed: int) -> FloatArray:
        """Begin an episode: the first observation ``(observation_size,)``.

        The episode depends on the seed (0 to 2**32 - 1) and on the actions alone: neither on episodes before it, nor on
        other environments, nor on the state of global generators, which stays as it is.
        """

    def step(self, action: FloatArray) -> Step:
        """Take one step with an action ``(action_size,)`` in [-1, 1].

        Returns:
            Observation ``(observation_size,)``, reward and cost of this step (unscaled), terminated (the task ended),
            truncated (the time was up). After either flag the episode is over and only ``reset`` makes sense.
        """

    def draw(self) -> Picture:
        """How it looks now, (height, width, 3); for an environment that was made for it, after a reset."""

    def close(self) -> None:
        """Free the simulator; may be called twice."""


def outcome(observation: Any, reward: Any, cost: Any, terminated: Any, truncated: Any) -> Step:
    """A step as the simulators give it, in the interface's types."""
    return np.asarray(observation, dtype=np.float32), float(reward), float(cost), bool(terminated), bool(truncated)


class SimulatorError(RuntimeError):
    """What an environment gave cannot be used: it is to blame, not the policy."""


def require_sound(name: str, step: int, observation: FloatArray, reward: float = 0.0, cost: float = 0.0) -> None:
    """Refuse what an environment gave, where it would become a result that means nothing.

    Args:
        name: of the task.
        step: of the episode, 0 after its reset.
        observation: (n,).
        reward: of this step.
        cost: of this step.

    Raises:
        SimulatorError: something is not finite, or the cost is negative.
    """
    if not np.isfinite(observation).all():
        raise SimulatorError(f"{name} gave an observation that is not finite at step {step}: {_shortly(observation)}")
    if not (math.isfinite(reward) and math.isfinite(cost)):
        raise SimulatorError(f"{name} gave reward {reward} and cost {cost} at step {step}")
    if cost < 0:
        raise SimulatorError(f"{name} gave the negative cost {cost} at step {step}")


def _shortly(observation: FloatArray) -> str:
    wrong = np.flatnonzero(~np.isfinite(observation))
    more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return f"entry {wrong[0]} is {observation[wrong[0]]}{more}"


def make(task: Task, drawn: bool = False) -> Environment:
    """The environment of a task, as DSRL has it, with DSRL's episode length.

    Args:
        task: the task.
        drawn: whether pictures of it are wanted; no display is needed.

    Raises:
        UserError: the task's simulator is not installed.
    """
    if task.family != "own":
        require_simulator(task)
    if drawn:  # read by MuJoCo and pygame when they first draw; what the user set stays
        os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    module, name = {
        "bullet": ("bullet", "BulletEnvironment"),
        "navigation": ("safety_gymnasium", "SafetyGymnasiumEnvironment"),
        "velocity": ("safety_gymnasium", "SafetyGymnasiumEnvironment"),
        "metadrive": ("metadrive", "MetaDriveEnvironment"),
        "own": ("own", "OwnEnvironment"),
    }[task.family]
    environment: Environment = getattr(import_module(f"harness.simulators.{module}"), name)(task, drawn)
    return environment


def lives_alone(task: Task) -> bool:
    """Whether a process may hold only one environment of the task's simulator."""
    return task.family == "metadrive"


def require_simulator(task: Task) -> None:
    """Refuse a task whose simulator is not there. Nothing is imported, but of a user's own environment an episode runs.

    Raises:
        UserError: it is not installed, with the command that installs it, or it is not to be had for this Python; or
            the user's own cannot serve.
    """
    if task.family == "own":
        from harness.simulators.own import require

        require(task)
        return
    package, install = {
        "bullet": ("bullet_safety_gym", extras.install(extras.SIMULATORS)),
        "navigation": ("safety_gymnasium", "'make install' in a checkout"),
        "velocity": ("safety_gymnasium", "'make install' in a checkout"),
        "metadrive": ("metadrive", "'make metadrive' in a checkout"),
    }[task.family]
    if find_spec(package) is None:
        if sys.version_info >= (3, 12):
            install = f"it runs on Python 3.11 and not on {platform.python_version()}"
        raise UserError(
            f"{task.name} needs the simulator {package}, which is not installed: {install}. To train with "
            "--no-evaluation no simulator is needed; 'lspc-bench work RESULTS --only-evaluation' evaluates elsewhere"
        )
