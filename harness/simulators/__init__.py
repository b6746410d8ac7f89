"""The environments that policies are rolled out in, with one face for every simulator.

Simulators are imported where an environment is made, so that training on arrays needs none of them.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from harness.errors import UserError
from harness.tasks import Task

FloatArray = NDArray[np.float32]


class Environment(Protocol):
    """One task's environment. Several may live in one process and be stepped in turn."""

    observation_size: int
    action_size: int

    def reset(self, seed: int) -> FloatArray:
        """Begin an episode: the first observation ``(observation_size,)``.

        The episode depends on the seed (0 to 2**32 - 1) and on the actions alone: neither on episodes before it, nor on
        other environments, nor on the state of global generators, which stays as it is.
        """

    def step(self, action: FloatArray) -> tuple[FloatArray, float, float, bool, bool]:
        """Take one step with an action ``(action_size,)`` in [-1, 1].

        Returns:
            Observation ``(observation_size,)``, reward and cost of this step (unscaled), terminated (the task ended),
            truncated (the time was up). After either flag the episode is over and only ``reset`` makes sense.
        """

    def close(self) -> None:
        """Free the simulator; may be called twice."""


def make(task: Task) -> Environment:
    """The environment of a task, as DSRL has it, with DSRL's episode length.

    Raises:
        UserError: the task's simulator is not installed or not supported.
    """
    require_simulator(task)
    if task.family == "bullet":
        from harness.simulators.bullet import BulletEnvironment

        return BulletEnvironment(task)
    from harness.simulators.safety_gymnasium import SafetyGymnasiumEnvironment

    return SafetyGymnasiumEnvironment(task)


def require_simulator(task: Task) -> None:
    """Refuse a task whose simulator is not there; nothing is imported.

    Raises:
        UserError: it is not installed, with the command that installs it, or not supported.
    """
    if task.family == "metadrive":
        raise UserError(
            f"{task.name}: roll-outs in MetaDrive are not supported yet; leave its tasks out, for example with "
            "--set 'tasks=[bullet, navigation, velocity]'"
        )
    package, install = {
        "bullet": ("bullet_safety_gym", "pip install bullet-safety-gym==1.4.0"),
        "navigation": ("safety_gymnasium", "make install"),
        "velocity": ("safety_gymnasium", "make install"),
    }[task.family]
    if find_spec(package) is None:
        raise UserError(f"{task.name} needs the simulator {package}, which is not installed: {install}")
