"""``lspc-bench data``: collect, check and describe datasets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from harness.tasks import Task


@click.group()
def data() -> None:
    """Collect, check and describe datasets."""


def _which_file(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which file of a task is meant."""
    command = click.option(
        "--file", "path", type=click.Path(path_type=Path), metavar="FILE", help="This file instead."
    )(command)
    return click.option(
        "--source", type=click.Choice(["dsrl", "demo"]), default="dsrl", show_default=True, help="Whose data."
    )(command)


@data.command()
@click.argument("task")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FILE", help="The file to write.  [default: ./TASK_ID.hdf5]"
)
@click.option("--episodes", type=click.IntRange(min=1), help="How many.  [default: the task's own number]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all its random numbers.")
def collect(task: str, output: Path | None, episodes: int | None, seed: int) -> None:
    """Roll out scripted behaviours of TASK, from timid to reckless, and write them in DSRL's format.

    This is how the demo data was made. It does not stand in for DSRL's data.
    """
    from rich.console import Console
    from rich.progress import Progress

    from harness.data.collect import collect as collect_task
    from harness.data.collect import file_name
    from harness.errors import UserError
    from harness.simulators import require_simulator
    from harness.tasks import find_task

    found = find_task(task)
    require_simulator(found)
    path = output or Path(file_name(found))
    try:
        with Progress(console=Console(stderr=True), transient=True) as bars:
            bar = bars.add_task(f"collecting {found.name}", total=None)
            manifest = collect_task(
                found, path, episodes, seed, lambda done, total: bars.update(bar, completed=done, total=total)
            )
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror}") from error
    click.echo(
        f"Wrote {path} ({manifest['label']}): {manifest['trajectories']} trajectories, "
        f"{manifest['transitions']} transitions, SHA-256 {manifest['sha256']}."
    )


@data.command()
@click.argument("task")
@_which_file
@click.pass_context
def check(ctx: click.Context, task: str, source: str, path: Path | None) -> None:
    """Check the dataset of TASK (or of a family, a glob, all): everything that is wrong with it, at once."""
    from harness.data.dataset import load_dataset
    from harness.errors import UserError
    from harness.tasks import select_tasks

    tasks = select_tasks([task])
    if path is not None and len(tasks) > 1:
        raise UserError(f"--file goes with one task, and {task!r} means {len(tasks)}")
    wrong = 0
    for found in tasks:
        try:
            dataset = load_dataset(found, source, path)  # type: ignore[arg-type]
        except UserError as error:
            wrong += 1
            click.echo(f"{found.name}: {error}", err=True)
            continue
        click.echo(f"{found.name}: good, {len(dataset)} transitions, SHA-256 {dataset.sha256}")
        problem = _manifest_problem(dataset.path, dataset.sha256)
        if problem:
            wrong += 1
            click.echo(f"{found.name}: {problem}", err=True)
        for warning in dataset.warnings:
            click.echo(f"{found.name}: note: {warning}")
    if wrong:
        ctx.exit(2)


def _manifest_problem(path: Path, sha256: str) -> str:
    """What a manifest beside the file has against it."""
    import json

    from harness.data.collect import manifest_path

    manifest = manifest_path(path)
    if not manifest.exists():
        return ""
    try:
        expected = json.loads(manifest.read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest {manifest} cannot be read ({error!r})"
    return "" if expected == sha256 else f"its SHA-256 is {sha256}, its manifest {manifest.name} says {expected}"


@data.command()
@click.argument("task")
@_which_file
def describe(task: str, source: str, path: Path | None) -> None:
    """Show what the dataset of TASK holds: trajectories, lengths, returns, share within each limit."""
    from harness.tasks import find_task

    found = find_task(task)
    click.echo(_description(found, source, path))


def _description(task: Task, source: str, path: Path | None) -> str:
    import numpy as np

    from harness.data.collect import manifest_path
    from harness.data.dataset import load_dataset
    from harness.report.tables import text_table

    dataset = load_dataset(task, source, path)  # type: ignore[arg-type]
    trajectories = dataset.trajectories
    costs, returns = trajectories.cost_returns(), trajectories.reward_returns()
    quantiles = (0, 10, 25, 50, 75, 90, 100)
    rows = [
        [name, *(f"{value:.4g}" for value in np.percentile(values, quantiles)), f"{values.mean():.4g}"]
        for name, values in {
            "length": trajectories.lengths.astype(float),
            "reward return": returns,
            "normalised reward": task.normalize_reward(returns),
            "cost return": costs,
        }.items()
    ]
    label = "demo data, not DSRL" if dataset.source == "demo" or manifest_path(dataset.path).exists() else "DSRL"
    both = int((dataset.arrays["terminals"] & dataset.arrays["timeouts"]).sum())
    shares = ", ".join(f"{(costs <= limit).mean():.1%} within {limit:g}" for limit in task.cost_limits)
    return "\n".join(
        [
            f"{task.name} ({label}): {dataset.path}",
            f"SHA-256 {dataset.sha256}",
            f"{len(trajectories)} trajectories, {len(dataset)} transitions, {both} rows with both terminal flags",
            f"Trajectories by cost limit: {shares}",
            "",
            text_table(["", *(f"{quantile}%" for quantile in quantiles), "mean"], rows),
            *(f"note: {warning}" for warning in dataset.warnings),
        ]
    )
