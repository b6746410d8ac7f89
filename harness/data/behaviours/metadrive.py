"""MetaDrive: a car that follows its lane through traffic."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from harness.data.behaviours.base import Behaviour, Parameters, Script
from harness.simulators import FloatArray

LIDAR_RANGE = 50.0  # m


def drive(observation: FloatArray, parameters: Parameters) -> FloatArray:
    """Follow the lane: the action (2,), steering to the left and throttle or brake, before noise and clipping.

    Args:
        observation: MetaDrive's (259,); it holds the angle to the lane and the offset from its middle, both 0.5 where
            there is none and more to the right, the speed (v + 1) / 81 with v in km/h, and, as its last 240 numbers,
            a lidar clockwise from straight ahead that reads 1 where nothing is within 50 m.
        parameters: ``speed`` in km/h; ``gap`` in m, what to keep free to a vehicle ahead, where it is more than 0.
    """
    angle, offset = observation[2] - 0.5, observation[8] - 0.5
    speed = 81 * observation[3] - 1
    free = LIDAR_RANGE * min(observation[19:23].min(), observation[-3:].min())  # within 5 degrees of straight ahead
    wanted = parameters["speed"]
    if parameters["gap"] > 0:
        wanted = min(wanted, 2 * (free - parameters["gap"]))
    return np.array([6 * angle + 2 * offset, 0.1 * (wanted - speed)], dtype=np.float32)


NOISE = (0.02, 0.15)
WARY = (5.0, 5.0)  # m to a vehicle ahead
BLIND = (0.0, 0.0)  # to vehicles ahead

SCRIPTS: Mapping[str, Script] = {
    "OfflineMetadrive-easysparse-v0": Script(
        drive,
        (
            # Far below 10 km/h, above which speed costs.
            Behaviour("dawdling", 0.12, {"speed": (1, 8), "gap": WARY}, NOISE),
            # About as fast as is free; the time is up before the car is there.
            Behaviour("lawful", 0.28, {"speed": (8, 12), "gap": WARY}, NOISE),
            # The faster, the further the car gets and the higher the cost: the frontier between them.
            Behaviour("brisk", 0.3, {"speed": (12, 18), "gap": WARY}, NOISE),
            # The car is there well before the time is up: speed that only costs.
            Behaviour("hurried", 0.24, {"speed": (18, 28), "gap": WARY}, NOISE),
            # Out of the lane sooner or later, or into another vehicle, which ends the episode.
            Behaviour("racing", 0.06, {"speed": (40, 70), "gap": BLIND}, NOISE),
        ),
        40,
    ),
}
