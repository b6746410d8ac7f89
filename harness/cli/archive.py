"""``lspc-bench archive``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path, file_okay=False))
@click.option("--suite", help="Of this suite.  [default: the only one that ran there]")
def archive(results: Path, output: Path, suite: str | None) -> None:
    """Pack a suite's RESULTS into OUTPUT: a folder of a few files, to be committed.

    status and leaderboard read it as they read RESULTS; policies are not in it. An archive of the same suite that is
    there is replaced; cells that only it has finished are kept, so that results of several machines come together.
    """
    from harness.archive import open_results, write_archive
    from harness.cli.status import chosen_plan

    opened = open_results(results)
    plan = chosen_plan(opened, suite)
    archived = write_archive(opened, plan, output)
    kept = f", {archived.kept} of them kept from the archive before" if archived.kept else ""
    click.echo(
        f"Wrote {output}: {archived.done} of {archived.cells} cells of suite {plan.suite} done{kept}; "
        f"{archived.files} files, {archived.size / 1e6:.2f} MB."
    )
