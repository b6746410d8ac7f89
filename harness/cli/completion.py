"""What the shell offers behind TAB: names of suites, studies, tasks, algorithms, and what results hold.

Every key press starts a process, so nothing here imports what takes long: plans are read as plain JSON. What cannot be
read offers nothing; the command itself says what is wrong.
"""

from __future__ import annotations

import glob
import gzip
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
ARCHIVED = "plan-*.json.gz"


def _names(find: Callable[[click.Context], Iterable[str]], files: bool = False) -> Complete:
    """Offer the names that begin with what is typed, and where a file may stand files, too."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = [CompletionItem(name) for name in dict.fromkeys(find(ctx)) if name.startswith(incomplete)]
        return [CompletionItem(incomplete, type="file"), *found] if files else found

    return complete


def _suites(ctx: click.Context) -> Iterator[str]:
    from harness.files import shipped

    yield from (path.stem for path in sorted(shipped("suites", "suites").glob("[!.]*.yaml")))


def _algorithms(ctx: click.Context) -> Iterator[str]:
    from harness.registry import plugins

    yield from (name for name, plugin in plugins().items() if plugin.problem is None)


def _tasks(ctx: click.Context) -> Iterator[str]:
    from harness.tasks import all_tasks

    yield from (task.name for task in all_tasks().values())
    yield from all_tasks()


def _families(ctx: click.Context) -> Iterator[str]:
    from harness.tasks import FAMILIES

    yield from FAMILIES


def _patterns(ctx: click.Context) -> Iterator[str]:
    yield "all"
    yield from _families(ctx)
    yield from _tasks(ctx)


def _studies(ctx: click.Context) -> Iterator[str]:
    from harness.report.questions import QUESTIONS

    yield from QUESTIONS


def _sources(ctx: click.Context) -> Iterator[str]:
    import csv

    from harness.files import shipped

    with (shipped("published", "results/published") / "sources.csv").open(encoding="utf-8", newline="") as file:
        yield from (row["source"] for row in csv.DictReader(file))


def _results(ctx: click.Context) -> Sequence[Path]:
    """The results that the command line names."""
    # Behind an option without its value click assigns no arguments: they are left over.
    given = ctx.params.get("results") or tuple(map(Path, ctx.args))
    return [given] if isinstance(given, Path) else given


def _plans(ctx: click.Context) -> Iterator[dict[str, Any]]:
    """The plans in the results, of one suite where the command line names one."""
    wanted = ctx.params.get("suite") or ctx.params.get("suites") or ()
    for folder in _results(ctx):
        for path in [*sorted((folder / "suites").glob("*.json")), *sorted(folder.glob(ARCHIVED))]:
            try:
                content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
                plan = json.loads(content)
                named = not wanted or plan["suite"] in ([wanted] if isinstance(wanted, str) else wanted)
            except (OSError, ValueError, EOFError, KeyError, TypeError):
                continue
            if named:
                yield plan


def _planned_suites(ctx: click.Context) -> Iterator[str]:
    ctx.params.pop("suite", None)  # a value that is being typed names none yet
    ctx.params.pop("suites", None)
    yield from (plan["suite"] for plan in _plans(ctx))


def _planned_tasks(ctx: click.Context) -> Iterator[str]:
    from harness.tasks import all_tasks

    known = all_tasks()
    for plan in _plans(ctx):
        for task in dict.fromkeys(one["cell"]["task"] for one in plan["cells"]):
            yield known[task].name if task in known else task


def _policies(ctx: click.Context) -> Iterator[str]:
    for plan in _plans(ctx):
        for one in plan["cells"]:
            yield from one["rows"].values()


def cells(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Offer the hashes of the finished cells in the results, with what each is, where the shell shows that."""
    from harness.tasks import all_tasks

    known, found = all_tasks(), []
    for folder in _results(ctx):
        for path in sorted(folder.glob(f"{glob.escape(incomplete.lower())}*/cell.json")):
            try:
                cell = json.loads(path.read_bytes())["cell"]
                task = known[cell["task"]].name if cell["task"] in known else cell["task"]
                limit = "" if cell["cost_limit"] is None else f" limit {cell['cost_limit']:g}"
                about = f"{task} {cell['algorithm']} seed {cell['seed']}{limit}"
            except (OSError, ValueError, KeyError, TypeError):
                continue
            found.append(CompletionItem(path.parent.name, help=about))
    return found


suites = _names(_suites, files=True)
builtin_suites = _names(_suites)
studies = _names(_studies)
algorithms = _names(_algorithms)
tasks = _names(_tasks)
families = _names(_families)
patterns = _names(_patterns)
sources = _names(_sources)
planned_suites = _names(_planned_suites)
planned_tasks = _names(_planned_tasks)
policies = _names(_policies)


@add_completion_class
class _Bash(BashComplete):
    """Bash puts a completion into the line as it is, so what it would read otherwise, such as a space, is escaped.

    Twice, since the ``read`` of click's script takes one backslash away.
    """

    def format_completion(self, item: CompletionItem) -> str:
        words = os.environ["COMP_WORDS"].split("\n")
        position = int(os.environ["COMP_CWORD"])
        quoted = position < len(words) and words[position].startswith(("'", '"'))
        value = item.value if quoted else re.sub(r"([^\w@%+=:,./-])", r"\\\\\1", item.value)
        return f"{item.type},{value}"
