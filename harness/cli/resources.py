"""``lspc-bench resources``."""

from __future__ import annotations

import click

from harness.cli.options import set_option


@click.command()
@click.argument("suite")
@click.option("--task", "name", metavar="NAME", help="With the sizes of this task of the suite.  [default: its first]")
@set_option()
@click.option(
    "--format",
    "format_name",
    type=click.Choice(["markdown", "csv"]),
    default="markdown",
    show_default=True,
    help="How to print it.",
)
def resources(suite: str, name: str | None, overrides: tuple[str, ...], format_name: str) -> None:
    """Measure what each policy of SUITE takes.

    Parameters, operations, memory, time to train and time to act. It trains each for some seconds on made-up data;
    nothing is stored. Times are of one agent on this CPU.
    """
    from harness.cli.streams import note
    from harness.memory import keep_freed_memory
    from harness.planning import make_plan
    from harness.report.resources import FORMATS
    from harness.resources import measure, task_of
    from harness.suite import read_suite

    keep_freed_memory()
    plan = make_plan(read_suite(suite, overrides))
    task = task_of(plan, name)
    found = []
    for one in measure(plan, task):
        note(f"measured {one.row}")
        found.append(one)
    click.echo(FORMATS[format_name](found, task), nl=False)
