"""Safety-Gymnasium: the navigation and the velocity tasks."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np

from harness.simulators import FloatArray, Picture, Step, outcome
from harness.simulators.navigation import sky, speed_up
from harness.tasks import Task


class SafetyGymnasiumEnvironment:
    """One task of Safety-Gymnasium; see :class:`harness.simulators.Environment`."""

    def __init__(self, task: Task, drawn: bool = False) -> None:
        import safety_gymnasium

        speed_up()
        # DSRL's ids carry "Gymnasium" where they hide the cost in info; the native ids return it by itself.
        native_id = task.id.replace("Offline", "Safety").replace("Gymnasium", "")
        settings = {"render_mode": "rgb_array", "width": 400, "height": 400} if drawn else {}
        if drawn and task.family == "navigation":
            settings["camera_name"] = "fixedfar"
        self._world = sky if drawn else nullcontext
        self._env = safety_gymnasium.make(
            native_id, max_episode_steps=task.max_episode_steps, disable_env_checker=True, **settings
        )
        if task.family == "navigation":
            self._env.reset(seed=0)  # a first world is built in another way, which differs in the last digits
        (self.observation_size,) = self._env.observation_space.shape
        (self.action_size,) = self._env.action_space.shape

    def reset(self, seed: int) -> FloatArray:
        """Begin an episode; see :meth:`harness.simulators.Environment.reset`."""
        with self._world():
            observation, _ = self._env.reset(seed=seed)
        return np.asarray(observation, dtype=np.float32)

    def step(self, action: FloatArray) -> Step:
        """Take one step; see :meth:`harness.simulators.Environment.step`."""
        observation, reward, cost, terminated, truncated, _ = self._env.step(action)
        return outcome(observation, reward, cost, terminated, truncated)

    def draw(self) -> Picture:
        """How it looks now; see :meth:`harness.simulators.Environment.draw`."""
        return np.asarray(self._env.render(), dtype=np.uint8)

    def close(self) -> None:
        """Free the simulator."""
        self._env.close()
        for viewer in getattr(getattr(self._env.unwrapped, "task", None), "_viewers", {}).values():
            viewer.free()  # navigation tasks leave theirs to the end of the process, where it fails
