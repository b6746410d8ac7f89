"""``lspc-bench render``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli import completion
from harness.cli.options import ONE_SUITE
from harness.cli.streams import note

if TYPE_CHECKING:
    from harness.evaluation import Episode
    from harness.plan import Plan, PlannedCell
    from harness.store import Store


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.option(
    "--task", required=True, metavar="TASK", shell_complete=completion.planned_tasks, help="The task's id or name."
)
@click.option(
    "--policy",
    required=True,
    metavar="POLICY",
    shell_complete=completion.policies,
    help="The policy's row in the leaderboard, e.g. lspc-o.",
)
@ONE_SUITE
@click.option("--seed", type=int, metavar="N", help="The agent's seed.  [default: the first that is done]")
@click.option(
    "--limit", type=float, metavar="COST", help="The cost limit to train for or act on.  [default: the first]"
)
@click.option("--episode", type=click.IntRange(min=0), default=0, show_default=True, help="Which evaluation episode.")
@click.option(
    "--every",
    type=click.IntRange(min=1),
    metavar="STEPS",
    help="Steps from frame to frame.  [default: for 200 frames]",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The .gif or .mp4 to write.  [default: ./TASK-POLICY.gif]",
)
def render(
    results: Path,
    task: str,
    policy: str,
    suite: str | None,
    seed: int | None,
    limit: float | None,
    episode: int,
    every: int | None,
    output: Path | None,
) -> None:
    """Film a trained policy in an evaluation episode.

    Step, reward and cost are drawn into the pictures. Needs no display.
    """
    from harness import rendering
    from harness.archive import chosen_plan
    from harness.errors import UserError
    from harness.files import where_the_user_says
    from harness.policies import restore_policy
    from harness.simulators import require_simulator
    from harness.store import EVERYTHING, Store

    store = Store.existing(results, EVERYTHING, note)
    planned, name, judged = _choose(store, chosen_plan(store, suite), task, policy, seed, limit)
    cell = planned.cell
    path = output or Path(f"{cell.definition.name}-{policy.replace(' ', '-').replace('/', '-')}.gif")
    rendering.require_ending(path)
    require_simulator(cell.definition)
    if episode >= cell.evaluation.final:
        raise UserError(f"{policy} was evaluated in {cell.evaluation.final} episodes, counted from 0")
    title = f"{cell.definition.name}  {policy}  seed {cell.seed}  episode {episode}"
    pictures, shown = rendering.film(
        cell,
        restore_policy(store, cell, name),
        episode,
        judged,
        title,
        every or max(1, cell.definition.max_episode_steps // 200),
    )
    with where_the_user_says(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        rendering.save(path, pictures)
    click.echo(
        f"Wrote {path}: {len(pictures)} frames of {shown.length} steps, return {shown.episode_return:.2f}, cost "
        f"{shown.cost:.2f} of {judged:g}.{_compared(store, planned, name, judged, shown)}"
    )


def _choose(
    store: Store, plan: Plan, task: str, row: str, seed: int | None, limit: float | None
) -> tuple[PlannedCell, str, float]:
    """The cell to show, the policy's own name, and the cost limit.

    Raises:
        UserError: there is none, with what there is.
    """
    from harness.errors import UserError, nearest
    from harness.tasks import all_names

    if plan.imported:
        raise UserError(f"suite {plan.suite} was imported: it has no policies to film")
    here = [one for one in plan.cells if task in one.cell.definition.names]
    if not here:
        raise UserError(f"the suite {plan.suite} has no task {task!r}.{nearest(task, all_names(plan.tasks.values()))}")
    rows = list(dict.fromkeys(name for one in here for name in one.rows.values()))
    here = [one for one in here if row in one.rows.values()]
    if not here:
        raise UserError(f"no policy {row!r} there, only {', '.join(rows)}.{nearest(row, rows)}")
    limits = list(dict.fromkeys(value for one in here for value in one.cell.evaluation_limits))
    chosen = limits[0] if limit is None else limit
    if chosen not in limits:
        raise UserError(f"no cost limit {chosen:g} there, only {', '.join(f'{value:g}' for value in limits)}")
    limited = [one for one in here if chosen in one.cell.evaluation_limits]
    here = [one for one in limited if seed in (None, one.cell.seed)]
    if not here:
        seeds = sorted({one.cell.seed for one in limited})
        raise UserError(f"no seed {seed} there, only {', '.join(map(str, seeds))}")
    done = [one for one in here if store.status(one.cell).state == "done"]
    if not done:
        first = store.status(here[0].cell)
        why = f" ({first.brief})" if first.state == "damaged" else ""
        raise UserError(
            f"{here[0].cell.describe(row)} is {first.state}{why}: there is nothing to film yet; "
            f"'lspc-bench status {store.root}' shows what is done"
        )
    (name,) = (name for name, given in done[0].rows.items() if given == row)
    return done[0], name, chosen


def _compared(store: Store, planned: PlannedCell, policy: str, limit: float, shown: Episode) -> str:
    """How the film stands to the episode that was evaluated."""
    episodes = store.episodes(planned.cell)
    mine = episodes[(episodes["seed"] == shown.seed) & (episodes["policy"] == policy)]
    mine = mine[mine["step"] == episodes["step"].max()]
    if planned.cell.told_limit:
        mine = mine[mine["cost_limit"] == limit]
    stored = mine.iloc[0]
    if (stored["length"], stored["cost"], stored["episode_return"]) == (shown.length, shown.cost, shown.episode_return):
        return " As evaluated."
    return (
        f" When it was evaluated it had return {stored['episode_return']:.2f} and cost {stored['cost']:.2f}: another "
        "machine, or another version of a package."
    )
