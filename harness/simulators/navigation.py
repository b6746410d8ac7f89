"""Safety-Gymnasium's navigation tasks, sooner: the same numbers bit for bit from less work.

Each function here takes the place of one of safety-gymnasium 0.4.0. A test runs every task with and without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from math import sqrt
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

_sky = False


@contextmanager
def sky() -> Iterator[None]:
    """Build worlds with their sky, for rendering. It takes nearly all the time of a reset."""
    global _sky
    before, _sky = _sky, True
    try:
        yield
    finally:
        _sky = before


@cache
def speed_up() -> None:
    """Put everything below in place; may be called again."""
    from safety_gymnasium import world
    from safety_gymnasium.assets.free_geoms.vases import Vases
    from safety_gymnasium.assets.geoms.buttons import Buttons
    from safety_gymnasium.assets.geoms.pillars import Pillars
    from safety_gymnasium.assets.mocaps.gremlins import Gremlins
    from safety_gymnasium.bases.base_task import BaseTask
    from safety_gymnasium.tasks.button.button_level0 import ButtonLevel0
    from safety_gymnasium.utils.random_generator import RandomGenerator

    world.xmltodict = _Skyless(world.xmltodict)
    RandomGenerator.sample_layout = _sample_layout
    RandomGenerator.sample_goal_position = _sample_goal_position
    for kind in (Buttons, Gremlins, Pillars):
        kind.cal_cost = _without_contacts(kind.cal_cost)
    Vases.cal_cost = _without_contact_cost(Vases.cal_cost)
    achieved = ButtonLevel0.goal_achieved.fget
    ButtonLevel0.goal_achieved = property(lambda task: _touched(task.world.engine, task.agent) and achieved(task))
    BaseTask._obs_lidar_pseudo = _with_one_look(BaseTask._obs_lidar_pseudo)
    BaseTask._ego_xy = _ego_xy


# The sky: MuJoCo decodes its six pictures of 3259 x 3259 anew whenever a world is built, and only pictures show it.


class _Skyless(ModuleType):
    """xmltodict, whose ``unparse`` leaves out the sky."""

    def __init__(self, xmltodict: ModuleType) -> None:
        super().__init__("xmltodict")
        self.parse, self._unparse = xmltodict.parse, xmltodict.unparse

    def unparse(self, xml: Any) -> str:
        if not _sky:
            asset = xml["mujoco"]["asset"]
            asset["texture"] = [texture for texture in asset["texture"] if texture.get("@type") != "skybox"]
        return str(self._unparse(xml))


# Layouts: thousands of distances between two points, in plain floats.


def _sample_layout(generator: Any) -> bool:
    layout: dict[str, Any] = {}
    for name, (placements, keepout) in generator.placements.items():
        for _ in range(100):
            point = generator.draw_placement(placements, keepout)
            if _is_free(generator, point, keepout, layout):
                layout[name] = point
                break
        else:
            return False
    generator.layout = layout
    return True


def _sample_goal_position(generator: Any) -> bool:
    placements, keepout = generator.placements["goal"]
    point = generator.draw_placement(placements, keepout)
    if not _is_free(generator, point, keepout, generator.layout):
        return False
    generator.layout["goal"] = point
    return True


def _is_free(generator: Any, point: Any, keepout: float, layout: dict[str, Any]) -> bool:
    x, y = point.tolist()
    for name, other in layout.items():
        other_x, other_y = other.tolist()
        across, along = x - other_x, y - other_y
        if (
            sqrt(across * across + along * along)
            < generator.placements[name][1] + generator.placements_margin + keepout
        ):
            return False
    return True


# Contacts: each step spells the names of all, floor included, to find those of the agent with things that cost. As
# long as the agent touches nothing but the floor there are none.

_NO_CONTACTS = SimpleNamespace(data=SimpleNamespace(contact=(), ncon=0))


def _touched(engine: Any, agent: Any) -> bool:
    """Whether the agent touches anything but the floor."""
    model, contact = engine.model, engine.data.contact
    if getattr(engine, "masks_of", None) is not model:  # a reset makes a new one
        names = [model.geom(index).name for index in range(model.ngeom)]
        is_agent = np.array([name in agent.body_info.geom_names for name in names])
        engine.masks_of, engine.masks = model, (is_agent, ~is_agent & (np.array(names) != "floor"))
    is_agent, is_other = engine.masks
    first, second = contact.geom1, contact.geom2
    return bool(((is_agent[first] & is_other[second]) | (is_other[first] & is_agent[second])).any())


def _without_contacts(cal_cost: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @wraps(cal_cost)
    def faster(things: Any) -> Any:
        engine = things.engine
        if _touched(engine, things.agent):
            return cal_cost(things)
        things.engine = _NO_CONTACTS
        try:
            return cal_cost(things)
        finally:
            things.engine = engine

    return faster


def _without_contact_cost(cal_cost: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @wraps(cal_cost)
    def faster(vases: Any) -> Any:
        if _touched(vases.engine, vases.agent):
            return cal_cost(vases)
        contact_cost, vases.contact_cost = vases.contact_cost, 0
        try:
            return cal_cost(vases)
        finally:
            vases.contact_cost = contact_cost

    return faster


# Lidar: the agent's place is looked up by name once for all that it sees, not for each.


def _with_one_look(lidar: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(lidar)
    def faster(task: Any, positions: Any) -> Any:
        task.ego = task.agent.pos, task.agent.mat
        try:
            return lidar(task, positions)
        finally:
            del task.ego

    return faster


def _ego_xy(task: Any, position: Any) -> Any:
    own_position, own_matrix = getattr(task, "ego", None) or (task.agent.pos, task.agent.mat)
    return np.matmul(np.concatenate([position, [0]]) - own_position, own_matrix)[:2]
