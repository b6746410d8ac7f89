"""Safety-Gymnasium's velocity: a swimmer of three links that has to stay below a speed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from harness.data.behaviours.base import Behaviour, Parameters, Script
from harness.simulators import FloatArray


def swim(observation: FloatArray, parameters: Parameters) -> FloatArray:
    """Undulate along x: the action (2,), the torques of both joints, before noise and clipping, for SwimmerVelocity.

    The front joint is pushed the way it turns, so it starts to swing by itself, and the back joint follows it: a wave
    that travels from head to tail.

    Args:
        observation: SwimmerVelocity's (8,): the angles of the head and of the front and the back joint in rad, the
            head's velocity along x and y in m/s, and the rates of the three angles in rad/s.
        parameters: ``strength``, the largest torque, 1 being the swimmer's; ``top``, the speed along x in m/s at which
            the front joint is pushed no more.
    """
    head, front, back, speed, _, _, front_rate, back_rate = observation
    push = np.clip(2 * (parameters["top"] - speed), 0, parameters["strength"])
    swing = front_rate - front + head  # the angle of the head, for it turns the swimmer back to the x axis
    follow = 2 * (front - back) - 0.25 * back_rate
    torques = np.array([push, parameters["strength"]]) * np.clip([swing, follow], -1, 1)
    return np.asarray(torques, dtype=np.float32)


NOISE = (0.02, 0.06)  # little: shaking joints soon exceed the speed limit

SCRIPTS: Mapping[str, Script] = {
    "OfflineSwimmerVelocityGymnasium-v1": Script(
        swim,
        (
            # Too weak to get anywhere near the speed limit of 0.2282 m/s.
            Behaviour("feeble", 0.14, {"strength": (0.04, 0.1), "top": (0.1, 0.15)}, (0, 0.02)),
            # Below the limit but for a few strokes.
            Behaviour("measured", 0.28, {"strength": (1, 1), "top": (0.1, 0.23)}, NOISE),
            # Above it in ever more of the strokes: the frontier between cost and return.
            Behaviour("brisk", 0.36, {"strength": (1, 1), "top": (0.22, 0.33)}, NOISE),
            # Above it half of the time.
            Behaviour("all out", 0.22, {"strength": (1, 1), "top": (0.33, 0.6)}, NOISE),
        ),
        40,
    ),
}
