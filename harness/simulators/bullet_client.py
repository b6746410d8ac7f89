"""Bullet-Safety-Gym sooner: the same numbers bit for bit from less work.

Its Python takes several times as long as the physics. A test runs every task step for step beside DSRL's own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import isbuiltin
from typing import Any

import numpy as np
from numpy.typing import NDArray

States = dict[Callable[[], NDArray[np.float64]], NDArray[np.float64]]
"""What was read since anything last changed, by what read it."""


def speed_up(environment: Any) -> None:
    """Let one environment of bullet_safety_gym that is not to be drawn do only what its numbers depend on.

    Its client looks up and binds a function of PyBullet at every call: here they are bound once. A step reads the
    agent's state up to ten times: here once, until PyBullet is asked to do anything but tell. And the red sphere that
    shows a cost, and the camera, stay where they are.
    """
    import pybullet

    states: States = {}
    client, agent = environment.bc, environment.agent
    for name, function in vars(pybullet).items():
        if isbuiltin(function) and name != "disconnect":  # on which the client forgets its connection
            bound = partial(function, physicsClientId=client._client)
            setattr(client, name, bound if name.startswith("get") else _changing(bound, states))
    for body in (agent, *(link for link in (agent.root_link,) if link is not None)):  # a ball has none
        body.get_state = _remembered(body.get_state, states)
    agent.violates_constraints = environment.world.camera.update = _nothing


def _changing(function: Callable[..., Any], states: States) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        states.clear()
        return function(*args, **kwargs)

    return call


def _remembered(read: Callable[[], NDArray[np.float64]], states: States) -> Callable[[], NDArray[np.float64]]:
    def state() -> NDArray[np.float64]:
        found = states.get(read)
        if found is None:
            found = states[read] = read()
        return found.copy()  # whoever asked may write into it

    return state


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Show nothing."""
