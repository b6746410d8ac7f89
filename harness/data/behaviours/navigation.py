"""Safety-Gymnasium's navigation: a point robot that is sent from goal to goal, with hazards in between."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from harness.data.behaviours.base import Behaviour, Parameters, Script
from harness.simulators import FloatArray

LIDAR_RANGE = 3.0  # m
# The directions of the 16 bins of a lidar as complex numbers: from straight ahead counterclockwise.
BEARINGS = np.exp(2j * np.pi * (np.arange(16) + 0.5) / 16)
WIDE_BERTH = 0.7  # m to the centre of a hazard, whose radius is 0.2 m; those further away do not matter


def reach(observation: FloatArray, parameters: Parameters) -> FloatArray:
    """Head for the goal: the action (2,), thrust and turning rate, before noise and clipping, for PointGoal1.

    Directions and velocities are complex numbers in the robot's frame: ahead is 1, to the left is 1j.

    Args:
        observation: PointGoal1's (60,); it holds the velocity in m/s from its fourth number on and the lidars of the
            goal and of the hazards. A lidar reads 1 where something is here, and 0 where nothing is within 3 m.
        parameters: ``speed`` in m/s; ``caution``, how much hazards push the robot away against the pull of 1 that the
            goal has; below 0 they attract.
    """
    velocity = complex(observation[3], observation[4])
    goal = observation[12:28] @ BEARINGS
    nearness = np.maximum(0, 1 - LIDAR_RANGE * (1 - observation[28:44]) / WIDE_BERTH)
    way = goal / max(abs(goal), 1e-6) - parameters["caution"] * (nearness @ BEARINGS)
    way /= max(abs(way), 1e-6)
    thrust = parameters["speed"] * way.real - velocity.real
    turn = 2 * np.angle(way - 1j * velocity.imag)  # turning further than the way lets thrust take away the drift
    return np.array([thrust, turn], dtype=np.float32)


NOISE = (0.05, 0.2)

SCRIPTS: Mapping[str, Script] = {
    "OfflinePointGoal1Gymnasium-v0": Script(
        reach,
        (
            # Slow, and in a wide arc around every hazard: no cost, little reward. Between hazards it may get stuck.
            Behaviour("timid", 0.12, {"speed": (0.05, 0.6), "caution": (3, 3)}, NOISE),
            # Around hazards still, but faster and faster.
            Behaviour("careful", 0.22, {"speed": (0.6, 1.3), "caution": (3, 2.4)}, NOISE),
            # So close to hazards that it often touches their rims.
            Behaviour("bold", 0.16, {"speed": (1, 1.4), "caution": (1.5, 0.8)}, NOISE),
            # Through hazards; the slower ones seek them most (below -1 they would not leave), which earns nothing.
            Behaviour("heedless", 0.5, {"speed": (0.9, 1.5), "caution": (-0.9, -0.3)}, NOISE),
        ),
        60,
    ),
}
