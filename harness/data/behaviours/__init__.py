"""Scripted behaviours, from timid to reckless, that demo data is collected with.

What a behaviour does follows from the observation and from parameters that stay fixed for an episode, so a policy can
be cloned from it. The parameters follow from a grade in [0, 1], which no observation holds: like DSRL's datasets, the
data is a mixture of policies that an algorithm has to tell apart by what they earn and what they cost.
"""

from __future__ import annotations

from collections.abc import Mapping

from harness.data.behaviours import bullet, metadrive, navigation, velocity
from harness.data.behaviours.base import Behaviour, Controller, Parameters, Script

__all__ = ["COLLECTABLE", "SCRIPTS", "Behaviour", "Controller", "Parameters", "Script"]

SCRIPTS: Mapping[str, Script] = {**bullet.SCRIPTS, **navigation.SCRIPTS, **velocity.SCRIPTS, **metadrive.SCRIPTS}
COLLECTABLE: tuple[str, ...] = tuple(SCRIPTS)
