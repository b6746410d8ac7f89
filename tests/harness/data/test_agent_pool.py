"""What agents did is kept until all have ended; how it came together does not show in the file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from harness.data.agents import FREE, Recipe, _gather, _sums, collect_agents
from harness.errors import UserError
from harness.tasks import Task, find_task

DYING = """\
import os
import gymnasium
import lspc_bench_test_plugins

class Dying(lspc_bench_test_plugins.Reach):
    def step(self, action):
        os._exit(3)

gymnasium.register("Dying-v0", Dying)
"""
RECIPE = Recipe((4.0, FREE), steps=100)


def reach(environment: str = "lspc_bench_test_plugins:Reach-v0", length: int = 20, limit: float = 5.0) -> Task:
    return Task("Reach", "Reach", "own", length, 2, 2, (limit,), -20, 0, 0, 20, "", environment)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_neither_processes_nor_interruptions_show(plugins: Path, tmp_path: Path) -> None:
    def collect(name: str, jobs: int, **options: Any) -> dict[str, Any]:
        return collect_agents(reach(), tmp_path / name / "a.hdf5", RECIPE, 15, 3, jobs, **options)

    together = collect("together", 2)
    assert names(tmp_path / "together") == ["a.hdf5", "a.hdf5.json"]
    pool = tmp_path / "broken" / ".a.hdf5.pool"

    def interrupt(done: int, total: int) -> None:
        if any(pool.glob("*.npz")):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect("broken", 1, progress=interrupt)
    assert names(tmp_path / "broken") == [".a.hdf5.pool"]
    (first,) = pool.glob("*.npz")
    other = pool / "0123456789abcdef-0.npz"  # of another recipe
    other.write_bytes(b"")
    (pool / ".b.npz.1.tmp").write_bytes(b"")
    trained = first.stat().st_mtime_ns
    seen: list[tuple[int, int]] = []
    resumed = collect("broken", 1, keep_pool=True, progress=lambda done, total: seen.append((done, total)))
    assert first.stat().st_mtime_ns == trained
    assert seen[0][0] >= 100
    assert {total for _, total in seen} == {200}
    assert together == resumed
    for name in ("a.hdf5", "a.hdf5.json"):
        assert (tmp_path / "together" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()

    # Thinned again: nobody is trained, and the other recipe's agent is still there.
    fewer = collect_agents(reach(), tmp_path / "broken" / "a.hdf5", RECIPE, 7, 3, progress=interrupt)
    assert (fewer["trajectories"], fewer["pool"]) == (7, together["pool"])
    assert fewer["command"] == "lspc-bench data collect Reach --agents --suite SUITE --targets 4,none --steps 100 " + (
        "--trajectories 7 --bins 3"
    )
    assert names(pool) == [other.name]
    with h5py.File(tmp_path / "broken" / "a.hdf5") as file:
        assert file["timeouts"][()].sum() == 7
        assert file.attrs["label"] == "agent-collected data, not DSRL"


def test_a_process_that_dies_is_told(plugins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lspc_bench_dying.py").write_text(DYING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{plugins}")
    dying = reach("lspc_bench_dying:Dying-v0")
    with pytest.raises(RuntimeError, match="an agent's process ended with status 3"):
        collect_agents(dying, tmp_path / "a.hdf5", RECIPE)
    assert not (tmp_path / "a.hdf5").exists()


def test_what_is_kept_is_gathered_from_all_agents(tmp_path: Path) -> None:
    lengths = [[2, 1, 3], [4], [1, 1]]
    values = iter(range(100))
    episodes = []
    for index, agent in enumerate(lengths):
        own = [np.array([next(values) for _ in range(length)], dtype=np.float32) for length in agent]
        joined = np.concatenate(own)
        np.savez(tmp_path / f"{index}.npz", lengths=agent, observations=joined[:, None], costs=joined, rewards=-joined)
        episodes += own
    paths = [tmp_path / f"{index}.npz" for index in range(3)]
    costs = np.concatenate([_sums(path)["costs"] for path in paths])
    assert costs.tolist() == [float(episode.sum()) for episode in episodes]
    assert _sums(paths[0])["rewards"].tolist() == [-1, -2, -12]
    for kept in ([0, 2, 3, 5], [1], [3, 4], list(range(6))):
        gathered = _gather(paths, np.isin(np.arange(6), kept))
        assert list(gathered) == ["observations", "costs", "rewards"]
        assert gathered["costs"].tolist() == np.concatenate([episodes[index] for index in kept]).tolist()
        assert gathered["observations"].shape == (len(gathered["costs"]), 1)


def test_recipes_fit_the_task() -> None:
    ball, goal = Recipe.default(find_task("BallRun")), Recipe.default(find_task("PointGoal1"))
    assert ball == Recipe((2, 8, 15, 25, 40, 60, FREE), 120_000)
    assert goal == Recipe((4, 16, 30, 50, 80, 120, FREE), 300_000)
    assert Recipe.default(reach(limit=0.0)).targets == ball.targets  # a share of nothing is no target


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (Recipe((), 1), {}, "positive targets"),
        (Recipe((10, 0.0), 1), {}, "positive targets"),
        (Recipe((math.nan,), 1), {}, "positive targets"),
        (Recipe((10,), 0), {}, "steps"),
        (Recipe((10,), 1, -1), {}, "seed of at least 0"),
        (RECIPE, {"trajectories": 0}, "at least 1"),
        (RECIPE, {"bins": 0}, "at least 1"),
        (RECIPE, {"jobs": 0}, "at least 1"),
    ],
)
def test_wrong_arguments_are_refused(recipe: Recipe, options: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        collect_agents(find_task("BallRun"), tmp_path / "a.hdf5", recipe, **options)
    assert list(tmp_path.iterdir()) == []
