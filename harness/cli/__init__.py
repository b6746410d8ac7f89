"""The command line. These modules import nothing heavy at the top: ``--help`` answers at once."""

from __future__ import annotations

import errno
from typing import IO, Any

import click
from click.exceptions import NoArgsIsHelpError

from harness import __version__
from harness.cli.archive import archive
from harness.cli.data import data
from harness.cli.exchange import export, import_results
from harness.cli.leaderboard import leaderboard
from harness.cli.listing import algorithms, suites, tasks
from harness.cli.new import new
from harness.cli.policy import policy
from harness.cli.published import compare, published
from harness.cli.render import render
from harness.cli.report import figures, report
from harness.cli.resources import resources
from harness.cli.run import run
from harness.cli.status import status
from harness.cli.streams import standard_streams
from harness.cli.study import study
from harness.cli.submit import cancel, submit
from harness.cli.track import track
from harness.cli.work import work
from harness.errors import MOST_LETTERS, ResultsError, UserError, shortened
from harness.guard import UserCodeError, interruptible


class _WrongInput(click.ClickException):
    """What is wrong with the input, and where help is, as click's own usage errors have it."""

    exit_code = 2

    def __init__(self, message: str, command: str) -> None:
        super().__init__(message)
        self.command = command

    def show(self, file: IO[Any] | None = None) -> None:
        super().show(file)
        click.echo(f"Try '{self.command} --help' for help.", file=file, err=file is None)


class _Group(click.Group):
    """Turns what the user got wrong into a message and status 2, the disk's faults into one and status 1, and an
    interrupt into status 130."""

    def main(self, *args: Any, **extra: Any) -> Any:
        with standard_streams():
            return super().main(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with interruptible():
                return super().invoke(ctx)
        except UserError as error:
            command = " ".join(filter(None, (ctx.command_path, ctx.invoked_subcommand)))
            raise _WrongInput(str(error), command) from error
        except ResultsError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            if error.errno == errno.EPIPE or error.strerror is None:
                raise  # click ends quietly where nobody reads on
            where = error.filename2 or error.filename or "standard output"
            raise click.ClickException(f"cannot read or write {where}: {error.strerror}") from error
        except UserCodeError as error:
            raise click.ClickException(str(error)) from error
        except NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            message = shortened(error.format_message(), MOST_LETTERS["message"])
            raise click.UsageError(message, error.ctx) from error
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(130)


FIRST_STEPS = """\b
First steps:
  lspc-bench run demo                        a small suite of all algorithms
  lspc-bench leaderboard results/runs        rank its policies
  lspc-bench report results/runs             write them as a page, report.html
  lspc-bench COMMAND --help                  what a command does and takes
"""


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog=FIRST_STEPS,
)
@click.version_option(__version__, prog_name="lspc-bench")
def main() -> None:
    """Benchmark offline safe reinforcement learning: run suites, read leaderboards.

    Exit status: 0 success, 1 something failed while running, 2 the input was wrong, 130 interrupted.
    """


for command in (
    run,
    work,
    submit,
    cancel,
    study,
    status,
    leaderboard,
    compare,
    published,
    report,
    figures,
    track,
    archive,
    import_results,
    export,
    render,
    policy,
    new,
    suites,
    algorithms,
    resources,
    tasks,
    data,
):
    main.add_command(command)
