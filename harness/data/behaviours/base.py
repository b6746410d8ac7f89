"""What a scripted behaviour and a task's script are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from harness.simulators import FloatArray

Parameters = Mapping[str, float]
Controller = Callable[[FloatArray, Parameters], FloatArray]


@dataclass(frozen=True)
class Behaviour:
    """One style of behaving and its grades.

    Args:
        name: what it is called in a manifest.
        share: its part of a task's episodes; the shares of a task sum to 1.
        parameters: for each parameter of the task's controller its values at grade 0 and at grade 1.
        noise: the range that an episode's standard deviation of exploration noise, added to actions, is drawn from.
    """

    name: str
    share: float
    parameters: Mapping[str, tuple[float, float]]
    noise: tuple[float, float]

    def at(self, grade: float) -> dict[str, float]:
        """The controller's parameters at a grade in [0, 1]: linear in between."""
        return {name: low + grade * (high - low) for name, (low, high) in self.parameters.items()}


@dataclass(frozen=True)
class Script:
    """What a task's demo data is collected with: a controller, its behaviours, and how many episodes by default."""

    controller: Controller
    behaviours: tuple[Behaviour, ...]
    episodes: int
