"""Imported rows among those that were run here, on the same tasks and limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from harness.archive import all_chosen
from harness.errors import UserError
from harness.exchange.importing import completed, limits_of
from harness.plan import Plan
from harness.store import Results


def plans_beside(results: Results, suites: Sequence[str | None], beside: Sequence[str]) -> list[Plan]:
    """The plans of suites, each once, none meaning all; if some are to stand beside one, that with these in it.

    Raises:
        UserError: a suite is not there, what is to stand beside was run here, or beside which one is not clear.
    """
    plans = all_chosen(results, suites)
    if not beside:
        return plans
    imported = all_chosen(results, beside)
    for plan in imported:
        if not plan.imported:
            raise UserError(f"--beside takes imported suites, and {plan.suite} was run")
    own = [plan for plan in plans if plan.suite not in beside and not plan.imported]
    if len(own) != 1:
        named = " or ".join(plan.suite for plan in own)
        raise UserError(f"--beside which suite? Say --suite {named}" if own else "--beside needs a suite that was run")
    return [joined(own[0], imported)]


def joined(own: Plan, imported: Sequence[Plan]) -> Plan:
    """A suite's plan with imported ones' rows in it, which its tasks and limits are asked of.

    Raises:
        UserError: two rows are called the same, or a task is another one in an imported suite.
    """
    limits, cells = limits_of(own.cells), list(own.cells)
    for plan in imported:
        for key, task in plan.tasks.items():
            mine = own.tasks.get(key, task)
            if any(getattr(mine, end) != getattr(task, end) for end in ("min_episode_reward", "max_episode_reward")):
                raise UserError(f"{task.name} has other reference returns in {plan.suite} than in {own.suite}")
        cells += completed(plan.cells, own.tasks, limits)
    rows = Counter(row for plan in (own, *imported) for row in {row for one in plan.cells for row in one.rows.values()})
    if twice := [row for row, count in rows.items() if count > 1]:
        raise UserError(f"two of {', '.join(plan.suite for plan in (own, *imported))} have a row {twice[0]!r}")
    return own.of(cells)
