"""What the tests of launchers share: a small suite, and what is in its results folder when it has ended."""

from __future__ import annotations

from pathlib import Path

from running import outcome, run, suite_file

from harness.claims import workers

# Each job takes about as long as a worker to start, and there are four, so that two are at work at once.
SUITE = """
name: submitted
data: {source: demo}
tasks: [BallRun]
seeds: 2
cost_limits: [20]
algorithms:
  bc: {hyperparameters: &bc {steps: 1200, batch_size: 32, hidden_sizes: [16, 16]}}
  safe: {algorithm: bc, hyperparameters: {<<: *bc, mode: safe}}
  slow: {algorithm: bc, hyperparameters: {<<: *bc, actor_lr: 0.0001}}
  lspc: {hyperparameters: {steps: 300, batch_size: 32, hidden_sizes: [16, 16], latent_dim: 4}}
evaluation: {every: 100, episodes: 1, final: 1}
"""
OPTIONS = ("--device", "cpu", "--workers", "0", "--checkpoint-every", "0")


def suite(folder: Path) -> Path:
    return suite_file(folder, SUITE)


def undisturbed(folder: Path) -> dict[str, bytes]:
    """What one process makes of it that is left alone."""
    done = run(suite(folder), folder / "runs")
    assert done.exit_code == 0, done.output
    return outcome(folder / "runs")


def at_work(results: Path, count: int) -> bool:
    """Whether so many workers have begun, and something is there to go on from."""
    busy = [worker for worker in workers(results) if worker.claims]
    return len(busy) >= count and any((results / "jobs").glob("*.checkpoint"))


def logs(results: Path) -> str:
    """What the workers said, for a test that fails."""
    return "\n".join(path.read_text() for path in (results / "launched").rglob("*") if path.suffix in (".log", ".out"))
