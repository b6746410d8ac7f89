"""What evaluation beside training costs training on a CPU, by the priority of the evaluation's processes.

    python benchmarks/beside.py

Three replicas of LSPC train with the published settings; as many processes as there are cores roll their policies out
on BallRun meanwhile, without end. The figures are updates a second, and chunks of ten episodes in the same time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from typing import Any

import torch

from harness import registry
from harness.algorithm import Replica
from harness.data.dataset import load_dataset
from harness.data.draws import prepare
from harness.engine import Engine
from harness.evaluation import CHUNK, roll_out
from harness.memory import keep_freed_memory
from harness.report.tables import markdown_table
from harness.tasks import find_task

TASK = find_task("BallRun")


def evaluate(policy: Any, niceness: int, chunks: Any) -> None:
    torch.set_num_threads(1)
    os.nice(niceness)
    while True:
        roll_out(TASK, policy, list(range(CHUNK)), None)
        chunks.value += 1


def make_engine() -> Engine:
    data, kind = load_dataset(TASK, "demo"), registry.load("lspc")
    config = kind.Hyperparameters.model_validate(kind.published(TASK))
    replicas = [Replica(seed) for seed in range(3)]
    selections = [kind.select(data, config, one) for one in replicas]
    replicas, draws = prepare(kind, config, data, replicas, selections)
    return Engine(kind(config, TASK, replicas), draws)


def updates_per_second(engine: Engine, seconds: float) -> float:
    engine.run(2)
    begun, first = time.perf_counter(), engine.step
    while time.perf_counter() - begun < seconds:
        engine.run(1)
    return (engine.step - first) / (time.perf_counter() - begun)


def beside(engine: Engine, niceness: int, seconds: float) -> tuple[float, int]:
    """Updates a second, and chunks rolled out meanwhile."""
    context = multiprocessing.get_context("spawn")
    policy = engine.algorithm.policies(0)["lspc-s"]
    counts = [context.Value("i", 0) for _ in os.sched_getaffinity(0)]
    processes = [context.Process(target=evaluate, args=(policy, niceness, count), daemon=True) for count in counts]
    for process in processes:
        process.start()
    while min(count.value for count in counts) < 2:  # until all are under way
        time.sleep(0.1)
    before = sum(count.value for count in counts)
    rate = updates_per_second(engine, seconds)
    chunks = sum(count.value for count in counts) - before
    for process in processes:
        process.kill()
        process.join()
    return rate, chunks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    seconds = parser.parse_args().seconds
    keep_freed_memory()
    engine, rows = make_engine(), []
    for threads in (torch.get_num_threads(), 1):
        torch.set_num_threads(threads)
        rows.append([str(threads), "nothing beside it", f"{updates_per_second(engine, seconds):.2f}", "-"])
        for niceness in (0, 10, 19):
            rate, chunks = beside(engine, niceness, seconds)
            rows.append([str(threads), f"nice {niceness}", f"{rate:.2f}", str(chunks)])
    print(markdown_table(["training threads", "evaluation", "updates/s", "chunks"], rows))


if __name__ == "__main__":
    main()
