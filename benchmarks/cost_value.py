"""In how many of 20 agents LSPC's cost value is 0 in every state: its cost critics trained alone, seed by seed.

    python benchmarks/cost_value.py BallRun BallCircle --source demo --widths 64 256 --batch-sizes 256 1024

Vc and Qc (steps 3 and 4) read nothing of the other networks, so they are trained without them, on the very weights and
batches that a run of these seeds has. Prints a row for each task, size and gradient, and writes them as JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from algorithms.lspc import LSPC, LSPCHyperparameters
from algorithms.parts.optimisers import adam, minimise, polyak_update
from harness.algorithm import Replica, Selection
from harness.data.dataset import Dataset, load_dataset
from harness.data.draws import prepare
from harness.files import write_json
from harness.memory import keep_freed_memory
from harness.report.tables import markdown_table
from harness.tasks import find_task

STATES = 10_000
"""Of the dataset, spread evenly, in which the cost value is looked at."""


def dead(dataset: Dataset, config: LSPCHyperparameters, seeds: int, after: list[int]) -> list[int]:
    """How many of the seeds' cost values are 0 in every state, after each number of steps."""
    replicas = [Replica(seed, None, f"{dataset.task.id}|lspc") for seed in range(seeds)]
    replicas, draws = prepare(LSPC, config, dataset, replicas, [Selection()] * seeds)
    agents = LSPC(config, dataset.task, replicas)
    vc, qc, target = agents.networks["vc"], agents.networks["qc"], agents.targets["qc"]
    optimizer = adam([(config.v_lr, vc.parameters()), (config.q_lr, qc.parameters())])
    observations = torch.as_tensor(dataset.arrays["observations"][:: max(1, len(dataset) // STATES)])
    counts = []
    for step in range(max(after)):
        batch, _ = draws.at(step)
        losses = agents.cost_losses(batch)
        minimise(optimizer, losses.vc_loss + losses.qc_loss)
        polyak_update(target.parameters(), qc.parameters(), config.polyak)
        if step + 1 in after:
            with torch.no_grad():
                values = vc(observations.expand(seeds, *observations.shape)).squeeze(-1)
            counts.append(int((values <= 0).all(1).sum()))
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--source", default="agents", choices=["agents", "demo", "dsrl"])
    parser.add_argument("--widths", type=int, nargs="+", default=[256], help="of the two hidden layers")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1024], help="one for each width")
    parser.add_argument("--after", type=int, nargs="+", default=[300, 1000], help="steps at which to look")
    parser.add_argument("--gradients", nargs="+", default=["published", "live"], choices=["published", "live"])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--output", type=Path, help="JSON file; rows that it holds already are kept")
    options = parser.parse_args()
    keep_freed_memory()
    after = sorted(set(options.after))
    rows = json.loads(options.output.read_text()) if options.output and options.output.exists() else []
    for name in options.tasks:
        task = find_task(name)
        dataset = load_dataset(task, options.source)
        for width, batch_size in zip(options.widths, options.batch_sizes, strict=True):
            for gradient in options.gradients:
                config = LSPCHyperparameters(
                    hidden_sizes=(width, width), batch_size=batch_size, latent_dim=1, cost_value_gradient=gradient
                )
                begun = time.monotonic()
                counts = dead(dataset, config, options.seeds, after)
                row = {
                    "task": task.name,
                    "source": options.source,
                    "sha256": dataset.sha256,
                    "width": width,
                    "batch_size": batch_size,
                    "gradient": gradient,
                    "seeds": options.seeds,
                    "dead": dict(zip(map(str, after), counts, strict=True)),
                    "seconds": round(time.monotonic() - begun, 1),
                }
                rows.append(row)
                print(row, flush=True)
                if options.output:
                    write_json(options.output, rows)
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """For people: in how many of the seeds Vc is 0 everywhere."""
    steps = sorted({int(step) for row in rows for step in row["dead"]})
    header = ["task", "networks", "batch", "gradient", *(f"after {step:,}" for step in steps)]
    cells = [
        [
            row["task"],
            f"{row['width']}-{row['width']}",
            str(row["batch_size"]),
            row["gradient"],
            *(f"{row['dead'][str(step)]} of {row['seeds']}" if str(step) in row["dead"] else "-" for step in steps),
        ]
        for row in rows
    ]
    return markdown_table(header, cells)


if __name__ == "__main__":
    main()
