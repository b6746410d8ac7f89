"""Options that several commands take, and their types."""

from __future__ import annotations

import math
import shlex
import shutil
import sys
from collections.abc import Callable, Collection
from functools import wraps
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from harness.cli import completion
from harness.options import Options, parse_devices


class Finite(click.FloatRange):
    """A number within bounds; click's own takes NaN, which no comparison refuses, and infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, if it is one."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


SUITE = click.option(
    "--suite", shell_complete=completion.planned_suites, help="Only this suite.  [default: every suite that ran there]"
)
SUITES = click.option(
    "--suite",
    "suites",
    multiple=True,
    shell_complete=completion.planned_suites,
    help="Only this suite. Repeatable.  [default: every suite that ran there]",
)
ONE_SUITE = click.option(
    "--suite", shell_complete=completion.planned_suites, help="Of this suite.  [default: the only one that ran there]"
)
OUTPUT = click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write to FILE instead."
)
WORKERS = click.option(
    "--workers",
    type=click.IntRange(min=0, max=1024),
    default=None,
    metavar="N",
    help="Evaluation processes; 0 evaluates in the training process.  [default: one a core]",
)
BESIDE = click.option(
    "--beside",
    multiple=True,
    metavar="NAME",
    help="Rank the rows of this imported suite in the other suite's tables, on its tasks and limits. Repeatable.",
)


PROGRAM = "lspc-bench"


def _program() -> str:
    """How a shell finds the command: by its name, or where that is not on the ``PATH``, as it was called."""
    called = sys.argv[0]
    return called if Path(called).name == PROGRAM and shutil.which(PROGRAM) is None else PROGRAM


def command_line(*words: object) -> str:
    """A command of this program, to be given in a shell."""
    return shlex.join([_program(), *map(str, words)])


def same_command(without: Collection[str] = ()) -> str:
    """The command that is running, to be given again in a shell: with whatever it was given, results and settings too.

    Args:
        without: names of parameters that it is not to have again.
    """
    ctx = click.get_current_context()
    words = [str(ctx.info_name)]
    for one in ctx.command.params:
        name = str(one.name)
        if name in without or ctx.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        values = ctx.params[name] if one.multiple or one.nargs != 1 else [ctx.params[name]]
        for value in values:
            if isinstance(one, click.Option):
                words.append(one.opts[0])
                if one.is_flag:
                    continue
            words.append(f"{value:.15g}" if isinstance(value, float) else str(value))
    return command_line(*words)


class _Device(click.ParamType[str]):
    name = "auto|cpu|cuda|cuda:N"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        kind, colon, index = value.partition(":")
        if value not in ("auto", "cpu", "cuda") and not (
            kind == "cuda" and colon and index.isdecimal() and len(index) <= 4
        ):
            self.fail(f"{value!r} is none of auto, cpu, cuda, cuda:0, cuda:1, ...", param, ctx)
        return value


class _Devices(click.ParamType[str]):
    name = "DEVICES"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            parse_devices(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return value


class _Duration(click.ParamType[float]):
    """Seconds, or a number with s, m or h behind it."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        seconds = {"s": 1, "m": 60, "h": 3600}.get(value[-1:])
        number = Finite(min=0, min_open=True).convert(value[:-1] if seconds else value, param, ctx)
        return number * (seconds or 1)


class _TrackerName(click.ParamType[str]):
    name = "wandb|tensorboard|csv|MODULE:CLASS"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from harness.trackers import check_name

        try:
            return check_name(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        names = self.name.split("|")[:-1]
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


TRACKER = _TrackerName()
RESULTS = Path("results/runs")


def results_option(text: str = "Where results go.") -> Callable[[Any], Any]:
    """``--results`` of a command that writes them; ``text`` is its help."""
    folder = click.Path(path_type=Path, file_okay=False)
    return click.option("--results", type=folder, default=RESULTS, show_default=True, metavar="DIR", help=text)


def set_option(
    text: str = "Set a key of the suite, dotted, e.g. algorithms.lspc.hyperparameters.steps=500. Wins over the "
    "file. Repeatable.",
) -> Callable[[Any], Any]:
    """``--set`` of a command that reads a suite; ``text`` is its help."""
    return click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=text)


_OPTIONS = (
    click.option(
        "--device",
        type=_Device(),
        default="auto",
        show_default=True,
        metavar=_Device.name,
        help="Where to train; auto: a GPU if any.",
    ),
    click.option(
        "--engine",
        type=click.Choice(["auto", "eager", "graph", "compile"]),
        default="auto",
        show_default=True,
        help="How updates run: eager: one by one; graph: replayed from CUDA graphs; compile: fused by torch.compile "
        "(and replayed, on a GPU); auto: graph on a GPU, eager on a CPU.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["float32", "tf32"]),
        default="float32",
        show_default=True,
        help="Precision of matrix products on a GPU. tf32 keeps 10 instead of 23 bits of a factor's mantissa; the "
        "reference does not. Results record it.",
    ),
    click.option(
        "--memory-fraction",
        type=Finite(min=0, max=1, min_open=True),
        default=0.9,
        show_default=True,
        metavar="SHARE",
        help="Share of the device's memory that training may take; if that is too little, replicas train in several "
        "groups.",
    ),
    WORKERS,
    click.option(
        "--checkpoint-every",
        "checkpoint_seconds",
        type=Finite(min=0),
        default=60.0,
        show_default=True,
        metavar="SECONDS",
        help="How often training is checkpointed.",
    ),
    click.option(
        "--track",
        type=TRACKER,
        multiple=True,
        metavar=TRACKER.name,
        help="Send metrics, evaluations and final rows there, too, as they come. Repeatable; the suite's key track "
        "names more.",
    ),
    click.option(
        "--for",
        "most_seconds",
        type=_Duration(),
        default=None,
        metavar="TIME",
        help="Save and stop after this many seconds, or 90m, or 12h; the same command resumes.  [default: never]",
    ),
    click.option(
        "--no-evaluation",
        is_flag=True,
        help="Train only, without any simulator, and keep the policies that are to be evaluated: 'lspc-bench work "
        "--only-evaluation' does that, on this machine or another.",
    ),
)


devices_option = click.option(
    "--devices",
    type=_Devices(),
    default=None,
    help="In the place of --device: a worker on each, with one pool of evaluation processes. cuda:0,cuda:1; all: every "
    "GPU; cpu:2: two on the CPU, which share its cores.",
)


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a run, together as its parameter ``options``."""

    @wraps(command)
    def with_options(*arguments: Any, **values: Any) -> None:
        mine = {name: values.pop(name) for name in Options.__dataclass_fields__ if name in values}
        if mine.get("no_evaluation") and mine.get("only_evaluation"):
            raise click.UsageError("--no-evaluation and --only-evaluation leave nothing to do: give one of them")
        command(*arguments, options=Options(**mine), **values)

    for option in reversed(_OPTIONS):
        with_options = option(with_options)
    return with_options


def option_words(options: Options) -> list[str]:
    """The words that give a command these options; none for those that are as they are anyway."""
    command = click.command()(run_options(lambda **values: None))
    words = []
    for one in command.params:
        value = getattr(options, str(one.name))
        if value == getattr(Options(), str(one.name)):
            continue
        if isinstance(one, click.Option) and one.is_flag:
            words.append(one.opts[0])
            continue
        for given in value if one.multiple else (value,):
            words += [one.opts[0], f"{given:.15g}" if isinstance(given, float) else str(given)]
    return words
