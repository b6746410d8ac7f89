"""``lspc-bench new``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli.options import command_line

if TYPE_CHECKING:
    from harness.scaffold.project import Kind


@click.command()
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(["transitions", "sequences", "actor-critic", "unstacked"]),
    default="transitions",
    show_default=True,
    help="transitions: a policy cloned from single steps; sequences: from windows, with a memory; actor-critic: with "
    "critics of reward and cost, for a cost limit; unstacked: ordinary torch code, one agent at a time.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The folder to make.  [default: ./NAME]",
)
def new(name: str, kind: Kind, output: Path | None) -> None:
    """Write a package for an algorithm of your own.

    It can be installed, trains, keeps the interface's rules, and has tests and a suite. NAME is what suites will call
    it, such as my-clone.
    """
    from harness.scaffold.project import write_project

    folder = output or Path(name)
    for path in write_project(name, kind, folder):
        click.echo(path)
    ranked = f"results/{name}"
    click.echo(
        f"\nInstall it, check it, and rank it beside lspc and bc:\n  pip install -e {shlex.quote(str(folder))}\n"
        f"  {command_line('algorithms', name, '--check')}\n"
        f"  {command_line('run', folder / 'suite.yaml', '--results', ranked)}\n"
        f"  {command_line('leaderboard', ranked)}",
        err=True,
    )
