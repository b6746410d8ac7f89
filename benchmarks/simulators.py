"""Steps a second, and whether episodes repeat, of every task: what docs/tasks.md shows.

    python benchmarks/simulators.py --output docs/tasks.json && python docs/write_tasks.py
    python benchmarks/simulators.py PointGoal1 easysparse
    python benchmarks/simulators.py navigation bullet --plain      # as their packages have them, without our speed-ups

One process, random actions. An episode is recorded in a fresh process, and once more in another that has run episodes
of other tasks and of this task before; all numbers of all steps are compared.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from throughput import machine

from harness import simulators
from harness.report.tables import markdown_table
from harness.simulators import Environment, bullet, safety_gymnasium
from harness.tasks import all_tasks, find_task, select_tasks

SEED = 7
BEFORE = ("BallRun", "PointCircle1", "SwimmerVelocity", "mediumdense")
"""What a process has run before, one of each family."""


def episode(environment: Environment, seed: int, steps: int) -> np.ndarray[Any, Any]:
    """Observation, reward, cost and flags of every step, (steps + 1, observation_size + 4)."""
    rows = [[*environment.reset(seed), 0, 0, 0, 0]]
    for action in np.random.default_rng(seed).uniform(-1, 1, (steps, environment.action_size)).astype(np.float32):
        observation, *rest = environment.step(action)
        rows.append([*observation, *map(float, rest)])
        if rest[2] or rest[3]:
            break
    return np.array(rows)


def record(name: str, path: Path, with_a_past: bool) -> None:
    """Write an episode, in this process: its first, or after others."""
    task = find_task(name)
    if with_a_past:
        for other in BEFORE:
            environment = simulators.make(find_task(other))
            episode(environment, 1, 50)
            environment.close()
    environment = simulators.make(task)
    if with_a_past:
        episode(environment, SEED, 100)
        episode(environment, 2, task.max_episode_steps)
    np.save(path, episode(environment, SEED, task.max_episode_steps))
    environment.close()


def speed(environment: Environment, limit: int, seconds: float) -> tuple[float, float]:
    """Steps a second without resets, and seconds a reset."""
    generator = np.random.default_rng(0)
    environment.reset(0)
    steps = resets = 0
    stepping = resetting = 0.0
    while stepping + resetting < seconds or resets < 3:
        begun = time.perf_counter()
        environment.reset(resets)
        resetting, resets = resetting + time.perf_counter() - begun, resets + 1
        actions = generator.uniform(-1, 1, (limit, environment.action_size)).astype(np.float32)
        begun = time.perf_counter()
        for action in actions:
            *_, terminated, truncated = environment.step(action)
            steps += 1
            if terminated or truncated:
                break
        stepping += time.perf_counter() - begun
    return steps / stepping, resetting / resets


def measure(name: str, seconds: float, plain: bool) -> dict[str, Any]:
    task = find_task(name)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / "fresh.npy", Path(folder) / "past.npy"]
        for path in paths:
            command = [sys.executable, __file__, name, "--record", str(path), *(["--plain"] if plain else [])]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        fresh, past = map(np.load, paths)
    same_length = len(fresh) == len(past)
    environment = simulators.make(task)
    rate, reset = speed(environment, task.max_episode_steps, seconds)
    environment.close()
    return {
        "steps_per_second": round(rate),
        "milliseconds_per_reset": round(1000 * reset, 1),
        "compared_steps": min(len(fresh), len(past)) - 1,
        "largest_difference": float(np.abs(fresh - past).max()) if same_length else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=["all"], help="default: all")
    parser.add_argument("--seconds", type=float, default=4.0, help="of stepping and resetting, a task")
    parser.add_argument("--output", type=Path, default=None, help="where the figures go as JSON")
    parser.add_argument("--plain", action="store_true", help="leave out simulators/navigation.py and bullet_client.py")
    parser.add_argument("--record", type=Path, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain:
        safety_gymnasium.speed_up = lambda: None
        bullet.speed_up = lambda environment: None
    if arguments.record is not None:
        record(arguments.tasks[0], arguments.record, with_a_past=arguments.record.stem == "past")
        return
    results = {}
    for task in select_tasks(arguments.tasks):
        results[task.id] = measure(task.name, arguments.seconds, arguments.plain)
        print(task.name, results[task.id], flush=True)
    if arguments.output is not None:
        content = {"machine": f"one core of {machine('cpu').partition(',')[0]}", "tasks": results}
        arguments.output.write_text(json.dumps(content, indent=1) + "\n")
    header = ["task", *next(iter(results.values()))]
    print(markdown_table(header, [[all_tasks()[key].name, *map(str, row.values())] for key, row in results.items()]))


if __name__ == "__main__":
    main()
