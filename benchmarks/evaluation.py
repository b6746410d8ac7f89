"""How fast policies are evaluated: our workers beside OSRL's serial loop, resets included.

    python benchmarks/evaluation.py                                # a task or two of every family, all cores
    python benchmarks/evaluation.py PointGoal1 --workers 1 2 4 --output evaluation.json

Both sides roll out the same policy, an untrained actor of OSRL's BC, in the same task on the same machine; they take
turns, and the median of their turns counts. OSRL's side is its own ``BCTrainer.evaluate`` on DSRL's environment, in a
process of its own, where nothing of ours but what makes the simulators importable is in place. Processes are started,
and environments made, before the clock runs. The figure is environment steps a second.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from throughput import machine

from algorithms.parts.policies import ClonedPolicy
from harness.evaluation import CHUNK, Evaluator, episode_seeds
from harness.report.tables import markdown_table
from harness.tasks import Task, find_task

TASKS = ("BallRun", "CarCircle", "AntRun", "PointGoal1", "CarGoal2", "CarButton1", "SwimmerVelocity", "AntVelocity")
TASKS += ("easysparse", "hardmean")
HIDDEN = [256, 256]
MARK = "measured: "  # other lines of OSRL's side are its libraries' own


def actor(task: Task) -> Any:
    """OSRL's BC model, the same in every process."""
    from osrl.algorithms import BC

    torch.manual_seed(0)
    return BC(task.observation_size, task.action_size, 1.0, HIDDEN, task.max_episode_steps)


def our_policy(task: Task) -> ClonedPolicy:
    """The same actor behind our interface."""
    sizes = [task.observation_size, *HIDDEN, task.action_size]
    layers: list[torch.nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers[:-1])
    theirs = actor(task).actor.state_dict().values()
    network.load_state_dict(dict(zip(network.state_dict(), theirs, strict=True)))
    return ClonedPolicy(network)


def reference(task: Task, episodes: int) -> None:
    """OSRL's loop: for every line that comes in, evaluate and print seconds and steps."""
    import gymnasium

    from harness.simulators.metadrive import _environment_class, _standing_in

    os.environ["DSRL_SUPPRESS_IMPORT_ERROR"] = "1"
    modules: dict[str, Any] = {}
    if task.family == "metadrive":
        _environment_class()
        names = ("gym", "gym.spaces", "gym.envs", "gym.envs.registration")
        modules = {name: sys.modules[name.replace("gym", "gymnasium", 1)] for name in names}
    with _standing_in(modules):
        import dsrl  # noqa: F401  # registers the environments
        from osrl.algorithms import BCTrainer

        environment = gymnasium.make(task.id, disable_env_checker=True)
        trainer = BCTrainer(actor(task), environment)
    print(f"{MARK}ready", flush=True)
    for _ in sys.stdin:
        steps = 0
        step = environment.step

        def counted(action: Any, step: Any = step) -> Any:
            nonlocal steps
            steps += 1
            return step(action)

        environment.step = counted
        begun = time.perf_counter()
        trainer.evaluate(episodes)
        print(f"{MARK}{json.dumps([time.perf_counter() - begun, steps])}", flush=True)
        environment.step = step


def measure(task: Task, counts: list[int], episodes: int, rounds: int) -> dict[str, Any]:
    """Both sides in turns."""
    command = [sys.executable, __file__, task.name, "--episodes", str(episodes), "--reference"]
    folder = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    seeds, policy = episode_seeds(task, 0, episodes), our_policy(task)
    turns: dict[str, list[float]] = {"osrl": [], **{str(count): [] for count in counts}}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as theirs:
        answers = (line.removeprefix(MARK) for line in theirs.stdout or () if line.startswith(MARK))
        next(answers)
        evaluators = {count: Evaluator(count) for count in counts}
        for count, evaluator in evaluators.items():  # start, import, make the environments
            for futures in [evaluator.submit(task, policy, seeds[:CHUNK], None) for _ in range(count)]:
                futures[0].result()
        for _ in range(rounds):
            print("go", file=theirs.stdin, flush=True)
            seconds, steps = json.loads(next(answers))
            turns["osrl"].append(steps / seconds)
            for count, evaluator in evaluators.items():
                begun = time.perf_counter()
                futures = evaluator.submit(task, policy, seeds, None)
                steps = sum(episode.length for future in futures for episode in future.result())
                turns[str(count)].append(steps / (time.perf_counter() - begun))
        for evaluator in evaluators.values():
            evaluator.__exit__(None, None, None)
        theirs.terminate()
    rates = {side: statistics.median(values) for side, values in turns.items()}
    ratios = {str(count): rates[str(count)] / rates["osrl"] for count in counts}
    return {"task": task.name, "family": task.family, "steps_per_second": rates, "turns": turns, "ratio": ratios}


def table(results: list[dict[str, Any]], counts: list[int]) -> str:
    header = ["task", "family", "OSRL's loop"]
    for count in counts:
        header += [f"ours, {count} workers", "ratio"]
    rows = []
    for result in results:
        rates = result["steps_per_second"]
        row = [result["task"], result["family"], f"{rates['osrl']:.0f}"]
        for count in counts:
            row += [f"{rates[str(count)]:.0f}", f"{result['ratio'][str(count)]:.2f}"]
        rows.append(row)
    return markdown_table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(TASKS), help=f"default: {' '.join(TASKS)}")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=int, nargs="+", default=[cores], help="default: one a core")
    parser.add_argument("--episodes", type=int, default=20, help="of an evaluation")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=None, help="where the figures go as JSON")
    parser.add_argument("--reference", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.reference:
        reference(find_task(arguments.tasks[0]), arguments.episodes)
        return
    results = []
    for name in arguments.tasks:
        results.append(measure(find_task(name), arguments.workers, arguments.episodes, arguments.rounds))
        print(table(results[-1:], arguments.workers), flush=True)
    where = f"{cores} cores, {machine('cpu')}; numpy {np.__version__}, torch {torch.__version__}"
    print(f"\n{where}; {arguments.episodes} episodes an evaluation\n\n{table(results, arguments.workers)}")
    if arguments.output is not None:
        arguments.output.write_text(json.dumps({"machine": where, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
