"""What LSPC's CVAE is asked to clone in each region of the states, and what LSPC-S then does there.

    python benchmarks/safety_weights.py BallRun --observation 2 --steps 6000
    python benchmarks/safety_weights.py CarCircle --steps 10000

Trains an agent, cuts the data into bins of one observation (BallRun's 2 is the forward velocity), or of the agent's
cost value vc, and prints for each: the cost a step, the mean of an action in the data, the same under the safety
weights (which the CVAE is to clone), what LSPC-S does, the spread (the standard deviation of beta_c adv_c, whose
exponential the weights are), the mean weight, and the effective sample: the share of the bin's rows that its weights
rest on.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from algorithms.lspc import LSPC, LSPCHyperparameters, effective_sample
from harness.algorithm import Replica, Selection
from harness.data.dataset import load_dataset
from harness.data.draws import prepare
from harness.engine import make_engine
from harness.memory import keep_freed_memory
from harness.report.tables import markdown_table
from harness.tasks import find_task

VELOCITIES = (-1, -0.3, -0.05, 0.05, 0.3, 0.7, 1, 1.5, 3)
COST_VALUES = (0, 1, 2, 5, 10, 20, float("inf"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task")
    parser.add_argument("--source", default="agents", choices=["agents", "demo", "dsrl"])
    parser.add_argument("--observation", type=int, help="the one that the bins are of, in the place of the cost value")
    parser.add_argument("--action", type=int, default=0)
    parser.add_argument("--bins", type=float, nargs="+", help="their edges")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--width", type=int, default=64, help="of the two hidden layers")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--beta-c", type=float, default=2.0)
    parser.add_argument("--cap-c", type=float, default=200.0)
    parser.add_argument("--gradient", default="live", choices=["published", "live"])
    options = parser.parse_args()
    keep_freed_memory()
    task = find_task(options.task)
    dataset = load_dataset(task, options.source)
    settings: dict[str, Any] = {
        **LSPC.published(task),
        "steps": options.steps,
        "hidden_sizes": (options.width, options.width),
        "batch_size": options.batch_size,
        "beta_c": options.beta_c,
        "cap_c": options.cap_c,
        "cost_value_gradient": options.gradient,
    }
    config = LSPCHyperparameters(**settings)
    replicas, draws = prepare(
        LSPC, config, dataset, [Replica(options.seed, None, f"{task.id}|lspc")], [Selection()], "cpu"
    )
    agent = LSPC(config, task, replicas)
    make_engine("eager", agent, draws).run(options.steps)

    batch = {name: torch.as_tensor(dataset.column(name)).unsqueeze(0) for name in LSPC.columns(config)}
    with torch.no_grad():
        losses = agent.cost_losses(batch)
        exponent, vc = config.beta_c * losses.advantage[0], losses.vc[0].numpy()
        weights = exponent.exp().clamp(max=config.cap_c)
        latents = torch.randn(1, len(dataset), config.latent_dim, generator=torch.Generator().manual_seed(0))
        latents = latents.clamp(-config.vae_clamp, config.vae_clamp)
        done = agent.decode(batch["observations"], latents)[0, :, options.action].numpy()
    of_states = options.observation is None
    binned = vc if of_states else dataset.arrays["observations"][:, options.observation]
    bins = options.bins or (COST_VALUES if of_states else VELOCITIES)
    logged = dataset.arrays["actions"][:, options.action]
    rows = []
    for low, high in pairwise(bins):
        inside = (binned >= low) & (binned < high)
        if not inside.any():
            continue
        chosen = torch.as_tensor(inside)
        w = weights[chosen]
        rows.append(
            [
                f"{low:g} to {high:g}",
                str(int(inside.sum())),
                f"{dataset.arrays['costs'][inside].mean():.2f}",
                f"{logged[inside].mean():.2f}",
                f"{np.average(logged[inside], weights=w.numpy()):.2f}",
                f"{done[inside].mean():.2f}",
                f"{float(exponent[chosen].std()):.2f}",
                f"{float(w.mean()):.2f}",
                f"{float(effective_sample(w.unsqueeze(0))):.2f}",
            ]
        )
    header = ["rows", "cost", "action", "weighted", "lspc-s", "spread", "weight", "effective"]
    print(markdown_table(["vc" if of_states else "observation", *header], rows))


if __name__ == "__main__":
    main()
