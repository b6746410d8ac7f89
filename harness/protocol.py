"""Under which protocol numbers stand: at which cost limits, and how returns and costs are normalised.

The third part, for how long was trained, belongs to a row and stands beside it in tables. Numbers of different
protocols say nothing of each other, and no mean is taken over both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from harness.tasks import FAMILIES, Task, all_tasks

Limits = tuple[float, ...]

SAFETY_GYMNASIUM = ("navigation", "velocity")
"""The families that the literature has as one, with looser limits than the others."""


def _by_family(of_gymnasium: Limits, of_others: Limits) -> dict[str, Limits]:
    return {family: of_gymnasium if family in SAFETY_GYMNASIUM else of_others for family in FAMILIES}


NAMED: Mapping[str, Mapping[str, Limits]] = {
    "dsrl": {task.family: task.cost_limits for task in all_tasks().values()},
    "strict": _by_family((10.0,), (5.0,)),
    "copdt": _by_family((10.0, 20.0, 40.0, 80.0), (10.0, 20.0, 40.0, 80.0)),
}
"""Cost limits by family: DSRL's own three; one tight limit (CARL, FISOR, CCAC); CoPDT's four budgets."""


@dataclass(frozen=True)
class Protocol:
    """What must be the same for numbers to be compared.

    Args:
        limits: pairs of a family and its cost limits, tightest first; a family of own tasks may have several.
        normalisation: ``dsrl``, or ``own`` where a suite's own tasks say what counts as a return of 0 and 1.
    """

    limits: tuple[tuple[str, Limits], ...]
    normalisation: str = "dsrl"

    @classmethod
    def of(cls, limits: Iterable[tuple[Task, Iterable[float]]]) -> Protocol:
        """The protocol of results on these tasks, each with the limits that count there."""
        return cls.together(
            cls(((task.family, tuple(sorted(of_task))),), "own" if task.family == "own" else "dsrl")
            for task, of_task in limits
        )

    @classmethod
    def together(cls, protocols: Iterable[Protocol]) -> Protocol:
        """Of a table over all that stand under these."""
        found = list(protocols)
        pairs = {pair for one in found for pair in one.limits}
        return cls(tuple(sorted(pairs)), " and ".join(sorted({one.normalisation for one in found})) or "dsrl")

    @property
    def name(self) -> str:
        """``dsrl``, ``strict`` or ``copdt``, or what the limits are: ``limits 5, 10``."""
        for name, by_family in NAMED.items():
            if self.limits and all(by_family.get(family) == limits for family, limits in self.limits):
                return name
        return self.described_limits + ("" if self.normalisation == "dsrl" else f", normalisation {self.normalisation}")

    @property
    def described_limits(self) -> str:
        """``limit 10``, ``limits 10, 20 (bullet) and 20, 40 (velocity)``."""
        families: dict[Limits, list[str]] = {}
        for family, limits in self.limits:
            families.setdefault(limits, []).append(family)
        texts = {limits: ", ".join(f"{limit:g}" for limit in limits) for limits in families}
        word = "limit" if all(len(limits) == 1 for limits in families) else "limits"
        if len(families) == 1:
            return f"{word} {next(iter(texts.values()))}"
        return f"{word} " + " and ".join(f"{texts[limits]} ({', '.join(names)})" for limits, names in families.items())

    def describe(self) -> str:
        """For people: ``dsrl: cost limits 10, 20, 40; returns and costs as DSRL normalises them``."""
        name = f"{self.name}: " if self.name in NAMED else ""
        how = {"dsrl": "as DSRL normalises them", "own": "as the suite's own tasks normalise them"}
        said = how.get(self.normalisation, "some as DSRL normalises them, some as the suite's own tasks do")
        return f"{name}cost {self.described_limits}; returns and costs {said}"
