"""How many updates a second: our stacked replicas beside OSRL's own script loop, its DataLoader included.

    python benchmarks/throughput.py                          # every baseline, published sizes, 1, 3 and 9 replicas
    python benchmarks/throughput.py bc cpq --replicas 1 9 --seconds 5 --output throughput.json

All contenders of an algorithm take turns on the same machine in the same run, and the median of their turns counts. The
data is made up, with the sizes of AntRun (33 observations, 8 actions). "agents/s" is updates a second times replicas;
the ratio is that of agents/s to OSRL's loop, which trains one agent. On a CPU all of them run with the memory setting
with which lspc-bench trains there (harness/memory.py); OSRL's scripts, which lack it, are slower than what is shown.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from algorithms.osrl import sequence_dataset, silence
from harness import registry
from harness.algorithm import Replica
from harness.data.dataset import KEYS, Dataset
from harness.data.draws import prepare
from harness.memory import keep_freed_memory
from harness.report.tables import markdown_table
from harness.tasks import find_task

TASK = find_task("AntRun")
BASELINES = ("bc", "bcq-lag", "bear-lag", "cpq", "coptidice", "cdt")
LOADER_WORKERS = 8  # OSRL's num_workers
PAUSE = 2.0  # seconds in which OSRL's loader workers fill their queue and come to rest
Step = Callable[[], Any]


def made_up_data(trajectories: int = 200) -> Dataset:
    """Random transitions; costs from none to some, so that every part of every algorithm has something to do."""
    rng = np.random.default_rng(0)
    length = TASK.max_episode_steps
    rows = trajectories * length
    boldness = np.repeat(rng.uniform(0, 0.4, trajectories), length)
    arrays = {
        "observations": rng.normal(size=(rows, TASK.observation_size)).astype(np.float32),
        "next_observations": rng.normal(size=(rows, TASK.observation_size)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, TASK.action_size)).astype(np.float32),
        "rewards": (5 * boldness + rng.uniform(0, 1, rows)).astype(np.float32),
        "costs": (rng.uniform(size=rows) < boldness).astype(np.float32),
        "terminals": np.zeros(rows, dtype=bool),
        "timeouts": np.arange(rows) % length == length - 1,
    }
    return Dataset(TASK, Path("made-up.hdf5"), "dsrl", arrays)


def configure(name: str, settings: dict[str, Any]) -> Any:
    kind = registry.load(name)
    return kind.Hyperparameters.model_validate({**kind.published(TASK), **settings})


def our_step(name: str, count: int, data: Dataset, config: Any, device: str) -> Step:
    """One update of ``count`` replicas, its batch drawn and gathered."""
    kind = registry.load(name)
    replicas = [Replica(seed, 10.0) for seed in range(count)]
    selections = [kind.select(data, config, one) for one in replicas]
    replicas, draws = prepare(kind, config, data, replicas, selections, device)
    algorithm = kind(config, TASK, replicas, device)
    steps = iter(range(10**9))
    return lambda: algorithm.update(*draws.at(next(steps)))


def osrl_batches(name: str, data: Dataset, config: Any, device: str) -> Iterator[list[Any]]:
    """OSRL's dataset behind its DataLoader, as its scripts have them."""
    from osrl.common.dataset import TransitionDataset
    from torch.utils.data import DataLoader

    if name == "cdt":
        dataset = sequence_dataset(data, config, 0)
    else:
        scale = getattr(config, "reward_scale", 1.0)
        arrays = {key: data.arrays[key].copy() for key in KEYS}
        dataset = TransitionDataset(arrays, reward_scale=scale, state_init=name == "coptidice")
    loader = DataLoader(dataset, batch_size=config.batch_size, pin_memory=device != "cpu", num_workers=LOADER_WORKERS)
    for batch in loader:
        yield [column.to(device) for column in batch]


def osrl_steps(name: str, data: Dataset, config: Any, device: str) -> tuple[Step, Step]:
    """One pass of OSRL's script loop, and the same on a batch that is already there."""
    kind = registry.load(f"osrl-{name}")
    chosen = kind.select(data, config, Replica(0, 10.0))
    adapter: Any = kind(config, TASK, [replace(Replica(0, 10.0), statistics=chosen.statistics)], device)
    train, batches = adapter.trainer.train_one_step, osrl_batches(name, data, config, device)

    def step(batch: list[Any]) -> None:
        if name == "bc":
            train(batch[0], batch[2])
        elif name == "coptidice":
            train(batch)
        else:
            train(*batch)

    kept = next(batches)
    return lambda: step(next(batches)), lambda: step(kept)


def rate(step: Step, seconds: float, device: str) -> float:
    """Updates a second over at least ``seconds`` and one update."""
    begun, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - begun < seconds:
        step()
        count += 1
    if device != "cpu":
        torch.cuda.synchronize()
    return count / (time.perf_counter() - begun)


def measure(name: str, counts: list[int], data: Dataset, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every contender of one algorithm, in turns."""
    settings = {} if arguments.batch_size is None else {"batch_size": arguments.batch_size}
    config, their_config = configure(name, settings), configure(f"osrl-{name}", settings)
    with silence():
        loop, alone = osrl_steps(name, data, their_config, arguments.device)
    contenders: dict[str, Step] = {"osrl loop": loop, "osrl step alone": alone}
    for count in counts:
        contenders[str(count)] = our_step(name, count, data, config, arguments.device)
    for step in contenders.values():
        rate(step, arguments.seconds / 4, arguments.device)  # a warm-up
    turns: dict[str, list[float]] = {contender: [] for contender in contenders}
    for _ in range(arguments.rounds):
        for contender, step in contenders.items():
            time.sleep(PAUSE)
            turns[contender].append(rate(step, arguments.seconds, arguments.device))
    updates = {contender: statistics.median(values) for contender, values in turns.items()}
    return {
        "algorithm": name,
        "batch_size": config.batch_size,
        "updates_per_second": updates,
        "turns": turns,
        "ratio_to_osrl_loop": {str(count): count * updates[str(count)] / updates["osrl loop"] for count in counts},
    }


def table(results: list[dict[str, Any]], counts: list[int]) -> str:
    header = ["algorithm", "batch", "OSRL's loop", "its step alone"]
    for count in counts:
        header += [f"ours, {count}: updates/s", "agents/s", "ratio"]
    rows = []
    for result in results:
        updates = result["updates_per_second"]
        row = [result["algorithm"], str(result["batch_size"])]
        row += [f"{updates['osrl loop']:.3g}", f"{updates['osrl step alone']:.3g}"]
        for count in counts:
            if str(count) in updates:
                ratio = result["ratio_to_osrl_loop"][str(count)]
                row += [f"{updates[str(count)]:.3g}", f"{count * updates[str(count)]:.3g}", f"{ratio:.3g}"]
            else:
                row += ["-", "-", "-"]
        rows.append(row)
    return markdown_table(header, rows)


def machine(device: str) -> str:
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return f"{cpu}, {torch.get_num_threads()} threads" + (
        f", {torch.cuda.get_device_name()}" if device != "cpu" else ""
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("algorithms", nargs="*", default=[], help=f"of {', '.join(BASELINES)}; default: all")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 3, 9])
    parser.add_argument("--most-replicas-of-cdt", type=int, default=None, help="its activations take 3.5 GB a replica")
    parser.add_argument("--batch-size", type=int, default=None, help="default: as published")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=None, help="where the figures go as JSON")
    arguments = parser.parse_args()
    unknown = set(arguments.algorithms) - set(BASELINES)
    if unknown:
        parser.error(f"OSRL has no {', '.join(sorted(unknown))}; choose of {', '.join(BASELINES)}")
    if arguments.device == "cpu":
        keep_freed_memory()
    data, results = made_up_data(), []
    for name in arguments.algorithms or BASELINES:
        most = arguments.most_replicas_of_cdt if name == "cdt" else None
        counts = [count for count in arguments.replicas if most is None or count <= most]
        results.append(measure(name, counts, data, arguments))
        print(table(results[-1:], arguments.replicas), flush=True)
    print(f"\n{machine(arguments.device)}; torch {torch.__version__}\n\n{table(results, arguments.replicas)}")
    if arguments.output is not None:
        content = {"machine": machine(arguments.device), "torch": torch.__version__, "results": results}
        arguments.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
