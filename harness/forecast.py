"""How long a plan will take, from what ``benchmarks/throughput.py`` measured on a machine.

Training. The time of an update is taken for a function of the floating point operations of the whole group's update:
replicas times those of one agent. The function goes through the points that were measured for the algorithm, with the
engine that was fastest at any of them: linear between two points, never falling; above the last in proportion to the
operations; below the first in proportion on a CPU, constant on a GPU, which waits for launches there. Operations are
those of matrix products, counted in the first update of one agent on made-up data, with two small batches, and
extrapolated to the batch size, in which they are linear.

Evaluation. Episodes times the task's longest episode, at the speed that ``benchmarks/simulators.py`` measured for its
simulator on one core (the median of the family where a task is none of DSRL's: of all tasks), and of the policy at ten
environments a forward pass, shared by the workers. That core is of the machine where the simulators were measured, and
the policy was measured in one task only.

Wall time. On a GPU, training and evaluation run beside each other, and the longer one counts. Where there are several
GPUs, each takes the longest group of cells that is left whenever it is free. On a CPU training and evaluation share the
cores, and the sum of their core-seconds counts, but no less than evaluation takes with its workers; however many
processes train. Without workers evaluation waits for training, in each process that trains.

Left out: loading and filtering data, fitted Q-evaluation (which is said), checkpoints, the start of processes, captures
and compilation, resets of environments, episodes that end early, what a resumed job has done already, MetaDrive's
policies, which act for one environment at a time, and groups that are split because memory is short.
"""

from __future__ import annotations

import heapq
import json
import os
import platform
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from harness import registry
from harness.algorithm import Algorithm, Hyperparameters, Replica, Selection, kinds_of_update
from harness.data.dataset import Dataset
from harness.data.draws import UNIT, prepare
from harness.errors import UserError
from harness.evaluation import CHUNK
from harness.files import read_bytes, shipped
from harness.guard import guard
from harness.plan import expected_episodes
from harness.tasks import Task, all_tasks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from harness.plan import Job

COUNTED = 8, 16
"""Batch sizes at which operations are counted."""
LONGEST = 1000
"""Steps of a trajectory of the data that operations are counted with, at the most: as many as DSRL's have."""

Positive = Annotated[float, Field(gt=0)]
Kind = Literal["cpu", "cuda"]


# What was measured


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Machine(_Record):
    """Where something was measured."""

    name: str
    """The GPU's name, or the CPU's model."""
    kind: Kind
    cores: int = Field(ge=1)
    torch: str

    def describe(self) -> str:
        """For people: ``AMD EPYC (2 cores)``."""
        return f"{self.name} ({self.cores} core{'s' if self.cores > 1 else ''})"

    def same(self, other: Machine) -> bool:
        """Whether what was measured on one holds for the other: a GPU by its name, a CPU by its cores, too."""
        return (self.kind, self.name) == (other.kind, other.name) and (self.kind == "cuda" or self.cores == other.cores)


class KeptMemory(_Record):
    """On which side the C library kept freed memory, see :mod:`harness.memory`."""

    ours: bool
    reference: bool


class Speed(_Record):
    """What was measured of one algorithm, with its published settings and the sizes of AntRun."""

    batch_size: int = Field(ge=1)
    flops: Positive
    """Floating point operations of one update of one agent, see :func:`update_flops`."""
    policy_seconds: dict[str, Positive] = Field(min_length=1)
    """By policy: seconds in which it acts for ten environments, on one thread."""
    reference: dict[str, Positive] = {}
    """Updates a second of the reference code: ``loop``, and ``step alone`` without loading data."""
    engines: dict[str, Annotated[dict[int, Positive], Field(min_length=1)]] = Field(min_length=1)
    """By engine and number of replicas: updates a second of the group."""
    turns: dict[str, list[Positive]] = {}
    """What these are the medians of."""

    @property
    def best_engine(self) -> str:
        """The engine that gave most agents' updates a second, with any number of replicas."""
        return max(self.engines, key=lambda name: max(count * rate for count, rate in self.engines[name].items()))

    @property
    def points(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Operations and seconds of a group's update with the best engine, both ascending."""
        updates = sorted(self.engines[self.best_engine].items())
        operations = np.array([count * self.flops for count, _ in updates])
        return operations, np.maximum.accumulate([1 / rate for _, rate in updates])

    def update_seconds(self, operations: float, kind: Kind) -> float:
        """The time of a group's update of so many floating point operations."""
        known, seconds = self.points
        if operations < known[0] and kind == "cpu":
            return float(seconds[0] * operations / known[0])
        if operations > known[-1]:
            return float(seconds[-1] * operations / known[-1])
        return float(np.interp(operations, known, seconds))

    def act_seconds(self, policies: Iterable[str]) -> float:
        """The mean time in which these policies act for ten environments; one not measured is like the others."""
        others = mean(self.policy_seconds.values())
        return mean(self.policy_seconds.get(name, others) for name in policies)


class Measurement(_Record):
    """A file of ``benchmarks/throughput.py``: one machine, some algorithms."""

    machine: Machine
    keeps_memory: KeptMemory
    algorithms: dict[str, Speed]


def read_measurement(path: Path) -> Measurement:
    """The measurement in a file.

    Raises:
        UserError: there is none.
    """
    try:
        return Measurement.model_validate_json(read_bytes(path))
    except OSError as error:
        raise UserError(f"cannot read the measurement: {error.strerror}", where=str(path)) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        message = f"{place}: {first['msg']}" if place else first["msg"]
        raise UserError(f"no file of benchmarks/throughput.py: {message}", where=str(path)) from error


def find_measurement(device: str) -> Measurement | None:
    """The shipped measurement of this machine, if there is one.

    Args:
        device: where to train: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """
    here = this_machine(device)
    if here is None:
        return None
    measured = map(read_measurement, sorted(shipped("throughput", "results/throughput").glob("*.json")))
    return next((one for one in measured if one.machine.same(here)), None)


def this_machine(device: str) -> Machine | None:
    """This machine, training on that device; ``None`` where it has no such GPU."""
    cores = len(os.sched_getaffinity(0))
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return Machine(name=_cpu_model(), kind="cpu", cores=cores, torch=torch.__version__)
    index = int(device.partition(":")[2] or 0)
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        return None
    return Machine(name=torch.cuda.get_device_name(index), kind="cuda", cores=cores, torch=torch.__version__)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


@cache
def _steps_per_second() -> dict[str, float]:
    """Steps a second of each task's simulator on one core, by task id."""
    content = json.loads(shipped("tasks_measured.json", "docs/tasks.json").read_text(encoding="utf-8"))
    return {task: float(measured["steps_per_second"]) for task, measured in content["tasks"].items()}


def simulator_speed(task: Task) -> float:
    """Steps a second on one core: as measured, or the median of the task's family, or of all tasks."""
    known = _steps_per_second()
    if task.id in known:
        return known[task.id]
    family = [known[other.id] for other in all_tasks().values() if other.family == task.family and other.id in known]
    return median(family or known.values())


# Operations


class _Operations(TorchDispatchMode):
    """Counts floating point operations of matrix products, as torch's FlopCounterMode does, which follows modules
    besides, and fails where one is called without gradients."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        self._whole: set[Any] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation, and count it."""
        kwargs = kwargs or {}
        count = flop_registry.get(func._overloadpacket)
        if count is None and func not in self._whole:  # in inference mode composed operations come in one piece
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
            self._whole.add(func)
        result = func(*args, **kwargs)
        if count is not None:
            self.total += int(count(*args, **kwargs, out_val=result))
        return result


_COUNTED: dict[tuple[Any, ...], tuple[int, ...]] = {}


def update_flops(algorithm: type[Algorithm[Any]], config: Hyperparameters, task: Task) -> float:
    """Floating point operations of one agent's mean update, extrapolated from two small batches to ``batch_size``.

    What was counted is remembered, for all settings that compute the same: where all updates are of one kind, a real
    number can only change that by being zero.
    """
    settings = config.model_dump(mode="json", exclude={"batch_size"})
    if algorithm.variant is Algorithm.variant:
        settings = _what_counts({name: value for name, value in settings.items() if name != "steps"})
    key = (algorithm, json.dumps(settings, sort_keys=True), task.observation_size, task.action_size)
    if key not in _COUNTED:
        _COUNTED[key] = tuple(count_flops(algorithm, config, task, size) for size in COUNTED)
    (small, large), (less, more) = COUNTED, _COUNTED[key]
    return less + (more - less) * (config.batch_size - small) / (large - small)


def count_flops(algorithm: type[Algorithm[Any]], config: Hyperparameters, task: Task, batch_size: int) -> int:
    """Floating point operations of one agent's mean update, made on the CPU with made-up data.

    One update of every kind is made, and counts by the kind's share of a training.
    """
    config = config.model_copy(update={"batch_size": batch_size})
    data, replica = made_up(task), Replica(0, 20.0)
    try:
        selection = algorithm.select(data, config, replica)
    except UserError:  # what is drawn does not matter
        selection = Selection()
    with one_thread():
        replicas, draws = prepare(algorithm, config, data, [replica], [selection], steps=UNIT)
        agent = algorithm(config, task, replicas)
        total = 0.0
        for count, (step, share) in enumerate(kinds_of_update(agent, config.steps).values()):
            agent.step = step
            batch, noise = draws.at(count)
            with _Operations() as operations:
                agent.update(batch, noise)
            total += share * operations.total
    return int(total)


def _what_counts(settings: Any) -> Any:
    if isinstance(settings, dict):
        return {name: _what_counts(value) for name, value in settings.items()}
    if isinstance(settings, list):
        return [_what_counts(value) for value in settings]
    return settings != 0 if isinstance(settings, float) else settings


def made_up(task: Task) -> Dataset:
    """Trajectories that cost from 0 to 60, three of each, so that every selection finds some.

    They run to the task's step limit, from which the length of segments may follow, or to :data:`LONGEST` steps.
    """
    rng, length = np.random.default_rng(0), min(task.max_episode_steps, LONGEST)
    costs = np.repeat(np.linspace(0, 60, 16), 3 * length).astype(np.float32) / length
    rows = len(costs)
    observations = rng.random((rows, task.observation_size), dtype=np.float32)
    arrays: dict[str, NDArray[Any]] = {
        "observations": observations,
        "next_observations": observations,
        "actions": 2 * rng.random((rows, task.action_size), dtype=np.float32) - 1,
        "rewards": costs.copy(),
        "costs": costs,
        "terminals": np.zeros(rows, dtype=bool),
        "timeouts": np.arange(rows) % length == length - 1,
    }
    return Dataset(task, Path("made-up.hdf5"), "own", arrays)


@contextmanager
def one_thread() -> Iterator[None]:
    """What is small is sooner done by one thread, the more so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# Forecasts


@dataclass(frozen=True)
class Forecast:
    """How long jobs take.

    Args:
        machine: where.
        training_seconds: of all jobs, one after the other on each device, without evaluation beside them.
        evaluation_seconds: of all episodes, shared by the workers, without training beside them.
        wall_seconds: of both together.
        unmeasured: algorithms that nobody measured there; their jobs are left out.
        jobs: how many are not.
        fitted: whether fitted Q-evaluation comes on top.
        devices: that train.
    """

    machine: Machine
    training_seconds: float
    evaluation_seconds: float
    wall_seconds: float
    unmeasured: tuple[str, ...]
    jobs: int
    fitted: bool = False
    devices: int = 1

    def describe(self) -> str:
        """For people, a line or two."""
        where, names = self.machine.describe(), ", ".join(self.unmeasured)
        if not self.jobs:
            return f"No forecast: {names} was not measured on {where}." if names else "Nothing is left to run."
        parts = f"training {duration(self.training_seconds)}, evaluation {duration(self.evaluation_seconds)}"
        several = f", for {self.devices} such GPUs" if self.devices > 1 and self.machine.kind == "cuda" else ""
        lines = [f"Forecast from what was measured on {where}{several}: {duration(self.wall_seconds)} ({parts})."]
        if names:
            lines.append(f"Left out, because not measured there: {names}.")
        if self.fitted:
            lines.append("Fitted Q-evaluation comes on top: how long that takes was not measured.")
        return "\n".join(lines)


def duration(seconds: float) -> str:
    """Hours and minutes: ``3 h 05 min``."""
    if seconds < 60:
        return "less than a minute"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"


def forecast(jobs: Iterable[Job], measured: Measurement, workers: int, devices: int = 1) -> Forecast:
    """How long the jobs take from their first step on the machine of the measurement.

    Args:
        jobs: what is to run.
        measured: on that machine.
        workers: evaluation processes; 0 evaluates in the training processes.
        devices: such GPUs, each with a training process; on a CPU, processes that share its cores.
    """
    machine, count = measured.machine, 0
    groups: dict[str, tuple[float, float]] = {}  # seconds of training and of evaluation, all in one process
    unmeasured: dict[str, None] = {}
    fitted = False
    for job in jobs:
        speed = measured.algorithms.get(job.algorithm)
        if speed is None:
            unmeasured[job.algorithm] = None
            continue
        count += 1
        fitted = fitted or job.cells[0].evaluation.fqe is not None
        before = groups.get(job.group, (0.0, 0.0))
        groups[job.group] = (
            before[0] + training_seconds(job, speed, machine.kind),
            before[1] + evaluation_seconds(job, speed),
        )
    trained, evaluated = [one for one, _ in groups.values()], [other for _, other in groups.values()]
    core_seconds = sum(evaluated)
    if machine.kind == "cpu":
        training = sum(trained)
        evaluation = core_seconds / min(workers or devices, machine.cores)
        wall = max(training + core_seconds / machine.cores, evaluation) if workers else training + evaluation
    else:
        training = over_after(trained, devices)
        evaluation = core_seconds / workers if workers else over_after(evaluated, devices)
        wall = max(training, evaluation) if workers else over_after(map(sum, groups.values()), devices)
    return Forecast(machine, training, evaluation, wall, tuple(unmeasured), count, fitted, devices)


def over_after(seconds: Iterable[float], devices: int) -> float:
    """When the last task is over, if whichever device is free takes the longest one that is left."""
    busy = [0.0] * devices
    for task in sorted(seconds, reverse=True):
        heapq.heapreplace(busy, busy[0] + task)
    return max(busy)


def training_seconds(job: Job, speed: Speed, kind: Kind) -> float:
    """The time of all of a job's updates."""
    config = job.cells[0].config
    algorithm = registry.load(job.algorithm)
    with guard(registry.named(job.algorithm), "update"):
        flops = update_flops(algorithm, config, job.task)
    return config.steps * speed.update_seconds(len(job.cells) * flops, kind)


def evaluation_seconds(job: Job, speed: Speed) -> float:
    """The time of all of a job's episodes on one core."""
    policies = registry.load(job.algorithm).policy_names(job.cells[0].config)
    step = 1 / simulator_speed(job.task) + speed.act_seconds(policies) / CHUNK
    return expected_episodes(job) * job.task.max_episode_steps * step
