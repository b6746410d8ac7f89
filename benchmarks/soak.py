"""Kill a whole run again and again, and compare what it leaves with an undisturbed one.

    python benchmarks/soak.py --kills 100 --seed 0
    python benchmarks/soak.py --kills 30 --workers 4

The suite is tiny and is run by the command line, with a checkpoint at every chance and worker processes. Each run is
ended by SIGKILL at a random moment; after ten, or when it was over before, one is left to finish, and then every cell's
files, but for the times that they name, and the leaderboard must be byte for byte those of the undisturbed run. Exit
status 1 if not.

With ``--workers N`` so many are at work on one folder, and one of them, whichever, is killed at a random moment; then
the others must end the suite, and what they leave is compared, every time.

A moment is drawn from the first half of what a run takes that is left alone. Only kills count that hit a process which
was still there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from harness.cli import main

SUITE = """
name: soak
data: {source: demo}
tasks: [BallRun]
seeds: 2
cost_limits: [10, 20]
algorithms:
  lspc: {hyperparameters: {steps: 40, batch_size: 32, hidden_sizes: [16, 16], latent_dim: 4}}
  bc: {hyperparameters: {steps: 30, batch_size: 32, hidden_sizes: [16, 16], mode: safe}}
evaluation: {every: 15, episodes: 1, final: 3}
"""
TIMES = ("training_seconds", "updates_per_second", "peak_memory", "milliseconds_an_action", "started")
"""What of a cell's record is another every time."""
WORKERS = (0, 0, 0, 1)
"""A run's evaluation processes are drawn from these; with one, it takes longer to start."""


# Forks of a server that has imported everything, and run nothing, start at once and share no thread or lock.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["harness.executors.local", "pandas", "pyarrow.parquet", "bullet_safety_gym"])


def _run(folder: Path, workers: int, command: str = "run") -> None:
    """The command line on the suite, in this process; ends it."""
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    words = ["run", str(folder / "suite.yaml"), "--results", str(folder / "results")]
    if command == "work":
        words = ["work", str(folder / "results")]
    main([*words, "--device", "cpu", "--workers", str(workers), "--checkpoint-every", "0"])


def start(folder: Path, workers: int, command: str = "run") -> ForkServerProcess:
    """The suite's run, or another worker on it, in a process of its own."""
    process = context.Process(target=_run, args=(folder, workers, command))
    process.start()
    return process


def finish(folder: Path, workers: int) -> None:
    """Run the suite to its end.

    Raises:
        RuntimeError: it does not end well.
    """
    process = start(folder, workers)
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the run ended with {process.exitcode}: {(folder / 'log').read_text()[-2000:]}")


def outcome(results: Path) -> dict[str, bytes]:
    """What a finished run left: every file of every cell without times, and which other files there are."""
    found: dict[str, bytes] = {}
    for path in sorted(path for path in results.rglob("*") if path.is_file()):
        name = str(path.relative_to(results))
        if path.name == "cell.json":
            record = json.loads(path.read_bytes())
            found[name] = json.dumps({key: record[key] for key in record if key not in TIMES}).encode()
        elif path.name == "status.json":  # holds the size and SHA-256 of cell.json, and its own
            status = json.loads(path.read_bytes())
            del status["sha256"], status["files"]["cell.json"]
            found[name] = json.dumps(status).encode()
        else:
            found[name] = path.read_bytes()
    return found


def differing(expected: dict[str, bytes], found: dict[str, bytes]) -> list[str]:
    """The files that are not the same, or are in one of them alone."""
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def kill(process: ForkServerProcess, after: float) -> bool:
    """Kill a process after so many seconds; whether it was still there."""
    process.join(after)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def undisturbed(folder: Path) -> tuple[dict[str, bytes], float]:
    """What a run leaves that nobody kills, and how long it takes."""
    folder.mkdir()
    (folder / "suite.yaml").write_text(SUITE)
    finish(folder, 0)  # starts the server, too
    shutil.rmtree(folder / "results")
    begun = time.monotonic()
    finish(folder, 0)
    return outcome(folder / "results"), time.monotonic() - begun


def soak(folder: Path, kills: int, seed: int) -> list[str]:
    """Kill so many runs in a folder, at moments that follow from a seed and the speed; what differs in the end."""
    draws = random.Random(seed)
    expected, most = undisturbed(folder / "undisturbed")
    wrong: list[str] = []
    done = rounds = missed = 0
    while done < kills:
        place = folder / str(rounds)
        place.mkdir()
        (place / "suite.yaml").write_text(SUITE)
        for _ in range(min(kills - done, 10)):
            if not kill(start(place, draws.choice(WORKERS)), draws.uniform(0, most / 2)):
                missed += 1
                break
            done += 1
        finish(place, draws.choice(WORKERS))
        here = differing(expected, outcome(place / "results"))
        wrong += [f"round {rounds}: {name}" for name in here]
        rounds += 1
        told = f"{done} kills of a run at work ({missed} runs were over)"
        print(f"{told}, {rounds} results compared, {len(wrong)} files differ")
        sys.stdout.flush()
        if not here:
            shutil.rmtree(place)
    return wrong


def soak_many(folder: Path, kills: int, seed: int, workers: int) -> list[str]:
    """So many times, let workers share a folder and kill one of them; what differs in the end."""
    draws = random.Random(seed)
    expected, most = undisturbed(folder / "undisturbed")
    wrong: list[str] = []
    done = missed = 0
    while done < kills:
        turn = done + missed
        place = folder / str(turn)
        place.mkdir()
        (place / "suite.yaml").write_text(SUITE)
        crew = [start(place, 0)]
        while not list(place.glob("results/suites/*.json")) and crew[0].exitcode is None:
            time.sleep(0.01)
        crew += [start(place, 0, "work") for _ in range(workers - 1)]
        victim = crew.pop(draws.randrange(workers))
        hit = kill(victim, draws.uniform(0, most / 2))
        done, missed = done + hit, missed + (not hit)
        for process in crew:
            process.join()
        here = [f"a worker ended with {process.exitcode}" for process in crew if process.exitcode]
        lines = (place / "log").read_text().splitlines()
        totals = [line for line in lines if ": " in line and " with other workers" in line]
        here += [f"a worker left something open: {line}" for line in totals]
        finish(place, 0)  # which has nothing to run, and removes what the victim left of itself
        if "job " in "".join((place / "log").read_text().splitlines()[len(lines) :]):
            here.append("the others left something to run")
        here += differing(expected, outcome(place / "results"))
        wrong += [f"turn {turn}: {name}" for name in here]
        print(f"{done} kills of one of {workers} workers at work ({missed} were over), {len(wrong)} faults")
        sys.stdout.flush()
        if not here:
            shutil.rmtree(place)
    return wrong


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="that share a folder")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    if options.workers > 1:
        wrong = soak_many(folder, options.kills, options.seed, options.workers)
    else:
        wrong = soak(folder, options.kills, options.seed)
    if wrong:
        print("\n".join(wrong))
        sys.exit(f"what differs lies in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    run()
