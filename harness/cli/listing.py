"""``lspc-bench suites``, ``lspc-bench algorithms`` and ``lspc-bench tasks``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from harness.cli import completion

if TYPE_CHECKING:
    from harness.data.dataset import FoundSource
    from harness.tasks import Task


@click.command()
@click.argument("name", required=False, shell_complete=completion.builtin_suites)
def suites(name: str | None) -> None:
    """List the built-in suites, or print the file of NAME.

    A file of your own may begin as a copy: lspc-bench suites smoke > my-study.yaml
    """
    from harness.errors import UserError, nearest
    from harness.report.tables import text_table
    from harness.suite import builtin_suites, read_suite

    known = builtin_suites()
    if name is None:
        click.echo(text_table(["suite", ""], [[one, read_suite(one).suite.description] for one in known]))
    elif name in known:
        click.echo(known[name].read_text(encoding="utf-8"), nl=False)
    else:
        raise UserError(f"no built-in suite is called {name!r}.{nearest(name, known)} 'lspc-bench suites' lists them")


@click.command()
@click.argument("name", required=False, shell_complete=completion.algorithms)
@click.option("--check", is_flag=True, help="Train NAME for a few steps and check that it keeps the interface's rules.")
@click.pass_context
def algorithms(ctx: click.Context, name: str | None, check: bool) -> None:
    """List the algorithms, or the hyperparameters of NAME."""
    from harness import registry
    from harness.errors import UserError
    from harness.report.tables import text_table

    if check:
        if name is None:
            raise click.UsageError("--check needs the NAME of an algorithm")
        ctx.exit(_check(name))
    if name is not None:
        click.echo(_algorithm(name))
        return
    rows = []
    for key, plugin in registry.plugins().items():
        try:
            summary = registry.load(key).summary
        except UserError as error:
            summary = f"BROKEN: {error}"
        rows.append([plugin.name, plugin.origin, summary])
    click.echo(text_table(["algorithm", "origin", ""], rows))


def _check(name: str) -> int:
    from harness import contract

    results = contract.check(name)
    for title, problem in results.items():
        click.echo(f"{'BROKEN' if problem else 'holds '}  {title}")
        if problem:
            click.echo(f"        {problem}")
    broken = sum(map(bool, results.values()))
    click.echo(f"{name}: {len(results)} rules checked, {broken or 'none'} broken.", err=True)
    return int(broken > 0)


def _algorithm(name: str) -> str:
    from harness import registry
    from harness.guard import guard
    from harness.report import hyperparameters
    from harness.report.tables import text_table

    algorithm, plugin = registry.load(name), registry.plugins()[name]
    with guard(registry.named(name), "Hyperparameters"):  # of which defaults are shown
        rows = hyperparameters.rows(algorithm)
    parts = [
        f"{name}: {algorithm.summary}",
        f"{plugin.target}, {plugin.origin}; version {algorithm.version}",
        "",
        text_table(hyperparameters.HEADER, rows),
    ]
    if algorithm.per_task:
        parts += ["", "Published settings for tasks (a later line wins):"]
        for pattern, values in hyperparameters.published(algorithm).items():
            parts.append(f"  {pattern}: {', '.join(f'{key}={value}' for key, value in values.items())}")
    return "\n".join(parts)


@click.command()
@click.argument("name", required=False, shell_complete=completion.tasks)
def tasks(name: str | None) -> None:
    """List the tasks, or what is known of NAME.

    NAME is an id or a short name. Shown are cost limits, reference returns, the dataset's file and more.
    """
    from harness.data.collect import COLLECTABLE
    from harness.data.dataset import dataset_path
    from harness.report.tables import text_table
    from harness.tasks import all_tasks, find_task

    if name is None:
        rows = [
            [
                task.name,
                task.family,
                task.id,
                str(task.max_episode_steps),
                " ".join(f"{limit:g}" for limit in task.cost_limits),
                "yes" if dataset_path(task, "dsrl").exists() else "no",
            ]
            for task in all_tasks().values()
        ]
        click.echo(text_table(["task", "family", "id", "steps", "cost limits", "data here"], rows))
        return
    task = find_task(name)
    path = dataset_path(task, "dsrl")
    facts = {
        "id": task.id,
        "family": task.family,
        "episode length": f"{task.max_episode_steps} steps",
        "observations": f"{task.observation_size} numbers",
        "actions": f"{task.action_size} numbers in [-1, 1]",
        "cost limits": ", ".join(f"{limit:g}" for limit in task.cost_limits),
        "reference returns": f"{task.min_episode_reward:g} to {task.max_episode_reward:g}, normalised 0 to 1",
        "costs in DSRL's data": f"{task.min_episode_cost:g} to {task.max_episode_cost:g}",
        "dataset file": task.dataset_file,
        "looked for at": f"{path} ({'there' if path.exists() else 'missing'})",
        "agent-collected data": _made(task, "agents", "--agents"),
        "demo data": _made(task, "demo") if task.id in COLLECTABLE else "none",
    }
    width = max(map(len, facts))
    click.echo(task.name)
    for key, value in facts.items():
        click.echo(f"  {key:<{width}}  {value}")


def _made(task: Task, source: FoundSource, *options: str) -> str:
    """Where data that is not DSRL's lies, or what makes it."""
    from harness.data.dataset import dataset_path

    path = dataset_path(task, source)
    return str(path) if path.exists() else f"'{' '.join(('lspc-bench data collect', task.name, *options))}' makes it"
