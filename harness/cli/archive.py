"""``lspc-bench archive``."""

from __future__ import annotations

from pathlib import Path

import click

from harness.cli.options import ONE_SUITE
from harness.cli.streams import note


@click.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path, file_okay=False))
@ONE_SUITE
def archive(results: tuple[Path, ...], output: Path, suite: str | None) -> None:
    """Pack a suite's RESULTS into a few files in OUTPUT.

    status, leaderboard and study read it as they read RESULTS; policies are not in it. Several RESULTS, of parts of the
    suite or of several machines, come together in one archive. An archive of the same suite that is there is replaced;
    what only it has finished of these cells is kept.
    """
    from harness.archive import open_results, write_archive

    archived = write_archive([open_results(path, note=note) for path in results], suite, output)
    kept = f", {archived.kept} of them kept from the archive before" if archived.kept else ""
    click.echo(
        f"Wrote {output}: {archived.done} of {archived.cells} cells of suite {archived.suite} done{kept}; "
        f"{archived.files} files, {archived.size / 1e6:.2f} MB."
    )
    for damage in archived.damaged:
        note(f"left out: {damage}")
    if archived.dropped:
        click.echo(
            f"note: {archived.dropped} finished cells of the archive before are not in the suite as it is in these "
            "results, and are left out.",
            err=True,
        )
