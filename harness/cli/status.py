"""``lspc-bench status``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.cli.options import SUITE, command_line
from harness.cli.streams import note

if TYPE_CHECKING:
    from harness.plan import Cell, Plan
    from harness.store import Results, State

AGAIN = "results/runs/again"
"""Where results go that are made again, away from those that are there."""


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@SUITE
@click.option(
    "--commands",
    type=click.Choice(["cells", "groups"]),
    help="Print instead how to make results again from scratch: a command for each cell, or for each group of cells "
    "that trained together.",
)
@click.option(
    "--verify", is_flag=True, help="Read every file instead, and name those that are damaged; exit status 1 if any is."
)
@click.option(
    "--costs",
    is_flag=True,
    help="Print instead what methods cost: training time, updates a second, memory, milliseconds an action.",
)
@click.pass_context
def status(
    ctx: click.Context, results: Path, suite: str | None, commands: str | None, verify: bool, costs: bool
) -> None:
    """Show what of RESULTS is done, failed, damaged or missing.

    A table by task and algorithm, and why cells failed."""
    from harness.archive import chosen_plans, open_results

    opened = open_results(results, checked=(), note=note)
    if verify:
        if suite is not None or commands is not None or costs:
            raise click.UsageError("--verify reads everything: none of --suite, --commands, --costs goes with it")
        ctx.exit(_verify(opened))
    if commands is not None and costs:
        raise click.UsageError("--commands and --costs print different things: give one of them")
    for index, plan in enumerate(chosen_plans(opened, suite)):
        if commands is not None:
            click.echo("\n".join(_commands(opened, plan, together=commands == "groups")))
        elif costs:
            from harness.report.costs import costs_table

            click.echo(("\n" if index else "") + f"Suite {plan.suite}:\n" + costs_table(opened, plan))
        else:
            click.echo(("\n" if index else "") + _describe(opened, plan))
    if commands is None and not costs:
        click.echo("".join(f"{line}\n" for line in [*_at_work(results), *_submitted(results)]), nl=False)


def _at_work(folder: Path) -> Iterator[str]:
    """A line for each worker that is alive: where, since when, and how far."""
    from harness.claims import workers

    for worker in workers(folder):
        since = datetime.fromtimestamp(worker.started, UTC).isoformat(" ", "seconds").removesuffix("+00:00")
        job = "between jobs"
        if "job" in worker.about:
            job = "{job} on {device}, step {step} of {steps}".format_map(worker.about)
        yield f"At work: process {worker.process} on {worker.host} since {since} UTC: {job} ({worker.silent:.0f} s ago)"


def _submitted(folder: Path) -> Iterator[str]:
    """A line for each submission of which something is left."""
    from harness.errors import UserError
    from harness.launchers import find_launcher, remembered

    for launched in remembered(folder, note):
        try:
            states = Counter(find_launcher(launched.launcher).states(launched).values())
        except UserError as error:
            yield f"Submitted: {launched.describe()}: how they are cannot be told: {error}"
            continue
        if states:
            yield f"Submitted: {launched.describe()}: {', '.join(f'{n} {state}' for state, n in states.items())}"


def _verify(results: Results) -> int:
    """Read everything; the exit status."""
    count, damaged = results.verify()
    click.echo("".join(f"{line}\n" for line in damaged) + f"{count} files read, {len(damaged)} damaged.")
    if damaged:
        click.echo(
            "Run their suites again, or import them again: that makes damaged results again, and nothing else.",
            err=True,
        )
    return 1 if damaged else 0


def _describe(results: Results, plan: Plan) -> str:
    from harness.report.tables import text_table
    from harness.report.warnings import describe_warnings
    from harness.store import CALLED, Store

    groups: dict[tuple[str, str], Counter[State]] = {}
    problems = []
    statuses = [results.status(planned.cell) for planned in plan.cells]
    for planned, found in zip(plan.cells, statuses, strict=True):
        groups.setdefault((planned.cell.task, planned.label), Counter())[found.state] += 1
        if found.state in ("failed", "diverged", "damaged"):
            problems.append(
                f"{planned.cell.describe(planned.label)} ({planned.cell.hash}) {found.state}: {found.brief}"
            )
    total = sum(groups.values(), Counter())
    order: tuple[State, ...] = ("running", "trained", "failed", "diverged", "damaged", "missing")
    states = [state for state in order if total[state] or state not in ("trained", "damaged")]
    named = {**CALLED, "running": "unfinished"}
    rows = [
        [
            plan.tasks[task].name,
            label,
            f"{counts['done']} of {counts.total()}",
            *(str(counts[state]) for state in states),
        ]
        for (task, label), counts in groups.items()
    ]
    parts = [
        f"Suite {plan.suite}: {total['done']} of {total.total()} cells done.",
        text_table(["task", "algorithm", "done", *(named[state] for state in states)], rows),
        *problems,
        *(f"Warning: {line}" for line in describe_warnings(statuses, plan)),
    ]
    if total["done"] < total.total() and not plan.imported and isinstance(results, Store):
        parts.append(f"To run what is not done: {command_line('work', results.root)}")
    return "\n".join(parts)


def _commands(results: Results, plan: Plan, together: bool) -> Iterator[str]:
    """A line a cell, or a group: the command, and behind ``#`` what it makes; before them what is to be minded.

    Before a task's commands stands which data they need, where a cell of it is done.
    """
    from harness.planning import make_plan
    from harness.suite import builtin_suites, read_suite

    if plan.imported:
        yield from _imports(plan)
        return
    cells = {planned.cell.hash: planned for planned in plan.cells}
    name = plan.suite
    if name in builtin_suites():
        changed = cells.keys() - {planned.cell.hash for planned in make_plan(read_suite(name)).cells}
        if changed:
            yield f"# {len(changed)} of {len(cells)} cells are not in the built-in suite {name} as it is now: they ran"
            yield "# with --set, or with another version. It takes the same --set, or that version, to make them again."
    else:
        yield f"# SUITE is the file of suite {name}, with the --set that it ran with."
        name = "SUITE"
    done = [planned.cell for planned in cells.values() if results.status(planned.cell).state == "done"]
    records = [results.record(cell) for cell in done]
    groups = [(key,) for key in cells]
    if together:
        trained = [tuple(record["group"]) for record in records]
        groups = [tuple(key for key in group if key in cells) for group in dict.fromkeys(trained)]
    needed = _needed(done, records)
    for group in groups:
        chosen = " ".join(f"--cell {key}" for key in group)
        first = cells[group[0]]
        yield from needed.pop(first.cell.task, ())
        more = f" and {len(group) - 1} more" if len(group) > 1 else ""
        yield f"lspc-bench run {name} {chosen} --results {AGAIN}  # {first.cell.describe(first.label)}{more}"


def _needed(done: Sequence[Cell], records: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """By task, what its finished cells were trained on; more than one file where it changed between them."""
    used: dict[str, dict[tuple[str, str], Cell]] = {}
    for cell, record in zip(done, records, strict=True):
        sha256 = str(record["dataset"]["sha256"])
        used.setdefault(cell.task, {}).setdefault((cell.data.name, sha256), cell)
    return {
        task: [line for (_, sha256), cell in files.items() for line in _trained_on(cell, sha256)]
        for task, files in used.items()
    }


def _trained_on(cell: Cell, sha256: str) -> Iterator[str]:
    """A cell's data, how to get it, and whether another file lies there now."""
    from harness.data.manifest import current

    task, data = cell.definition, cell.data
    path = data.path(task)
    if data.file is not None and not Path(data.file).is_absolute():  # archives leave its folder out
        path = None
    there = None if path is None else current(path)
    ways = {
        "dsrl": f"'lspc-bench data download {task.name}' gets it",
        "agents": f"'lspc-bench data collect {task.name} --agents' makes it, if it is given the same options",
        "demo": f"it ships, or 'lspc-bench data collect {task.name}' makes it",
    }
    way = ways.get(data.source, str(data.file))
    if there is not None and there["sha256"] == sha256 and (command := there.get("command")):
        way = f"'{command}' makes it"
    yield _comment(f"{task.name} was trained on {data.name} (SHA-256 {sha256}): {way}")
    if there is not None and there["sha256"] != sha256:
        yield _comment(f"Not the same dataset file lies there now: {path} (SHA-256 {there['sha256']})")


def _comment(text: str) -> str:
    """One line, whatever the texts of others hold: the next one would be a command."""
    return f"# {' '.join(text.split())}"


def _imports(plan: Plan) -> Iterator[str]:
    """Where an imported suite's results come from: no command makes them again."""
    yield f"# Suite {plan.suite} was imported, by 'lspc-bench import', and nothing of it can be run. Its sources:"
    for file, sha256 in plan.sources:
        yield f"# {file} (SHA-256 {sha256})"
