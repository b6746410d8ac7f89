"""What a job needs is what it takes; a layout fits, and is the best that does; limits are found where they stand."""

from __future__ import annotations

import json
import os
import platform
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algorithms.bc import BC
from harness import capacity, registry
from harness.algorithm import Algorithm, Replica
from harness.capacity import MARGINS, STEPS, Layout, LiveBytes, Need, arrange, free_memory, measure, readable, trial
from harness.data.dataset import Dataset, load_dataset
from harness.data.sampling import WindowSampler, make_sampler
from harness.errors import UserError
from harness.tasks import find_task

GB = 10**9
CRITIC = {"actor_hidden_sizes": (16, 16), "critic_hidden_sizes": (16, 16), "vae_hidden_size": 16, "sampled_actions": 3}
TRANSFORMER = {"sequence_length": 3, "embedding_dim": 8, "num_layers": 2, "num_heads": 2}
SMALL: dict[str, dict[str, Any]] = {
    "lspc": {"hidden_sizes": (16, 16), "latent_dim": 4},
    "bc": {"hidden_sizes": (16, 16)},
    "bcq-lag": CRITIC,
    "cdt": TRANSFORMER,
    "caps": {"actor_hidden_sizes": (16, 16), "critic_hidden_sizes": (16, 16), "backbone": "sac", "heads": 3},
    "ccac": {
        **{name: sizes for name, sizes in CRITIC.items() if name.endswith("hidden_sizes")},
        "vae_hidden_sizes": (16, 16),
        "latent_size": 4,
        "classifier_hidden_sizes": (16, 16),
        "multiplier_hidden_sizes": (16, 16),
    },
    "trac": {"hidden_sizes": (16, 16), "seg_ratio": 0.1},
    "fisor": {"critic_hidden_sizes": (8, 8), "width": 8, "blocks": 1, "time_size": 4, "frequencies": 2},
    "osrl-bcq-lag": CRITIC,
    "osrl-cdt": TRANSFORMER,
}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset(find_task("BallRun"), "demo")


def configured(name: str, **settings: Any) -> tuple[type[Algorithm[Any]], Any]:
    algorithm = registry.load(name)
    return algorithm, algorithm.Hyperparameters(**{**SMALL[name], **settings})


# What a job needs


@pytest.mark.parametrize("name", SMALL)
def test_a_replica_is_what_it_takes_at_its_own_batch_size(dataset: Dataset, name: str) -> None:
    algorithm, config = configured(name, batch_size=64)
    replica = Replica(0, 10.0 if algorithm.depends_on_cost_limit(config) else None)
    selection = algorithm.select(dataset, config, replica)
    taken = max(trial(algorithm, config, dataset, replica, selection, 64).curve)
    tiny = max(trial(algorithm, config, dataset, replica, selection, 16).curve)
    assert taken > 1.4 * tiny  # or nothing is extrapolated
    assert measure(algorithm, config, dataset).replica == pytest.approx(taken + selection.nbytes, rel=0.01)


def test_a_tiny_batch_is_measured_as_it_is(dataset: Dataset) -> None:
    algorithm, config = configured("bc", batch_size=11)
    taken = trial(algorithm, config, dataset, Replica(0), algorithm.select(dataset, config, Replica(0)), 11)
    assert measure(algorithm, config, dataset).replica == max(taken.curve)


def test_parameters_moments_gradients_and_activations_are_all_there(dataset: Dataset) -> None:
    algorithm, config = configured("bc", batch_size=4096, hidden_sizes=(512, 512))
    parameters = 7 * 512 + 512 + 512 * 512 + 512 + 512 * 2 + 2
    # The parameters, two moments of Adam and a gradient; what two hidden layers give, and one gradient of them.
    at_least = 4 * (4 * parameters + 3 * 4096 * 512)
    assert at_least < measure(algorithm, config, dataset).replica < 1.3 * at_least


def test_later_phases_are_measured_too(dataset: Dataset) -> None:
    """Actor and critics have gradients and moments behind the warm-up alone."""
    sizes = {"actor_hidden_sizes": (512, 512), "critic_hidden_sizes": (512, 512)}
    with_all, without_warm_up = (
        measure(*configured("ccac", batch_size=16, warm_up=share, **sizes), dataset).replica for share in (0.5, 0.0)
    )
    assert with_all == pytest.approx(without_warm_up, rel=0.02)


def test_transitions_by_hand(dataset: Dataset) -> None:
    need = measure(*configured("lspc", batch_size=64), dataset)
    row = 7 + 2 + 7 + 1 + 1 + 1  # observation, action, next observation, reward, cost, done
    assert need.dataset == len(dataset) * row * 4
    assert need.batch == 64 * row * 4
    assert need.step == 64 * 8 + 2 * 64 * 4 * 4  # rows, and noise for latents of 4 twice


def test_windows_by_hand(dataset: Dataset) -> None:
    need = measure(*configured("cdt", batch_size=64), dataset)
    row = 7 + 2 + 1 + 1 + 1  # observation, action, cost, reward to go, cost to go
    assert need.dataset == len(dataset) * row * 4
    assert need.batch == 64 * 3 * ((row + 1) * 4 + 8)  # with the mask, and the time step
    assert need.step == 64 * 2 * 8  # entry and first step


def test_segments_by_hand(dataset: Dataset) -> None:
    """Of a length that the data decides: a tenth of the 100 steps of its longest trajectory."""
    algorithm, config = configured("trac", batch_size=64)
    selection = algorithm.select(dataset, config, Replica(0, 10.0))
    assert selection.segments is not None
    # Shares up to an entry, its trajectory's first row and length, its start, label and weight.
    assert selection.nbytes == len(selection.segments) * 6 * 8
    sampler = make_sampler(dataset, algorithm.columns(config), [selection])
    assert isinstance(sampler, WindowSampler)
    held = [*sampler._cumulative, *sampler._firsts, sampler._all_starts, sampler._all_lengths]
    held += sampler._values.values()
    assert sum(one.nbytes for one in held if one is not None) == selection.nbytes
    need = measure(algorithm, config, dataset)
    row = 7 + 2  # observation, action
    assert need.dataset == len(dataset) * row * 4
    assert need.batch == 64 * (10 * ((row + 1) * 4 + 8) + 2 * 4)  # with mask, time step, label and weight
    assert need.step == 64 * 2 * 8  # entry and first step


def test_double_precision_takes_twice_as_much(dataset: Dataset) -> None:
    single = measure(*configured("lspc", batch_size=64), dataset)
    double = measure(*configured("lspc", batch_size=64), dataset, torch.float64)
    assert (double.dataset, double.batch) == (2 * single.dataset, 2 * single.batch)
    assert double.step == 2 * single.step - 64 * 8
    assert double.replica == pytest.approx(2 * single.replica, rel=0.02)


def test_the_rows_that_a_replica_may_draw_count(dataset: Dataset) -> None:
    limit = float(np.median(dataset.trajectories.cost_returns()))
    algorithm, config = configured("bc", mode="safe", batch_size=64)
    rows = algorithm.select(dataset, config, Replica(0, limit)).rows
    assert rows is not None
    needs = (
        measure(*configured("bc", batch_size=64), dataset),
        measure(algorithm, config, dataset, replica=Replica(0, limit)),
    )
    assert needs[1].replica - needs[0].replica == 8 * len(rows)
    with pytest.raises(UserError, match="selects no trajectory"):
        measure(algorithm, config, dataset, replica=Replica(0, -1.0))


def test_noise_counts_for_one_step_not_for_a_block(dataset: Dataset) -> None:
    need = measure(*configured("lspc", batch_size=64, latent_dim=512), dataset)
    assert need.replica < 32 * need.step


class Greedy(BC):
    """Takes most while it is built."""

    def __init__(self, *arguments: Any) -> None:
        torch.zeros(10**7)
        super().__init__(*arguments)


def test_what_the_constructor_takes_counts(dataset: Dataset) -> None:
    config = BC.Hyperparameters(hidden_sizes=(8,))
    assert measure(Greedy, config, dataset).replica == 4 * 10**7


class Restless(BC):
    """Draws from every global generator."""

    def update(self, batch: Any, noise: Any) -> Any:
        np.random.rand()
        random.random()
        torch.rand(1)
        return super().update(batch, noise)


class Broken(BC):
    """Fails in its second update."""

    def update(self, batch: Any, noise: Any) -> Any:
        if hasattr(self, "again"):
            raise ZeroDivisionError("mine")
        self.again = True
        return super().update(batch, noise)


def random_numbers() -> tuple[float, float, float]:
    return float(torch.rand(())), np.random.rand(), random.random()


@pytest.mark.parametrize("algorithm", [Restless, Broken])
def test_no_random_state_is_disturbed_and_no_exception_swallowed(dataset: Dataset, algorithm: type[BC]) -> None:
    config = BC.Hyperparameters(hidden_sizes=(8,))
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(0)
    expected = random_numbers()
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(0)
    if algorithm is Broken:
        with pytest.raises(ZeroDivisionError, match="mine"):
            measure(algorithm, config, dataset)
    else:
        measure(algorithm, config, dataset)
    assert random_numbers() == expected


def test_a_view_counts_once_and_what_is_freed_no_more() -> None:
    outside = torch.zeros(1000)
    live = LiveBytes()
    with live:
        first = torch.zeros(100)
        view = first[:50].reshape(5, 10).T
        assert live.now == 400
        second = view + 1
        assert live.now == 600
        del first
        assert live.now == 600  # the view is left
        del view
        assert live.now == 200
        seen = outside[:1]
        assert live.now == 4200
        second.resize_(100)
        assert live.now == 4400
        with live:  # it may be entered again
            third = torch.zeros(25)
    del second, third
    assert live.now == 4000  # what dies outside is noticed
    del seen, outside
    assert live.now == 0
    assert max(live.curve) == 4500


def test_what_the_backward_pass_needs_lives_until_then() -> None:
    live = LiveBytes()
    with live:
        weight = torch.ones(100, requires_grad=True)
        loss = (weight * 2).exp().sum()
        assert live.now == 400 + 400 + 4  # the exponential is kept, its argument is not
        loss.backward()
        assert live.now == 400 + 400 + 4  # the gradient in its place
        del loss
        assert live.now == 800
    assert weight.grad is not None


def test_peaks_move_with_the_batch_size() -> None:
    assert capacity.peak([[10, 5, 7], [12, 9, 7]], (1, 2), 11) == 45  # the second point overtakes the first
    assert capacity.peak([[10, 5], [12, 9, 7]], (1, 2), 11) == 30  # not the same operations: the peaks alone
    assert capacity.peak([[10, 25, 7]], (4,), 4) == 25


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (3_500_000_000, "3.5 GB"),
        (36e6, "36 MB"),
        (999_700, "1.0 MB"),
        (2.5e15, "2500.0 TB"),
    ],
)
def test_bytes_for_people(count: float, text: str) -> None:
    assert readable(count) == text


def test_a_need_describes_itself() -> None:
    assert Need(112 * 10**6, 36 * 10**6, 270_000, 315_000).describe() == (
        "the dataset 112 MB; a replica 36 MB, its draws for a step 270 kB, its batch 315 kB"
    )


TRAINING = """
import json, sys
from harness import registry
from harness.algorithm import Replica
from harness.data.dataset import load_dataset
from harness.data.draws import prepare
from harness.tasks import find_task

def most():  # not getrusage: its ru_maxrss begins with that of the process which started this one
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

def train(**settings):
    config = algorithm.Hyperparameters(**settings)
    replicas, draws = prepare(algorithm, config, dataset, [Replica(0)], [algorithm.select(dataset, config, Replica(0))])
    training = algorithm(config, task, replicas)
    for step in range(3):
        training.update(*draws.at(step))

task = find_task("BallRun")
dataset, algorithm, settings = load_dataset(task, "demo"), registry.load("cdt"), json.loads(sys.argv[1])
train(**{**settings, "batch_size": 2})  # imports what torch imports late
before = most()
train(**settings)
print(most() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_the_process_grows_by_what_was_measured(dataset: Dataset) -> None:
    settings = {"batch_size": 256, "embedding_dim": 64}
    algorithm = registry.load("cdt")
    need = measure(algorithm, algorithm.Hyperparameters(**settings), dataset)
    # At its default, but fixed: as glibc adapts it, the gaps between tensors are up to half of what they take.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
    command = [sys.executable, "-c", TRAINING, json.dumps(settings)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    expected, grown = need.dataset + need.replica + 64 * need.step, int(run.stdout)
    assert expected / 1.5 < grown < expected * 1.25, (readable(expected), readable(grown))


# What a device has


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GiB, 5 of them free, and a cgroup two levels down that limits nothing."""
    kib = 2**20
    (tmp_path / "meminfo").write_text(
        f"MemTotal: {8 * kib} kB\nMemFree: 1 kB\nMemAvailable: {5 * kib} kB\nHugePages_Total: 0\n"
    )
    (tmp_path / "cgroup").write_text("4:memory:/elsewhere\n0::/user/job\n")
    (tmp_path / "fs/user/job").mkdir(parents=True)
    (tmp_path / "fs/user/job/memory.max").write_text("max\n")
    monkeypatch.setattr(capacity, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(capacity, "OWN_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(capacity, "CGROUPS", tmp_path / "fs")
    return tmp_path


GIB = 2**30
CPU = torch.device("cpu")


def limit(group: Path, most: int, used: int, files: int | None = None) -> None:
    (group / "memory.max").write_text(f"{most}\n")
    (group / "memory.current").write_text(f"{used}\n")
    if files is not None:
        (group / "memory.stat").write_text(f"anon 1\nactive_file 7\ninactive_file {files}\n")


def test_a_fraction_of_the_memory_but_no_more_than_is_free(machine: Path) -> None:
    assert free_memory(CPU, 0.5) == 4 * GIB
    assert free_memory(CPU, 0.9) == 5 * GIB


def test_a_cgroup_limits(machine: Path) -> None:
    limit(machine / "fs/user/job", 4 * GIB, 1 * GIB)
    assert capacity.host_memory() == (4 * GIB, 3 * GIB)
    assert free_memory(CPU, 0.5) == 2 * GIB


def test_a_cgroups_ancestor_limits(machine: Path) -> None:
    limit(machine / "fs/user", 4 * GIB, 3 * GIB)
    assert capacity.host_memory() == (4 * GIB, 1 * GIB)
    limit(machine / "fs", 2 * GIB, 3 * GIB)  # the root as a container sees it
    assert capacity.host_memory() == (2 * GIB, 0)
    limit(machine, 1, 1)  # beyond the root
    assert capacity.host_memory() == (2 * GIB, 0)


def test_pages_of_files_are_no_obstacle(machine: Path) -> None:
    limit(machine / "fs/user/job", 4 * GIB, 3 * GIB, files=2 * GIB)
    assert capacity.host_memory() == (4 * GIB, 3 * GIB)


def test_no_cgroup_is_no_limit(machine: Path) -> None:
    limit(machine / "fs/user/job", GIB, 0)
    for text in ("", "4:memory:/user/job\n", "0::/gone\n"):
        (machine / "cgroup").write_text(text)
        assert capacity.host_memory() == (8 * GIB, 5 * GIB)
    (machine / "cgroup").unlink()
    assert capacity.host_memory() == (8 * GIB, 5 * GIB)


def test_without_meminfo_all_of_it_counts(machine: Path) -> None:
    (machine / "meminfo").unlink()
    total, free = capacity.host_memory()
    assert total == free > 2**28


def test_this_machine_has_memory() -> None:
    total, free = capacity.host_memory()
    assert 2**28 < free <= total


def test_what_torch_reserved_of_a_gpu_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * GB, 80 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5 * GB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 3 * GB)
    assert free_memory(torch.device("cuda"), 0.9) == 12 * GB
    assert free_memory(torch.device("cuda"), 0.1) == 8 * GB


# How a job is arranged


def test_what_a_layout_takes_by_hand() -> None:
    need = Need(dataset=1000, replica=100, step=3, batch=7)
    assert Layout(5, 16, on_host=False).takes(need) == 1000 + 5 * (120 + 16 * 3)
    assert Layout(5, 16, on_host=True).takes(need) == 5 * (120 + 16 * 2 * (3 + 7))


@pytest.mark.parametrize(
    ("budget", "layout"),
    [
        (10_000, Layout(9, 64, on_host=False)),
        (1000 + 9 * (120 + 64 * 3), Layout(9, 64, on_host=False)),
        (1000 + 9 * (120 + 64 * 3) - 1, Layout(9, 32, on_host=False)),
        (1000 + 9 * (120 + 8 * 3), Layout(9, 8, on_host=False)),
        (1000 + 9 * (120 + 8 * 3) - 1, Layout(5, 32, on_host=False)),  # 8 would fit, but leave one behind
        (1000 + 4 * (120 + 8 * 3), Layout(3, 16, on_host=False)),
        (1000 + 120 + 8 * 3, Layout(1, 8, on_host=False)),
        (1000 + 120 + 8 * 3 - 1, Layout(3, 8, on_host=True)),
        (120 + 8 * 20, Layout(1, 8, on_host=True)),
        (120 + 8 * 20 - 1, None),
    ],
)
def test_nine_replicas_by_hand(budget: int, layout: Layout | None) -> None:
    assert arrange(Need(dataset=1000, replica=100, step=3, batch=7), 9, budget) == layout


def test_on_a_cpu_the_dataset_has_nowhere_else_to_go() -> None:
    need = Need(dataset=1000, replica=100, step=3, batch=7)
    least = 1000 + 160 + 8 * 3
    assert arrange(need, 9, least, "cpu") == Layout(1, 8, on_host=False)
    assert arrange(need, 9, least - 1, "cpu") is None
    assert Layout(1, 8, on_host=False).takes(need, "cpu") == least


NEEDS = st.builds(
    Need,
    dataset=st.integers(0, 5000),
    replica=st.integers(1, 1000),
    step=st.integers(0, 100),
    batch=st.integers(1, 100),
)


@given(need=NEEDS, replicas=st.integers(1, 30), budget=st.integers(0, 40_000))
def test_a_layout_fits_and_none_better_does(need: Need, replicas: int, budget: int) -> None:
    def fits(*layout: Any) -> bool:
        return Layout(*layout).takes(need) <= budget

    found = arrange(need, replicas, budget)
    if found is None:
        assert not fits(1, 8, False)
        assert not fits(1, 8, True)
        return
    assert found.takes(need) <= budget
    assert found.on_host == (not fits(1, 8, False))
    groups = -(-replicas // found.replicas)
    assert found.replicas == -(-replicas // groups)  # of nearly equal size
    for fewer in range(1, groups):
        assert not fits(-(-replicas // fewer), 8, found.on_host)
    for more in [steps for steps in STEPS if steps > found.steps]:
        assert not fits(found.replicas, more, found.on_host)
    assert MARGINS["cuda"] * need.replica * found.replicas <= budget
