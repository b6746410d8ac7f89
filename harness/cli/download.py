"""``lspc-bench data download``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli import completion

if TYPE_CHECKING:
    from harness.tasks import Task


@click.command()
@click.argument(
    "patterns", nargs=-1, required=True, metavar="TASK|FAMILY|GLOB|all...", shell_complete=completion.patterns
)
@click.option(
    "--mirror",
    metavar="URL",
    envvar="LSPC_BENCH_MIRROR",
    show_envvar=True,
    help="A folder that holds the files.  [default: DSRL's data set at Hugging Face, or at HF_ENDPOINT]",
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where they go.  [default: $DSRL_DATASET_DIR or ~/.dsrl/datasets]",
)
@click.option("--jobs", type=click.IntRange(min=1), default=4, show_default=True, help="How many files at once.")
@click.option("--force", is_flag=True, help="Fetch again what is there, and accept that it changed.")
@click.pass_context
def download(
    ctx: click.Context, patterns: tuple[str, ...], mirror: str | None, folder: Path | None, jobs: int, force: bool
) -> None:
    """Download DSRL's datasets, or verify those that are there.

    A file is checked before it gets its name, and a manifest with its SHA-256 is written beside it. The same command
    resumes an interrupted download.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from harness.data.dataset import dataset_path
    from harness.data.download import Outcome
    from harness.data.download import download as fetch
    from harness.tasks import select_tasks

    tasks = select_tasks(patterns)
    folder = folder or dataset_path(tasks[0], "dsrl").parent
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    shown = {}

    def moved(task: Task, held: int, total: int | None) -> None:
        if task.id not in shown:
            shown[task.id] = bars.add_task(task.name)
        bars.update(shown[task.id], completed=held, total=total)

    def ended(outcome: Outcome) -> None:
        if outcome.task.id in shown:
            bars.remove_task(shown[outcome.task.id])
        bars.stop()  # the line goes where the bars were
        click.echo(f"{outcome.task.name}: {'' if outcome.good else 'FAILED: '}{outcome.text}")
        bars.start()

    with bars:
        outcomes = fetch(tasks, folder, mirror, jobs=jobs, force=force, moved=moved, ended=ended)
    if not all(outcome.good for outcome in outcomes):
        ctx.exit(1)
