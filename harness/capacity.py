"""How much memory a training job needs, and how to arrange it on a device: decided before it starts.

What a replica needs is measured, not modelled: an algorithm is a plugin, and its operations alone know what they keep.
It is trained for two steps of every kind on the CPU, on tiny batches, with every storage counted from its birth to its
death.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.algorithm import Algorithm, Config, Replica, Selection, kinds_of_update
from harness.data.dataset import Dataset
from harness.data.draws import BLOCK, UNIT, prepare

MARGINS = {"cuda": 1.2, "cpu": 1.6}
"""On what was measured of a replica: the allocator's gaps, and what operations take and give back within themselves.
The CPU's is what CDT's process was seen to grow to, with glibc keeping what is freed; the GPU's is a guess.
"""

STEPS = (BLOCK, BLOCK // 2, BLOCK // 4, UNIT)
"""How many steps may be drawn ahead, the best first."""

TINY_BATCHES, TINY_WINDOWS = (16, 32), (2, 4)
"""Batch sizes to measure at, for transitions (the contract's checks train with 16 too), and for windows of many.

A part of a batch may go its own way (FISOR's critics see an eighth of it), and one row is computed as no two are."""

MEMINFO, OWN_CGROUP, CGROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


# What a job needs


@dataclass(frozen=True)
class Need:
    """What a job needs of a device's memory, in bytes.

    Args:
        dataset: the algorithm's columns of all rows; once for all replicas.
        replica: one replica at the peak of an update: parameters, targets, optimiser state, gradients, activations, the
            step's batch and noise, and the rows or segments that it may draw.
        step: one replica's draws for one step: indices and noise.
        batch: one replica's batch of one step, once it is gathered.
    """

    dataset: int
    replica: int
    step: int
    batch: int

    def describe(self) -> str:
        """The same for people."""
        dataset, replica, step, batch = map(readable, (self.dataset, self.replica, self.step, self.batch))
        return f"the dataset {dataset}; a replica {replica}, its draws for a step {step}, its batch {batch}"


def readable(count: float) -> str:
    """Bytes for people: ``3.5 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if round(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def measure(
    algorithm: type[Algorithm[Config]],
    config: Config,
    dataset: Dataset,
    dtype: torch.dtype = torch.float32,
    replica: Replica | None = None,
) -> Need:
    """What training this algorithm on this dataset needs.

    A replica is really trained, for two steps of every kind on the CPU, at two tiny batch sizes. Both run the same
    operations, and what lives after each is linear in the batch size: so the curve is extrapolated point by point, and
    its peak is the need. Attention (``algorithms/parts/attention.py``) is cut into pieces on a CPU when it is large; at
    tiny batches it is one piece, as on a GPU (with 8 heads, for windows of up to 22 steps): the need is a GPU's, and an
    upper bound for a CPU. No global random state is disturbed.

    Args:
        algorithm: a plugin; an exception of its own is not caught.
        config: its hyperparameters.
        dataset: the job's.
        dtype: of parameters and data.
        replica: one of the job's; ``None``: of seed 0, at the task's first cost limit where training depends on it.

    Raises:
        UserError: the algorithm finds nothing in the dataset that this replica could train on.
    """
    if replica is None:
        replica = Replica(0, dataset.task.cost_limits[0] if algorithm.depends_on_cost_limit(config) else None)
    with undisturbed_randomness():
        selection = algorithm.select(dataset, config, replica)
        windows = selection.window(algorithm.sequence_length(config)) is not None
        tiny = TINY_WINDOWS if windows else TINY_BATCHES
        sizes = tiny if config.batch_size > tiny[1] else (config.batch_size,)
        trials = [trial(algorithm, config, dataset, replica, selection, size, dtype) for size in sizes]
    noise = sum(map(math.prod, algorithm.noise(config, dataset.task).values()))
    columns = sum(dataset.column(name).size for name in algorithm.columns(config))
    return Need(
        dataset=columns * dtype.itemsize,
        replica=peak([one.curve for one in trials], sizes, config.batch_size) + selection.nbytes,
        step=config.batch_size * (1 + windows) * torch.int64.itemsize + noise * dtype.itemsize,
        batch=trials[0].batch * config.batch_size // sizes[0],
    )


@dataclass(frozen=True)
class Trial:
    """What a replica took.

    Args:
        curve: live bytes after every operation, from the constructor's first to the last update's last.
        batch: bytes of a batch.
    """

    curve: Sequence[int]
    batch: int


def trial(
    algorithm: type[Algorithm[Config]],
    config: Config,
    dataset: Dataset,
    replica: Replica,
    selection: Selection,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
) -> Trial:
    """Train one replica for two steps of every kind on the CPU, and count what lives."""
    config = config.model_copy(update={"batch_size": batch_size})
    replicas, draws = prepare(algorithm, config, dataset, [replica], [selection], dtype=dtype)
    live = LiveBytes()
    with live:
        trained = algorithm(config, dataset.task, replicas, "cpu", dtype)
    kinds = kinds_of_update(trained, config.steps).values()
    # Two each: an optimiser's state is there from the second on.
    for count, step in enumerate(step for step, _ in kinds for _ in range(2)):
        trained.step = step
        batch, views = draws.at(count)
        noise = {name: values.clone() for name, values in views.items()}  # not the whole block of steps
        with live:
            trained.update(batch, noise)
    return Trial(live.curve, sum(values.nbytes for values in batch.values()))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations inside the block see, as long as they live; views share theirs.

    A storage that dies after the block is still noticed, so that one counter may be entered again and again.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.curve: list[int] = []
        """What lived after each operation."""
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation, and count what it was given and what it made."""
        self.count((args, kwargs))
        result = func(*args, **(kwargs or {}))
        self.count((args, kwargs, result))  # the given once more: they may have been resized
        self.curve.append(self.now)
        return result

    def count(self, tree: Any) -> None:
        """Count the storages of all tensors in nested containers."""
        for tensor in tree_leaves(tree):
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self._sizes:
                    weakref.finalize(storage, self._forget, key).atexit = False
                self.now += storage.nbytes() - self._sizes.get(key, 0)
                self._sizes[key] = storage.nbytes()

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def peak(curves: Sequence[Sequence[int]], sizes: Sequence[int], batch_size: int) -> int:
    """The most that lives at a batch size, from the curves at one or two other sizes."""
    if len(curves) == 1:
        return max(curves[0])
    small, large = curves
    if len(small) != len(large):  # not the same operations
        small, large = [max(small)], [max(large)]
    reach = (batch_size - sizes[0]) / (sizes[1] - sizes[0])
    return math.ceil(max(one + (other - one) * reach for one, other in zip(small, large, strict=True)))


@contextlib.contextmanager
def undisturbed_randomness() -> Iterator[None]:
    """Leave the global generators of torch (the CPU's), numpy and Python as they were."""
    states = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])


# What a device has


def free_memory(device: torch.device, fraction: float) -> int:
    """Bytes that training may take: a fraction of the device's memory, but no more than is free now."""
    total, free = _cuda_memory(device) if device.type == "cuda" else host_memory()
    return min(int(total * fraction), free)


def _cuda_memory(device: torch.device) -> tuple[int, int]:
    free, total = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return total, free + unused


def host_memory() -> tuple[int, int]:
    """Bytes that the host has in all, and available, for this process: the least that it or a cgroup (v2) allows."""
    total, free = _machine_memory()
    for group in _cgroups():
        limit = _number(group / "memory.max")
        if limit is not None:
            # Of what a group uses, files' pages that were not touched lately are given back when asked for.
            used = (_number(group / "memory.current") or 0) - _fields(group / "memory.stat").get("inactive_file", 0)
            total, free = min(total, limit), min(free, limit - used)
    return total, max(0, free)


def _machine_memory() -> tuple[int, int]:
    fields = _fields(MEMINFO)
    if not fields:  # not Linux
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return total, total
    return fields["MemTotal"] * 1024, fields["MemAvailable"] * 1024


def _cgroups() -> list[Path]:
    """The folder of this process's cgroup and those of all its ancestors."""
    for line in _lines(OWN_CGROUP):
        if line.startswith("0::/"):
            group = CGROUPS / line[len("0::/") :]
            return [folder for folder in (group, *group.parents) if folder.is_relative_to(CGROUPS)]
    return []


def _number(path: Path) -> int | None:
    """What stands in a file, ``None`` where there is none, or ``max``."""
    text = "".join(_lines(path))
    return int(text) if text.isdigit() else None


def _fields(path: Path) -> dict[str, int]:
    """Lines ``name number`` or ``name: number kB``."""
    return {name.rstrip(":"): int(number) for name, number, *_ in map(str.split, _lines(path))}


def _lines(path: Path) -> list[str]:
    """Of a file, none where there is no such file."""
    return path.read_text().splitlines() if path.is_file() else []


# How a job is arranged


@dataclass(frozen=True)
class Layout:
    """How a job lies on its device.

    Args:
        replicas: at most so many train side by side; the others wait.
        steps: drawn ahead.
        on_host: the dataset stays in the host's memory, and blocks of batches are copied to the device.
    """

    replicas: int
    steps: int
    on_host: bool

    def takes(self, need: Need, device: str = "cuda") -> int:
        """Bytes of the memory of a ``cuda`` or ``cpu`` device.

        While a block of batches from the host is used, the next one is drawn and gathered.
        """
        ahead = self.steps * (2 * (need.step + need.batch) if self.on_host else need.step)
        replica = math.ceil(MARGINS[device] * need.replica) + ahead
        return (0 if self.on_host else need.dataset) + self.replicas * replica

    def describe(self) -> str:
        """For people."""
        where = ", the dataset on the host" if self.on_host else ""
        return f"at most {self.replicas} replicas at a time, {self.steps} steps drawn ahead{where}"


def arrange(need: Need, replicas: int, budget: int, device: str = "cuda") -> Layout | None:
    """The best layout that fits: everything at once, fewer steps ahead, fewer replicas, the dataset on the host.

    On a CPU the host's memory is the device's, so that the dataset has nowhere else to go.

    Args:
        need: of the job.
        replicas: how many it trains.
        budget: bytes that it may take.
        device: ``cuda`` or ``cpu``.

    Returns:
        ``None`` where not even one replica fits.
    """

    def first(layouts: Iterable[Layout]) -> Layout | None:
        return next((layout for layout in layouts if layout.takes(need, device) <= budget), None)

    for on_host in (False,) if device == "cpu" else (False, True):
        most = first(Layout(count, STEPS[-1], on_host) for count in range(replicas, 0, -1))
        if most is not None:
            groups = -(-replicas // most.replicas)
            size = -(-replicas // groups)
            return first(Layout(size, steps, on_host) for steps in STEPS)
    return None
