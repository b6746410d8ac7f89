"""``lspc-bench data``: download, collect, convert, check and describe datasets."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli import completion
from harness.cli.download import download

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from harness.data.dataset import Dataset, FoundSource
    from harness.tasks import Task


@click.group()
def data() -> None:
    """Download, collect, convert, check and describe datasets."""


data.add_command(download)


def _which_file(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which file of a task is meant."""
    command = click.option(
        "--suite", type=click.Path(path_type=Path), metavar="FILE", help="The own tasks and own files of this suite."
    )(command)
    command = click.option(
        "--file",
        "path",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="This file instead, also of a task that is neither DSRL's nor a suite's.",
    )(command)
    return click.option(
        "--source", type=click.Choice(["dsrl", "agents", "demo"]), default="dsrl", show_default=True, help="Whose data."
    )(command)


@data.command()
@click.argument(
    "patterns", nargs=-1, required=True, metavar="TASK|FAMILY|GLOB|all...", shell_complete=completion.patterns
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The file to write, of one task.  [default: where suites with this source look, or ./TASK_ID.hdf5 if the "
    "task's demo data ships]",
)
@click.option(
    "--seed", type=click.IntRange(min=0, max=2**32 - 1), default=0, show_default=True, help="Of all its random numbers."
)
@click.option("--episodes", type=click.IntRange(min=1), help="Scripted: how many.  [default: the task's own number]")
@click.option("--agents", is_flag=True, help="Train agents online, and keep what they did, as DSRL made its data.")
@click.option("--targets", metavar="COST,...", help="Agents: the episode cost of each, or none.  [default: seven]")
@click.option(
    "--steps", type=click.IntRange(min=1), help="Agents: environment steps of each.  [default: 120000, or 300 episodes]"
)
@click.option("--trajectories", type=click.IntRange(min=1), help="Agents: how many to keep.  [default: 900]")
@click.option("--bins", type=click.IntRange(min=1), help="Agents: of the grid that thins, each way.  [default: 30]")
@click.option("--jobs", type=click.IntRange(min=1), help="Agents: processes.  [default: one a core]")
@click.option("--keep-pool", is_flag=True, help="Agents: keep all that they did, to thin it again in another way.")
@click.option(
    "--suite", type=click.Path(path_type=Path), metavar="FILE", help="Agents: TASK is an own task of this suite."
)
def collect(patterns: tuple[str, ...], output: Path | None, seed: int, episodes: int | None, **options: Any) -> None:
    """Collect data in a task's simulator; it does not replace DSRL's.

    Scripted behaviours, from timid to reckless, are quick. With --agents, agents are trained online (PPO with a
    Lagrange multiplier) under several cost targets, and a grid over cost and return thins what they did: minutes to
    hours a task. The same command again goes on with the agents that an interrupted one has not finished.

    A pattern for several tasks means, without --agents, those among them that have a script and whose demo data
    neither ships nor is there already; with it, those whose data is not there already.
    """
    from harness.data.behaviours import COLLECTABLE
    from harness.data.collect import file_name
    from harness.data.dataset import dataset_path, shipped_demo
    from harness.errors import UserError
    from harness.tasks import select_tasks

    if options["agents"]:
        if episodes is not None:
            raise UserError("--episodes is for scripted behaviours; --agents goes with --steps and --trajectories")
        _collect_with_agents(patterns, output, seed, options)
        return
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if given:
        raise UserError(f"{given[0]} goes with --agents")
    tasks = select_tasks(patterns)
    if len(tasks) == 1:
        default = Path(file_name(tasks[0])) if shipped_demo(tasks[0]).exists() else dataset_path(tasks[0], "demo")
        _collect(tasks[0], output or default, episodes, seed)
        return
    _require_no_output(patterns, output, len(tasks))
    scripted = [task for task in tasks if task.id in COLLECTABLE]
    if not scripted:
        raise UserError(f"none of these tasks has a script to collect with; these have: {', '.join(COLLECTABLE)}")
    for task in scripted:
        path = dataset_path(task, "demo")
        if path.exists():
            click.echo(f"{task.name}: {path} is there already.")
        else:
            _collect(task, path, episodes, seed)


def _require_no_output(patterns: tuple[str, ...], output: Path | None, count: int) -> None:
    from harness.errors import UserError

    if output is not None:
        raise UserError(f"--output goes with one task, and {' '.join(patterns)!r} means {count}")


def _collect(task: Task, path: Path, episodes: int | None, seed: int) -> None:
    from harness.data.collect import collect as collect_task
    from harness.simulators import require_simulator

    require_simulator(task)
    _write(task, path, lambda progress: collect_task(task, path, episodes, seed, progress))


def _collect_with_agents(patterns: tuple[str, ...], output: Path | None, seed: int, options: dict[str, Any]) -> None:
    from harness.data.agents import Recipe, collect_agents
    from harness.data.dataset import dataset_path
    from harness.errors import UserError
    from harness.simulators import require_simulator
    from harness.suite import read_suite
    from harness.suite_tasks import task_to_collect
    from harness.tasks import select_tasks

    if options["suite"] is not None:
        if len(patterns) != 1:
            raise UserError("--suite goes with one of its own tasks")
        file = read_suite(str(options["suite"]))
        with file.located():
            own, place = task_to_collect(file.suite, file.folder, patterns[0])
        wanted = [(own, output or place)]
    else:
        tasks = select_tasks(patterns)
        if len(tasks) > 1:
            _require_no_output(patterns, output, len(tasks))
        wanted = [(task, output or dataset_path(task, "agents")) for task in tasks]
    jobs = options["jobs"] or len(os.sched_getaffinity(0))
    for task, path in wanted:
        if path.exists() and len(wanted) > 1:
            click.echo(f"{task.name}: {path} is there already.")
            continue
        if task.family != "own":  # that has been tried
            require_simulator(task)
        usual = Recipe.default(task)
        recipe = Recipe(_targets(options["targets"]) or usual.targets, options["steps"] or usual.steps, seed)
        sizes = {name: options[name] for name in ("trajectories", "bins") if options[name] is not None}
        make = partial(collect_agents, task, path, recipe, jobs=jobs, keep_pool=options["keep_pool"], **sizes)
        _write(task, path, lambda progress, make=make: make(progress=progress))  # type: ignore[misc]


def _targets(text: str | None) -> tuple[float, ...]:
    """The targets that the user names; none of them is ``none``, an agent whose cost does not count."""
    from harness.data.agents import FREE
    from harness.errors import UserError

    if text is None:
        return ()
    try:
        return tuple(FREE if one.strip() == "none" else float(one) for one in text.split(","))
    except ValueError as error:
        raise UserError(f"--targets takes costs with commas between them, such as 10,25,none, not {text!r}") from error


def _write(task: Task, path: Path, collect: Callable[[Callable[[int, int], None]], dict[str, Any]]) -> None:
    """Collect with a progress bar, and say what was written."""
    from rich.console import Console
    from rich.progress import Progress

    from harness.files import where_the_user_says

    with where_the_user_says(path), Progress(console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(f"collecting {task.name}", total=None)
        manifest = collect(lambda done, total: bars.update(bar, completed=done, total=total))
    click.echo(
        f"Wrote {path} ({manifest['label']}): {manifest['trajectories']} trajectories, "
        f"{manifest['transitions']} transitions, SHA-256 {manifest['sha256']}."
    )


@data.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--costs", metavar="NAME", help="The array of costs.  [default: costs, cost, infos/cost or infos/costs]")
@click.option(
    "--episode-length",
    type=click.IntRange(min=1),
    metavar="STEPS",
    help="Trajectories end by time after so many steps, where no flag says so.",
)
def convert(file: Path, output: Path, costs: str | None, episode_length: int | None) -> None:
    """Convert FILE to DSRL's format.

    FILE has D4RL's layout, or is Minari's main_data.hdf5.

    D4RL keeps no next observations: they are made of the rows behind.
    """
    from harness.data.convert import convert as convert_file

    made = convert_file(file, output, costs, episode_length)
    click.echo(f"Wrote {output} (of {made.layout} layout): {made.trajectories} trajectories, {made.rows} transitions.")
    if made.dropped:
        click.echo(
            f"note: {made.dropped} rows that end a trajectory, but not in a terminal state, are left out: what came "
            "behind them is not known"
        )


def _meant(
    patterns: tuple[str, ...], path: Path | None, suite: Path | None
) -> tuple[list[tuple[Task, Path | None]], list[str]]:
    """The tasks that are meant, each with its file where one is named, and what is to be noted of that."""
    from harness.data.dataset import task_of_file
    from harness.errors import UserError, nearest
    from harness.suite import read_suite
    from harness.suite_tasks import OWN_NAME, tasks_to_check
    from harness.tasks import all_names, all_tasks, select_tasks

    notes: list[str] = []
    if suite is not None:
        file = read_suite(str(suite))
        with file.located():
            meant = tasks_to_check(file.suite, file.folder, patterns)
    else:
        try:
            meant = [(task, None) for task in select_tasks(patterns)]
        except UserError:
            if path is None or len(patterns) > 1 or not OWN_NAME.fullmatch(patterns[0]):
                raise
            (name,) = patterns
            meant = [(task_of_file(name), path)]
            notes = [
                f"{name!r} is no task of DSRL's.{nearest(name, all_names(all_tasks().values()))} Its sizes are taken "
                "from the file, and the length of its episodes is not known; --suite FILE names a suite that says it"
            ]
    if path is not None and len(meant) > 1:
        raise UserError(f"--file goes with one task, and {' '.join(patterns)!r} means {len(meant)}")
    return [(task, path or own) for task, own in meant], notes


def _load(task: Task, source: FoundSource, path: Path | None) -> Dataset:
    """Read a task's dataset; the file of an own task says its sizes."""
    from harness.data.dataset import load_dataset, sizes

    if path is None:
        return load_dataset(task, source)
    if task.family == "own":
        observation_size, action_size = sizes(path)
        task = replace(task, observation_size=observation_size, action_size=action_size)
    return load_dataset(task, "own", path)


@data.command()
@click.argument(
    "patterns", nargs=-1, required=True, metavar="TASK|FAMILY|GLOB|all...", shell_complete=completion.patterns
)
@_which_file
@click.pass_context
def check(
    ctx: click.Context, patterns: tuple[str, ...], source: FoundSource, path: Path | None, suite: Path | None
) -> None:
    """Report all problems of datasets at once.

    Also whether a file has changed since its first use.
    """
    from harness.errors import UserError

    meant, notes = _meant(patterns, path, suite)
    wrong = 0
    for task, file in meant:
        try:
            dataset = _load(task, source, file)
        except UserError as error:
            wrong += 1
            click.echo(f"{task.name}: {error}", err=True)
            continue
        click.echo(f"{task.name}: good, {len(dataset)} transitions, SHA-256 {dataset.sha256}")
        for note in (*notes, *dataset.warnings):
            click.echo(f"{task.name}: note: {note}")
    if wrong:
        ctx.exit(2)


@data.command()
@click.argument("task", shell_complete=completion.tasks)
@_which_file
@click.option(
    "--filter",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Filter it first, as a suite's key under 'data' does, e.g. density=0.5. Repeatable.",
)
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Save the scatter, e.g. as PNG."
)
def describe(
    task: str,
    source: FoundSource,
    path: Path | None,
    suite: Path | None,
    settings: tuple[str, ...],
    plot: Path | None,
) -> None:
    """Summarise the dataset of TASK.

    Trajectories, lengths, returns, the share within each limit, a scatter plot.

    Data that is not DSRL's is compared with what is published about DSRL's file.
    """
    from harness.config import parse_settings
    from harness.data.filters import Filters, apply
    from harness.errors import UserError
    from harness.report.scatter import save_scatter, text_scatter
    from harness.tasks import find_task, within

    if suite is None and path is None:
        find_task(task)  # the name of one, no pattern
    meant, notes = _meant((task,), path, suite)
    if len(meant) > 1:
        raise UserError(f"{task!r} means {len(meant)} tasks: describe one")
    filters = parse_settings(Filters, settings, "--filter", "filter")
    dataset = apply(filters, _load(meant[0][0], source, meant[0][1]))
    found, known = dataset.task, not notes
    costs, returns = dataset.trajectories.cost_returns(), dataset.trajectories.reward_returns()
    name = f"{found.name} ({_label(dataset.path)})"
    name += f", filtered: {filters.describe()}" if filters.active else ""
    limits = ", ".join(f"{within(costs, limit).mean():.1%} within {limit:g}" for limit in found.cost_limits)
    both = int((dataset.arrays["terminals"] & dataset.arrays["timeouts"]).sum())
    click.echo(f"{name}: {dataset.path}")
    click.echo(f"SHA-256 {dataset.sha256}")
    click.echo(
        f"{len(dataset.trajectories)} trajectories, {len(dataset)} transitions, {both} rows with both terminal flags"
    )
    click.echo(f"Trajectories by cost limit: {limits}\n" if known else "")
    columns = {
        "length": dataset.trajectories.lengths.astype(float),
        "reward return": returns,
        "normalised reward": found.normalize_reward(returns),
        "cost return": costs,
    }
    if not known:
        del columns["normalised reward"]
    click.echo(_quantiles(columns) + "\n")
    if found.family != "own" and _label(dataset.path) != "DSRL":
        click.echo(_beside_dsrl(found, costs, returns) + "\n")
    click.echo(text_scatter(costs, returns, found.cost_limits))
    for note in (*notes, *dataset.warnings):
        click.echo(f"note: {note}")
    if plot is not None:
        try:
            save_scatter(plot, name, costs, returns, found.cost_limits)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot write the picture {str(plot)!r}: {error}") from error
        click.echo(f"Wrote {plot}.", err=True)


def _label(path: Path) -> str:
    """Whose data a file holds, as far as its manifest, or the file itself, says."""
    from harness.data.dataset import data_folder, stated_label

    return stated_label(path) or ("DSRL" if path.parent == data_folder() else "own file")


def _beside_dsrl(task: Task, costs: NDArray[np.float64], returns: NDArray[np.float64]) -> str:
    """What is published of DSRL's file of the task, and the same of other trajectories."""
    from harness.report.tables import text_table

    count = task.dataset_file.removesuffix(".hdf5").rpartition("-")[2]
    rows = [
        ["trajectories", str(len(costs)), count],
        ["least reward return", f"{returns.min():.4g}", f"{task.min_episode_reward:.4g}"],
        ["greatest reward return", f"{returns.max():.4g}", f"{task.max_episode_reward:.4g}"],
        ["greatest cost return", f"{costs.max():.4g}", f"{task.max_episode_cost:.4g}"],
    ]
    more = "Not known here of DSRL's: quantiles, means, the share within each limit."
    return f"{text_table(['', 'this data', 'DSRL'], rows)}\n{more}"


def _quantiles(columns: dict[str, Any]) -> str:
    import numpy as np

    from harness.report.tables import text_table

    quantiles = (0, 10, 25, 50, 75, 90, 100)
    rows = [
        [name, *(f"{value:.4g}" for value in np.percentile(values, quantiles)), f"{values.mean():.4g}"]
        for name, values in columns.items()
    ]
    return text_table(["", *(f"{quantile}%" for quantile in quantiles), "mean"], rows)
