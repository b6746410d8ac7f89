"""Bullet-Safety-Gym, repeatable: an episode depends on its seed alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from harness.simulators import FloatArray, Picture, Step, outcome
from harness.simulators.bullet_client import speed_up
from harness.simulators.seeding import seeded
from harness.tasks import Task


class BulletEnvironment:
    """One task of Bullet-Safety-Gym; see :class:`harness.simulators.Environment`."""

    def __init__(self, task: Task, drawn: bool = False) -> None:
        self._muted = muted if drawn else nullcontext  # the renderer greets, in C
        renderer = with_renderer if drawn else nullcontext
        # Creating bodies draws from numpy's global generator, too.
        with seeded(0), real_streams(), self._muted(), renderer():
            import bullet_safety_gym  # noqa: F401  # registers the environments
            import gymnasium

            # Any: the simulator's insides, used below, are no part of gymnasium's interface.
            environment: Any = gymnasium.make(
                task.id.replace("Offline", "Safety"), max_episode_steps=task.max_episode_steps, disable_env_checker=True
            )
        if not drawn:
            speed_up(environment.unwrapped)
        self._env = environment
        (self.observation_size,) = environment.observation_space.shape
        (self.action_size,) = environment.action_space.shape

    def reset(self, seed: int) -> FloatArray:
        """Begin an episode; see :meth:`harness.simulators.Environment.reset`."""
        self._zero_motors()
        self._lose_contacts()
        # The simulator ignores the seed given to reset and draws from numpy's global generator.
        with seeded(seed):
            observation, _ = self._env.reset()
        return np.asarray(observation, dtype=np.float32)

    def step(self, action: FloatArray) -> Step:
        """Take one step; see :meth:`harness.simulators.Environment.step`."""
        observation, reward, terminated, truncated, info = self._env.step(action)
        return outcome(observation, reward, info["cost"], terminated, truncated)

    def draw(self) -> Picture:
        """How it looks now; see :meth:`harness.simulators.Environment.draw`."""
        environment = self._env.unwrapped
        # The simulator's own camera stays at the start, or sees half of a circle. And render() without a mode opens a
        # window, and waits for ever where there is no display.
        if "Circle" in type(environment.task).__name__:
            environment.world.camera.update(cam_base_pos=(0, 0, 0), cam_dist=18, cam_yaw=0, cam_pitch=-75)
        else:
            x, y, _ = environment.agent.get_position()
            environment.world.camera.update(cam_base_pos=(x, y, 0), cam_dist=5, cam_yaw=-90, cam_pitch=-40)
        with self._muted():
            return np.asarray(environment.render(mode="rgb_array"), dtype=np.uint8)

    def close(self) -> None:
        """Free the simulator."""
        with self._muted():
            self._env.close()

    def _zero_motors(self) -> None:
        """Take back the last episode's motor targets: PyBullet's restoreState, with which a reset begins, keeps them.

        Without this the first steps of a Car or Drone depend on the episode before. A fresh environment has them at
        zero, so the first episode stays as it is.
        """
        client = self._env.unwrapped.bc
        for joint in self._env.unwrapped.agent.motor_list:
            client.setJointMotorControl2(joint.body_id, joint.index, client.VELOCITY_CONTROL, targetVelocity=0, force=0)

    def _lose_contacts(self) -> None:
        """Take the agent out of every contact, and let Bullet see that: restoreState keeps contact points, too.

        Without this an episode that ends where the next one begins leaves points in the ground's contact that a fresh
        environment does not have, and that turn its first steps.
        """
        environment = self._env.unwrapped
        if environment.stored_state_id >= 0:  # else nothing happened yet, and no state is restored
            environment.bc.resetBasePositionAndOrientation(environment.agent.body_id, (0, 0, 1000), (0, 0, 0, 1))
            environment.bc.performCollisionDetection()


@contextmanager
def with_renderer() -> Iterator[None]:
    """Let environments that are made inside the block draw by EGL, unless the user decided about it."""
    decided = "PYBULLET_EGL" in os.environ
    os.environ.setdefault("PYBULLET_EGL", "1")
    try:
        yield
    finally:
        if not decided:
            del os.environ["PYBULLET_EGL"]


@contextmanager
def muted() -> Iterator[None]:
    """Keep what C code prints inside the block from the process's standard output and error."""
    kept = [os.dup(1), os.dup(2)]
    with Path(os.devnull).open("w") as nowhere:
        for number in (1, 2):
            os.dup2(nowhere.fileno(), number)
    try:
        yield
    finally:
        for number, descriptor in zip((1, 2), kept, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)


@contextmanager
def real_streams() -> Iterator[None]:
    """Give ``sys.stdout`` and ``sys.stderr`` back to the process inside the block.

    The simulator mutes its C code through their file descriptors, which stand-ins (a test's, a notebook's) may lack.
    """
    with redirect_stdout(sys.__stdout__), redirect_stderr(sys.__stderr__):
        yield
