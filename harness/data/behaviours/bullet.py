"""Bullet-Safety-Gym: a ball that runs or circles."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from harness.data.behaviours.base import Behaviour, Parameters, Script
from harness.simulators import FloatArray

FULL_FORCE = 8.3  # acceleration in m/s^2 of a ball at rest at action 1


def run(observation: FloatArray, parameters: Parameters) -> FloatArray:
    """Drive a ball along x: the action (2,) before noise and clipping, for an observation (7,) of BallRun.

    Args:
        observation: BallRun's; it holds position / 10 and velocity / 5.
        parameters: ``cruise`` speed in m/s; from x = ``sprint_from`` on speed ``sprint``; ``lane``, the y to keep in m.
    """
    x, y, vx, vy = observation[:4] * np.array([10, 10, 5, 5])
    speed = parameters["cruise"] if x < parameters["sprint_from"] else parameters["sprint"]
    along = 4 * (speed - vx) + 0.35 * speed  # the second term makes up for rolling resistance
    across = 4 * (parameters["lane"] - y) - 3 * vy
    return np.array([along, across], dtype=np.float32) / np.float32(FULL_FORCE)


def circle(observation: FloatArray, parameters: Parameters) -> FloatArray:
    """Drive a ball clockwise around the origin: the action (2,) before noise and clipping, for BallCircle.

    Args:
        observation: BallCircle's (8,); it holds position / 10 and velocity / 5.
        parameters: ``radius`` of the circle in m, ``speed`` in m/s, and ``left`` and ``right``, the bounds on -x and x
            in m that the ball heeds; the arcs beyond them are cut off.
    """
    position, velocity = observation[:2] * 10, observation[2:4] * 5
    distance = max(float(np.linalg.norm(position)), 0.1)
    outward = position / distance
    clockwise = np.array([outward[1], -outward[0]])
    wanted = parameters["speed"] * clockwise + 1.5 * (parameters["radius"] - distance) * outward
    wanted[0] = np.clip(wanted[0], -2.5 * (parameters["left"] + position[0]), 2.5 * (parameters["right"] - position[0]))
    turning = -(parameters["speed"] ** 2) / distance * outward
    inside = -parameters["left"] < position[0] < parameters["right"]
    force = 4 * (wanted - velocity) + 0.35 * wanted + (turning if inside else 0)
    return np.asarray(force / FULL_FORCE, dtype=np.float32)


NOISE = (0.05, 0.4)
NEVER = (99.0, 99.0)  # m along x, further than a ball gets
UNBOUNDED = (99.0, 99.0)  # m to either side

SCRIPTS: Mapping[str, Script] = {
    "OfflineBallRun-v0": Script(
        run,
        (
            # Under the speed limit of 2.5 m/s: no cost, and a return that grows with the grade.
            Behaviour(
                "cruise", 0.32, {"cruise": (0.4, 2.4), "sprint_from": NEVER, "sprint": (0, 0), "lane": (0, 0)}, NOISE
            ),
            # The earlier the sprint, the higher cost and return: the frontier between them.
            Behaviour(
                "late sprint",
                0.34,
                {"cruise": (2.3, 2.4), "sprint_from": (7.5, 1.2), "sprint": (5, 10), "lane": (0, 0)},
                NOISE,
            ),
            # Too fast at first, at the limit in the end.
            Behaviour(
                "early sprint",
                0.28,
                {"cruise": (3, 8), "sprint_from": (3, 15), "sprint": (2.3, 2.3), "lane": (0, 0)},
                NOISE,
            ),
            # Beyond the bound |y| = 2 m at a low speed: cost that earns nothing.
            Behaviour(
                "off lane",
                0.06,
                {"cruise": (1, 2.3), "sprint_from": NEVER, "sprint": (0, 0), "lane": (1.8, 2.2)},
                NOISE,
            ),
        ),
        200,
    ),
    "OfflineBallCircle-v0": Script(
        circle,
        (
            # Slow and far inside.
            Behaviour(
                "timid", 0.04, {"radius": (2, 5), "speed": (1.5, 3), "left": (5.3, 5.3), "right": (5.3, 5.3)}, NOISE
            ),
            # Within the bounds |x| = 6 m, the arcs cut off, and faster and faster.
            Behaviour(
                "guarded", 0.26, {"radius": (6.5, 7), "speed": (2.5, 6), "left": (5.3, 5.6), "right": (5.3, 5.6)}, NOISE
            ),
            # Across the right bound alone: half the cost.
            Behaviour(
                "one side", 0.2, {"radius": (6, 7), "speed": (4, 6.5), "left": (5.5, 5.5), "right": UNBOUNDED}, NOISE
            ),
            # The whole circle, whatever it costs.
            Behaviour(
                "free", 0.5, {"radius": (6.2, 7.2), "speed": (4.5, 6.5), "left": UNBOUNDED, "right": UNBOUNDED}, NOISE
            ),
        ),
        150,
    ),
}
