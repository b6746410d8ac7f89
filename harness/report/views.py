"""Parts of a suite as leaderboards: a family, a cost limit or each of them, some policies, the best checkpoints."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from harness.errors import UserError, nearest
from harness.plan import Plan
from harness.report.leaderboard import Leaderboard, View, make_leaderboard
from harness.report.limits import find_limit, limit_labels
from harness.report.published import Source, published_rows
from harness.report.selection import best_by_roll_outs
from harness.statistics import RUN, Scope, checkpoint_episodes, checkpoint_means, final_episodes
from harness.store import Results


@dataclass(frozen=True)
class Wanted:
    """What to show of a suite.

    Args:
        family: only its tasks.
        limit: only this cost limit, as :func:`find_limit` takes it; ``None`` for the mean over all.
        per_limit: a board for each limit.
        policies: only rows of these names or patterns; all of them where there is none.
        best: every run's best checkpoint by roll-outs, in the place of the last.
        published: sources whose numbers are shown, too.
    """

    family: str | None = None
    limit: str | None = None
    per_limit: bool = False
    policies: Sequence[str] = ()
    best: bool = False
    published: Sequence[Source] = ()

    @property
    def whole(self) -> bool:
        """Whether everything of the suite is shown, as it is ranked."""
        return not (self.family or self.limit or self.per_limit or self.policies or self.best)


def make_boards(store: Results, plan: Plan, wanted: Wanted) -> list[Leaderboard]:
    """The suite's boards.

    Raises:
        UserError: the suite has no such family, limit or policy, or no checkpoints to choose from.
    """
    families = list(dict.fromkeys(task.family for task in plan.tasks.values()))
    if wanted.family not in (None, *families):
        raise UserError(f"--family {wanted.family}: suite {plan.suite} has tasks of {', '.join(families)}")
    labels = limit_labels(Scope(wanted.family).limits(plan))
    places: list[int | None] = [None]
    if wanted.per_limit:
        places = [*range(len(labels))]
    elif wanted.limit is not None:
        places = [find_limit(plan.suite, labels, wanted.limit)]
    shown = matching_rows(plan, wanted.policies)
    episodes = best_episodes(store, plan) if wanted.best else final_episodes(store, plan)
    boards = []
    for place in places:
        board = make_leaderboard(store, plan, Scope(wanted.family, place), episodes)
        board = replace(board, view=View(wanted.family, None if place is None else labels[place], wanted.best))
        if wanted.published:
            board = with_published(board, wanted.published)
        boards.append(board if not wanted.policies else only_rows(board, shown, wanted.policies))
    return boards


def best_episodes(store: Results, plan: Plan) -> pd.DataFrame:
    """The episodes of every run's best checkpoint: the most reward among those within the limit, else the least cost.

    Returns:
        As :func:`final_episodes`.

    Raises:
        UserError: the suite keeps no learning curve.
    """
    if not any(planned.cell.evaluation.every for planned in plan.cells):
        raise UserError(
            f"--best: suite {plan.suite} keeps no learning curve (evaluation.every): there is only the last checkpoint"
        )
    episodes = checkpoint_episodes(store, plan)
    best = episodes.merge(best_by_roll_outs(checkpoint_means(episodes), RUN)[[*RUN, "step"]], on=[*RUN, "step"])
    return best.drop(columns=["step", "last"])


def matching_rows(plan: Plan, patterns: Sequence[str]) -> list[str]:
    """The rows that a name or pattern with ``*`` and ``?`` is of, whatever the case.

    Raises:
        UserError: a pattern is of none.
    """
    rows = list(dict.fromkeys(row for planned in plan.cells for row in planned.rows.values()))
    found: set[str] = set()
    for pattern in patterns:
        matched = {row for row in rows if _matches(row, pattern)}
        if not matched:
            raise UserError(
                f"--policy {pattern}: suite {plan.suite} has none of that name.{nearest(pattern, rows)} "
                f"It has {', '.join(rows)}"
            )
        found |= matched
    return [row for row in rows if row in found]


def _matches(name: str, pattern: str) -> bool:
    """Rows have brackets in their names, which are no sets of letters here."""
    return fnmatch.fnmatchcase(name.lower(), pattern.lower().replace("[", "[[]"))


def only_rows(board: Leaderboard, rows: Sequence[str], patterns: Sequence[str]) -> Leaderboard:
    """Only these rows, with the ranks that they have among all; of published ones those that a pattern is of."""
    count, shown = len(board.overall), sum(row.policy in rows for row in board.overall)
    note = f"Shown are {shown} of {count} policies; ranks are those among all {count}."
    return replace(
        board,
        overall=[row for row in board.overall if row.policy in rows],
        tasks={task: [row for row in of_task if row.policy in rows] for task, of_task in board.tasks.items()},
        published={
            task: [one for one in of_task if any(_matches(one.policy, pattern) for pattern in patterns)]
            for task, of_task in board.published.items()
        },
        notes=[note, *board.notes],
    )


def with_published(board: Leaderboard, sources: Sequence[Source]) -> Leaderboard:
    """With rows of the literature, and a note of where they are from and what they are."""
    published = published_rows(board, sources)
    notes = []
    for source in sources:
        mine = {task: [one for one in of_task if one.source == source.name] for task, of_task in published.items()}
        tasks = [task for task in board.tasks if mine.get(task)]
        text = f"Published numbers of {source.name} ({source.citation}) on {len(tasks)} of {len(board.tasks)} tasks"
        others = {one.protocol for task in tasks for one in mine[task] if one.protocol != board.protocols[task].name}
        other = f"; under other protocols than ours ({', '.join(sorted(others) or ['not known'])})" if others else ""
        notes.append(f"{text}: not ours, not ranked{other}. 'lspc-bench compare' says what may be compared.")
    return replace(board, published=published, notes=[*notes, *board.notes])
