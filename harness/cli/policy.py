"""``lspc-bench policy``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.cli import completion
from harness.cli.options import Finite
from harness.cli.streams import note

if TYPE_CHECKING:
    from harness.plan import Plan
    from harness.store import Store


@click.command()
@click.argument("results", type=click.Path(path_type=Path))
@click.option(
    "--cell", metavar="HASH", shell_complete=completion.cells, help="The cell that trained it: its hash, or a prefix."
)
@click.option(
    "--policy",
    "name",
    metavar="POLICY",
    shell_complete=completion.policies,
    help="Which of the cell's policies.  [default: the only one]",
)
@click.option(
    "--limit", type=Finite(min=0), metavar="COST", help="The cost limit to act on, for a policy that acts on one."
)
@click.option(
    "--export",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write it as torch.export's .pt2, or as .onnx.",
)
def policy(results: Path, cell: str | None, name: str | None, limit: float | None, path: Path | None) -> None:
    """List the trained policies in RESULTS, or export one.

    An exported policy runs without lspc-bench: a function of observations (n, size) and, for a policy that samples, of
    standard normal noise (n, size). Before it is written it is tried on random observations: it acts as the policy
    does. A policy that remembers the steps before is refused.
    """
    from harness.cli.output import write_bytes
    from harness.exchange import policies
    from harness.policies import find_cell, load_trained
    from harness.store import EVERYTHING, Store

    if path is None:
        if name is not None or limit is not None:
            raise click.UsageError("--policy and --limit go with --export")
    elif cell is None:
        raise click.UsageError("--export needs --cell HASH; without both, the policies are listed")
    else:
        policies.require_ending(path)
    store = Store.existing(results, EVERYTHING, note)
    plans = store.plans()
    if path is None or cell is None:
        _list(store, plans, cell or "")
        return
    trained = load_trained(store, find_cell(plans, cell), name)
    exported = policies.export(trained, path.suffix, limit)
    write_bytes(path, exported.content)
    shapes = ", ".join(f"{one} {list(shape)}".replace("'", "") for one, shape in exported.inputs.items())
    told = "" if limit is None else f" Acts on cost limit {limit:g}."
    tried = policies.BATCH * policies.STEPS
    click.echo(
        f"{trained.name} of {trained.cell.describe()}: {shapes} to actions.{told} Tried on {tried} random observations "
        f"it acts as the policy does, within {exported.difference:.1g}."
    )


def _list(store: Store, plans: Sequence[Plan], beginning: str) -> None:
    from harness.report.tables import text_table

    rows = [
        [
            planned.cell.hash,
            plan.suite,
            planned.cell.definition.name,
            own,
            str(planned.cell.seed),
            "-" if planned.cell.cost_limit is None else f"{planned.cell.cost_limit:g}",
            "yes" if planned.cell.told_limit else "no",
        ]
        for plan in plans
        for planned in plan.cells
        if planned.cell.hash.startswith(beginning.lower())
        and planned.cell.imported is None
        and store.status(planned.cell).state == "done"
        for own in planned.rows
    ]
    click.echo(text_table(["cell", "suite", "task", "policy", "seed", "trained for", "acts on a limit"], rows))
