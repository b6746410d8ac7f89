"""MetaDrive: the nine driving tasks, with DSRL's settings and cost. One environment may live in a process at a time."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from harness.simulators import FloatArray, Picture, Step, outcome
from harness.simulators.seeding import seeded
from harness.tasks import Task

ROADS = {"easy": (0, "SCS"), "medium": (100, "XST"), "hard": (200, "TRO")}
"""The one scenario of each road: its seed and its blocks, in MetaDrive's letters (S straight, C curve, ...)."""
TRAFFIC = {"sparse": 0.1, "mean": 0.15, "dense": 0.2}
"""Vehicles for each 10 m of lane."""
DSRL = {
    "idm_target_speed": 30,
    "idm_acc_factor": 1.0,
    "idm_deacc_factor": 5.0,
    "crash_vehicle_penalty": 0.0,
    "random_traffic": True,
    "traffic_mode": "hybrid",
    # Not DSRL's: else vehicles are used again in later episodes, in an order that depends on the earlier ones.
    "force_destroy": True,
}
"""Settings of dsrl/offline_metadrive/gym_envs.py, SafeMetaDriveEnv_FSRL."""
FILM, VIEW = (1200, 1200), 400
"""Pixels of the whole map from above, and of the part around the car that a picture shows."""
LIDAR = 240
"""The last numbers of an observation: how near others are, all around; 1 means none within 50 m."""


class MetaDriveEnvironment:
    """One task of MetaDrive; see :class:`harness.simulators.Environment`.

    The map and the car's start are a task's own and the same in every episode; the traffic follows from the seed.

    Raises:
        RuntimeError: another one lives in this process.
    """

    def __init__(self, task: Task, drawn: bool = False) -> None:
        environment_class = _environment_class()
        if sys.modules["metadrive.engine.engine_utils"].engine_initialized():
            raise RuntimeError("MetaDrive allows one environment in a process: close the other one first")
        road, traffic = next((road, traffic) for road in ROADS for traffic in TRAFFIC if task.name == road + traffic)
        self._scenario, blocks = ROADS[road]
        self._limit = task.max_episode_steps
        self._env = environment_class(
            {
                "map": 3,
                "map_config": {"type": "block_sequence", "config": blocks},
                "start_seed": self._scenario,
                "environment_num": 1,
                "traffic_density": TRAFFIC[traffic],
                "accident_prob": 0.0,
                "horizon": task.max_episode_steps,
            }
        )
        (self.observation_size,) = self._env.observation_space.shape
        (self.action_size,) = self._env.action_space.shape

    def reset(self, seed: int) -> FloatArray:
        """Begin an episode; see :meth:`harness.simulators.Environment.reset`."""
        with seeded(seed):  # sidewalks draw from numpy's global generator
            self._env.lazy_init()
            # With random traffic MetaDrive leaves this generator alone; it was seeded by the operating system.
            self._env.engine.traffic_manager.np_random = np.random.RandomState(seed)
            observation = self._env.reset(force_seed=self._scenario)
        self._steps = 0
        return np.asarray(observation, dtype=np.float32)

    def step(self, action: FloatArray) -> Step:
        """Take one step; see :meth:`harness.simulators.Environment.step`.

        Speed above 10 km/h and nearness cost a little in every step, as DSRL has it.
        """
        observation, reward, _, info = self._env.step(action)
        self._steps += 1
        too_fast = max(0, 1e-2 * (info["velocity"] - 10.0))
        too_near = 1e-2 * max(0, 0.1 - np.min(observation[-LIDAR:])) ** 2
        terminated = info["arrive_dest"] or info["crash"] or info["out_of_road"]
        # MetaDrive's own horizon ends an episode a step later than gymnasium's limit, which DSRL registers.
        truncated = info["max_step"] or self._steps >= self._limit
        return outcome(observation, reward, info["cost"] + too_fast + too_near, terminated, truncated)

    def draw(self) -> Picture:
        """How it looks now; see :meth:`harness.simulators.Environment.draw`."""
        surface = self._env.render(mode="topdown", film_size=FILM, screen_size=FILM, num_stack=1)
        whole = sys.modules["pygame"].surfarray.array3d(surface).swapaxes(0, 1)
        renderer = self._env.engine._top_down_renderer
        x, y = renderer._runtime_canvas.pos2pix(*self._env.vehicle.position)
        padded = np.pad(whole, ((VIEW // 2, VIEW // 2), (VIEW // 2, VIEW // 2), (0, 0)), constant_values=255)
        return np.asarray(padded[int(y) : int(y) + VIEW, int(x) : int(x) + VIEW])

    def close(self) -> None:
        """Free the simulator."""
        self._env.close()


@cache
def _environment_class() -> Any:
    """MetaDrive's environment class with DSRL's settings allowed.

    What 0.2.6.0, the version of the datasets, needs beside the packages of today is given to it while it is imported;
    no other module sees it:

    - ``gym`` 0.19, of which it uses spaces and a base class: gymnasium has both;
    - ``metadrive.register``, which registers environments with gym: nothing needs that;
    - a reader of Waymo's scenarios, generated for protobuf 3: absent it is skipped;
    - ``np.bool``, ``np.int`` and ``np.float``, which numpy 1.24 removed, in three modules.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # pygame greets on standard output otherwise
    import gymnasium
    from panda3d.core import loadPrcFileData

    loadPrcFileData("", "notify-level-device fatal\nnotify-level-task error")  # no joystick here, and the like
    stand_ins = {
        "gym": gymnasium,
        "gym.spaces": gymnasium.spaces,
        "metadrive.register": ModuleType("metadrive.register"),
        "metadrive.utils.waymo_utils.protos.scenario_pb2": None,
    }
    with _standing_in(stand_ins):
        from metadrive.envs import SafeMetaDriveEnv

        old_numpy = _OldNumpy("numpy")
        for name in ("component.vehicle_module.lidar", "utils.config", "utils.math_utils"):
            setattr(import_module(f"metadrive.{name}"), "np", old_numpy)  # noqa: B010 - mypy knows no such attribute

    class Environment(SafeMetaDriveEnv):  # type: ignore[misc]  # it has no types
        def default_config(self) -> Any:
            config = super().default_config()
            config.update(DSRL, allow_add_new_key=True)
            return config

    return Environment


class _OldNumpy(ModuleType):
    """numpy with the aliases of Python's types that it had up to 1.23."""

    bool, int, float = bool, int, float

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


@contextmanager
def _standing_in(modules: Mapping[str, ModuleType | None]) -> Iterator[None]:
    """Put modules in the place of others inside the block; ``None`` makes their import fail."""
    before = {name: sys.modules[name] for name in modules if name in sys.modules}
    sys.modules.update(modules)  # type: ignore[arg-type]  # None is allowed there
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
        sys.modules.update(before)
