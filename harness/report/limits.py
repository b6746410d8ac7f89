"""Cost limits by their place, tightest first: tasks of different families have other ones there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.errors import UserError


def limit_labels(limits: Mapping[str, Sequence[float]]) -> list[str]:
    """What stands at each place, such as ``10 or 20``.

    Args:
        limits: of every task, tightest first.
    """
    labels = []
    for place in range(max((len(of_task) for of_task in limits.values()), default=0)):
        values = sorted({of_task[place] for of_task in limits.values() if place < len(of_task)})
        labels.append(" or ".join(f"{value:g}" for value in values))
    return labels


def find_limit(suite: str, labels: Sequence[str], limit: str) -> int:
    """The place of a limit, given as a value or as a whole label.

    Raises:
        UserError: there is none, or a value stands at several places.
    """
    if limit in labels:
        return labels.index(limit)
    try:
        value = f"{float(limit):g}"
    except ValueError:
        value = limit
    places = [place for place, label in enumerate(labels) if value in label.split(" or ")]
    if len(places) == 1:
        return places[0]
    if places:
        both = " and ".join(repr(labels[place]) for place in places)
        raise UserError(f"--limit {limit}: suite {suite} has it in {both}, of different families: give one of these")
    raise UserError(f"--limit {limit}: suite {suite} has {', '.join(labels)}, and 'mean'")
