"""How the local executor fits jobs into memory: in groups, halved when it runs out, refused when one is too large."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from cells import make_cell, make_training
from rich.console import Console
from torch.utils._pytree import tree_leaves

from harness import capacity, registry
from harness.cli.progress import PlainProgress
from harness.data.dataset import load_dataset
from harness.errors import ResultsError
from harness.evaluation import Evaluator
from harness.executors import local
from harness.executors.local import LocalExecutor, resume
from harness.options import Options
from harness.plan import Cell, Job
from harness.store import EVERYTHING, Store
from harness.suite import Evaluation
from harness.tasks import find_task
from harness.trained import Trained, is_trained
from harness.training import Training

SETTINGS: dict[str, dict[str, Any]] = {
    "bc": {"steps": 20, "batch_size": 16, "hidden_sizes": (16, 16), "mode": "safe"},
    "lspc": {"steps": 20, "batch_size": 16, "hidden_sizes": (16, 16), "latent_dim": 4},
}


def cells(count: int, algorithm: str = "bc") -> list[Cell]:
    fields: dict[str, Any] = {"cost_limit": 40.0 if algorithm == "bc" else None, "evaluation_limits": (40.0,)}
    fields["evaluation"] = Evaluation(every=None, episodes=1, final=1)
    return [make_cell(algorithm, SETTINGS[algorithm], seed=seed, **fields) for seed in range(count)]


class Listener(PlainProgress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__([], 1, Console(quiet=True))
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "jobs").mkdir()
    return Store(tmp_path)


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many replicas each training had, in order."""
    sizes: list[int] = []
    advance = Training.advance

    def counted(self: Training, stop: Any) -> None:
        sizes.append(len(self.job.cells))
        advance(self, stop)

    monkeypatch.setattr(Training, "advance", counted)
    return sizes


def execute(store: Store, jobs: list[Job], **settings: Any) -> tuple[list[str], Listener]:
    listener = Listener()
    ended = LocalExecutor(store, listener, Options("cpu", workers=0, **settings)).run([jobs])
    return [status.state for status in ended.values()], listener


def equal(one: Any, other: Any) -> bool:
    """Whether two states are the same, tensors and all."""
    leaves, theirs = tree_leaves(one), tree_leaves(other)
    return len(leaves) == len(theirs) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(leaves, theirs, strict=True)
    )


def room_for(count: int, algorithm: str = "bc") -> int:
    """Bytes in which so many replicas fit, with the fewest steps drawn ahead, and not one more."""
    first = cells(1, algorithm)[0]
    dataset = load_dataset(find_task("BallRun"), "demo")
    need = capacity.measure(registry.load(algorithm), first.config, dataset, replica=first.replica)
    return capacity.Layout(count, capacity.STEPS[-1], on_host=False).takes(need, "cpu")


def test_what_fits_trains_in_one_group(store: Store, groups: list[int]) -> None:
    states, listener = execute(store, [Job(cells=tuple(cells(5)))])
    assert states == ["done"] * 5
    assert groups == [5]
    assert not any("memory" in note for note in listener.notes)
    record = store.record(cells(1)[0])
    assert (record["engine"], record["precision"]) == ("eager", "float32")


def test_a_job_that_does_not_fit_trains_in_groups(
    store: Store, groups: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "free_memory", lambda *_: room_for(3))
    states, listener = execute(store, [Job(cells=tuple(cells(5)))])
    assert states == ["done"] * 5
    assert groups == [3, 2]
    assert any("at most 3 replicas at a time" in note for note in listener.notes)


def test_groups_change_nothing_in_the_results(
    tmp_path: Path, groups: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for rounding: batched matrix products may round differently for other group sizes."""
    curves = []
    for name, room in (("whole", 10**12), ("parts", room_for(2, "lspc"))):
        (tmp_path / name / "jobs").mkdir(parents=True)
        kept = Store(tmp_path / name)
        monkeypatch.setattr(local, "free_memory", lambda *_, room=room: room)
        execute(kept, [Job(cells=tuple(cells(3, "lspc")))])
        curves.append([kept.training(cell) for cell in cells(3, "lspc")])
    assert groups == [3, 2, 1]
    for whole, parts in zip(*curves, strict=True):
        pd.testing.assert_frame_equal(whole, parts, rtol=1e-4)


def test_what_fits_in_no_way_is_refused_with_the_figures(
    store: Store, groups: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "free_memory", lambda *_: 100_000)
    states, _ = execute(store, [Job(cells=tuple(cells(2)))])
    assert states == ["failed"] * 2
    assert groups == []
    reason = store.status(cells(1)[0]).reason
    assert "too large for cpu, of whose memory 100 kB may be taken" in reason
    assert "--memory-fraction" in reason
    assert "a replica" in reason


def test_the_share_that_is_asked_for_is_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    monkeypatch.setattr(local, "free_memory", lambda device, share: asked.append(share) or 10**12)
    execute(store, [Job(cells=tuple(cells(1)))], memory_fraction=0.25)
    assert asked == [0.25]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_running_out_of_memory_halves_the_group(
    store: Store, groups: list[int], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    advance = Training.advance

    def short(self: Training, stop: Any) -> None:
        if len(self.job.cells) > 2:
            self.engine.run(3)
            raise error
        advance(self, stop)

    monkeypatch.setattr(Training, "advance", short)
    states, listener = execute(store, [Job(cells=tuple(cells(5)))])
    assert states == ["done"] * 5
    assert groups == [2, 1, 2]
    assert sum("ran out of memory" in note for note in listener.notes) == 2
    assert not list((store.root / "jobs").iterdir())


def test_one_replica_that_runs_out_of_memory_fails_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = Training.advance

    def short(self: Training, stop: Any) -> None:
        if any(cell.seed == 1 for cell in self.job.cells):
            raise torch.OutOfMemoryError("CUDA out of memory")
        advance(self, stop)

    monkeypatch.setattr(Training, "advance", short)
    execute(store, [Job(cells=tuple(cells(3)))])
    assert [store.status(cell).state for cell in cells(3)] == ["done", "failed", "done"]
    assert "OutOfMemoryError" in store.status(cells(3)[1]).reason


def test_a_checkpoint_goes_on_as_the_group_that_it_is(
    store: Store, groups: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = _begun(store)
    monkeypatch.setattr(local, "free_memory", lambda *_: room_for(1))
    states, _ = execute(store, resume(store, list(job.cells)))
    assert states == ["done"] * 3
    assert groups == [3]


def _begun(store: Store) -> Job:
    """A job of three replicas with a checkpoint at step 7."""
    job = Job(cells=tuple(cells(3)))
    begun = make_training(store.root, load_dataset(find_task("BallRun"), "demo"), *job.cells)
    begun.engine.run(7)
    begun.checkpoint()
    return job


@pytest.mark.parametrize("method", ["set_status", "write_checkpoint", "write_results", "remove_checkpoint"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_disk_that_refuses_ends_the_run_and_costs_no_checkpoint(
    store: Store, monkeypatch: pytest.MonkeyPatch, method: str, number: int
) -> None:
    job = _begun(store)

    def refused(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Store, method, refused)
    with pytest.raises(ResultsError, match=f"cannot write results: {os.strerror(number)}"):
        # A short job leaves no checkpoint, unless one is due.
        execute(store, resume(store, list(job.cells)), checkpoint_seconds=0.0)
    monkeypatch.undo()
    assert store.unfinished_jobs() == [job]
    kept = store.read_checkpoint(job)
    assert kept is not None
    assert kept["step"] >= 7
    assert not any(store.status(cell).state == "failed" for cell in job.cells)
    assert execute(store, resume(store, list(job.cells)))[0] in (["done"] * 3, [])


def test_a_checkpoint_is_of_steps_that_the_last_one_has_not(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    written = Store.write_checkpoint

    def write(self: Store, job: Job, content: Mapping[str, Any]) -> None:
        kept.append(content["step"])
        written(self, job, content)

    job = _begun(store)
    monkeypatch.setattr(Store, "write_checkpoint", write)
    execute(store, resume(store, list(job.cells)), checkpoint_seconds=0.0)
    assert kept == list(range(8, 21))
    kept.clear()
    execute(store, [Job(cells=tuple(cells(4)[3:]))], checkpoint_seconds=0.0)
    assert kept == list(range(1, 21))


def test_a_full_disk_that_a_plugin_meets_is_not_the_plugins_fault(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = _begun(store)

    def full(self: Training, stop: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere/log")

    monkeypatch.setattr(Training, "advance", full)
    with pytest.raises(ResultsError, match="No space left on device: '/somewhere/log'"):
        execute(store, resume(store, list(job.cells)))
    assert store.unfinished_jobs() == [job]


def test_a_damaged_cell_is_made_again(store: Store) -> None:
    thorough = Store(store.root, EVERYTHING)
    execute(thorough, [Job(cells=tuple(cells(2)))])
    path = store.folder(cells(1)[0]) / "policy.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"?")
    assert [thorough.status(cell).state for cell in cells(2)] == ["damaged", "done"]
    execute(thorough, resume(thorough, cells(1)))
    assert [thorough.status(cell).state for cell in cells(2)] == ["done", "done"]
    assert len(path.read_bytes()) == len(whole)


def test_a_job_at_rest_holds_nothing_of_the_device(store: Store) -> None:
    job = Job(cells=tuple(cells(2)))
    training = make_training(store.root, load_dataset(find_task("BallRun"), "demo"), *job.cells)
    training.advance(lambda: False)
    trained = training.rest({})
    assert not {"engine", "algorithm", "draws"} & set(vars(training))
    trained.checkpoint()
    before = store.read_checkpoint(job)
    assert is_trained(before)
    assert before is not None
    again = Trained.resumed(job, store, Evaluator(0), before)
    again.checkpoint()
    assert equal(before, store.read_checkpoint(job))
    again.collect()
    assert [status.state for status in again.finish({}).values()] == ["done", "done"]
    assert store.record(job.cells[0])["engine"] == "eager"
