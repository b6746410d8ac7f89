"""An environment of the user's, registered with gymnasium."""

from __future__ import annotations

from typing import Any

import numpy as np

from harness.errors import UserError
from harness.simulators import FloatArray, Picture, Step, outcome
from harness.simulators.seeding import seeded
from harness.tasks import Task


class OwnEnvironment:
    """A task that is none of DSRL's; see :class:`harness.simulators.Environment`.

    Its cost is ``info["cost"]``, as in DSRL.

    Raises:
        UserError: it cannot be made, or does not fit the dataset.
    """

    def __init__(self, task: Task, drawn: bool = False) -> None:
        import gymnasium

        try:
            with seeded(0):
                environment: Any = gymnasium.make(
                    task.environment,
                    max_episode_steps=task.max_episode_steps,
                    disable_env_checker=True,
                    **({"render_mode": "rgb_array"} if drawn else {}),  # type: ignore[arg-type]
                )
        except Exception as error:  # the user's code, which may raise anything
            raise UserError(f"cannot make {task.environment!r}, {type(error).__name__}: {error}") from error
        self._env = environment
        observations, actions = environment.observation_space, environment.action_space
        self.observation_size, self.action_size = task.observation_size, task.action_size
        for what, space, size in (
            ("observations", observations, task.observation_size),
            ("actions", actions, task.action_size),
        ):
            if space.shape != (size,):
                raise UserError(f"{task.environment!r} has {what} of shape {space.shape}, its dataset ({size},)")
        if not (np.all(actions.low == -1) and np.all(actions.high == 1)):
            raise UserError(
                f"{task.environment!r} has actions outside [-1, 1]: put gymnasium.wrappers.RescaleAction around it, "
                "and scale the dataset's likewise"
            )

    def reset(self, seed: int) -> FloatArray:
        """Begin an episode; see :meth:`harness.simulators.Environment.reset`."""
        with seeded(seed):
            observation, _ = self._env.reset(seed=seed)
        return np.asarray(observation, dtype=np.float32)

    def step(self, action: FloatArray) -> Step:
        """Take one step; see :meth:`harness.simulators.Environment.step`."""
        observation, reward, terminated, truncated, info = self._env.step(action)
        if "cost" not in info:
            raise RuntimeError("a step's info has no 'cost'")
        return outcome(observation, reward, info["cost"], terminated, truncated)

    def draw(self) -> Picture:
        """How it looks now; see :meth:`harness.simulators.Environment.draw`."""
        return np.asarray(self._env.render(), dtype=np.uint8)

    def close(self) -> None:
        """Free it."""
        self._env.close()


def spaces(environment: str) -> tuple[int, int]:
    """The sizes of an environment's observations and actions.

    Args:
        environment: what gymnasium makes it by.

    Raises:
        UserError: it cannot be made, or one of them is no vector.
    """
    import gymnasium

    try:
        with seeded(0):
            made: Any = gymnasium.make(environment, disable_env_checker=True)
        shapes = {"observations": made.observation_space.shape, "actions": made.action_space.shape}
        made.close()
    except Exception as error:  # the user's code, which may raise anything
        raise UserError(f"cannot make {environment!r}, {type(error).__name__}: {error}") from error
    for what, shape in shapes.items():
        if shape is None or len(shape) != 1:
            raise UserError(f"{environment!r} has {what} of shape {shape}, not vectors")
    return shapes["observations"][0], shapes["actions"][0]


def require(task: Task) -> None:
    """Make the environment, begin an episode and take a step, so that a mistake shows before anything is trained.

    Raises:
        UserError: it cannot, or does not fit the dataset.
    """
    environment = OwnEnvironment(task)
    try:
        environment.reset(0)
        environment.step(np.zeros(task.action_size, dtype=np.float32))
    except Exception as error:  # the user's code, which may raise anything
        hint = " (safety_gymnasium.wrappers.SafetyGymnasium2Gymnasium turns its six values a step into five)"
        six = hint if "too many values to unpack" in str(error) else ""
        raise UserError(f"{task.environment!r} does not run, {type(error).__name__}: {error}{six}") from error
    finally:
        environment.close()
