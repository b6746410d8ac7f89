"""Kill a whole run again and again, and compare what it leaves with an undisturbed one.

    python benchmarks/soak.py --kills 100 --seed 0

The suite is tiny and is run by the command line, with a checkpoint at every chance and worker processes. Each run is
ended by SIGKILL at a random moment; after every tenth one is left to finish, and then every cell's files, but for the
times that they name, and the leaderboard must be byte for byte those of the undisturbed run. Exit status 1 if not.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
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
TIMES = ("training_seconds", "started")
"""What of a cell's record is another every time."""
WORKERS = (0, 0, 0, 1)
"""A run's evaluation processes are drawn from these; with one, it takes longer to start."""


# Forks of a server that has imported everything, and run nothing, start at once and share no thread or lock.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["harness.executors.local", "pandas", "pyarrow.parquet", "bullet_safety_gym"])


def _run(folder: Path, workers: int) -> None:
    """The command line on the suite, in this process; ends it."""
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    options = ["--results", str(folder / "results"), "--device", "cpu", "--workers", str(workers)]
    main(["run", str(folder / "suite.yaml"), *options, "--checkpoint-every", "0"])


def start(folder: Path, workers: int) -> ForkServerProcess:
    """The suite's run in a process of its own."""
    process = context.Process(target=_run, args=(folder, workers))
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


def soak(folder: Path, kills: int, seed: int) -> list[str]:
    """Kill so many runs in a folder, at moments that follow from a seed and the speed; what differs in the end."""
    draws = random.Random(seed)
    undisturbed = folder / "undisturbed"
    undisturbed.mkdir()
    (undisturbed / "suite.yaml").write_text(SUITE)
    finish(undisturbed, 0)  # starts the server, too
    shutil.rmtree(undisturbed / "results")
    begun = time.monotonic()
    finish(undisturbed, 0)
    most = time.monotonic() - begun
    expected = outcome(undisturbed / "results")
    wrong: list[str] = []
    done = rounds = ended = 0
    while done < kills:
        place = folder / str(rounds)
        place.mkdir()
        (place / "suite.yaml").write_text(SUITE)
        for _ in range(min(kills - done, 10)):
            process = start(place, draws.choice(WORKERS))
            process.join(draws.uniform(0, most / 2))
            ended += process.exitcode is not None
            process.kill()
            process.join()
            done += 1
        finish(place, draws.choice(WORKERS))
        found = outcome(place / "results")
        here = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
        wrong += [f"round {rounds}: {name}" for name in sorted(here)]
        rounds += 1
        print(f"{done} kills ({ended} of them after the end), {rounds} results compared, {len(wrong)} files differ")
        sys.stdout.flush()
        if not here:
            shutil.rmtree(place)
    return wrong


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    wrong = soak(folder, options.kills, options.seed)
    if wrong:
        print("\n".join(wrong))
        sys.exit(f"what differs lies in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    run()
