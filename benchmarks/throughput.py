"""How many updates a second: our stacked replicas beside the reference code's loop, its DataLoader included.

    python benchmarks/throughput.py --output results/throughput/NAME.json --figure throughput.png    # everything
    python benchmarks/throughput.py bc cpq --replicas 1 9 --seconds 5
    python benchmarks/throughput.py --most-replicas cdt=3 --engines eager compile

The reference of a baseline is OSRL's script loop with its DataLoader of eight workers; that of LSPC, which OSRL does
not have, is the plain transcription of its authors' step in tests/parity/lspc_reference.py, fed in the same way. "Step
alone" is the same without loading data: one agent, plainly written. CAPS, CCAC, FISOR and TraC have that alone, by
their transcriptions in tests/parity, and CCAC and TraC beside it the "authors' step", where the environment names a
clone of their code (benchmarks/plain.py). Of CAPS it is the backbone iql; of methods in two phases the dearer one.

Every contender has a process of its own, because the memory setting with which lspc-bench trains on a CPU
(harness/memory.py) holds for a whole process: the reference runs as shipped, without it, unless
``--reference-keeps-memory`` is given. The contenders of an algorithm take turns, one at a time, and the median of their
turns counts. The data is made up, with the sizes of AntRun (33 observations, 8 actions), the settings are those
published. "agents/s" is updates a second times replicas; the ratio is that of agents/s to the reference's loop, which
trains one agent, or where there is none to the authors' step, or else to the step alone.

The file that ``--output`` writes is what ``lspc-bench run --dry-run`` forecasts from (harness/forecast.py). One that is
there already is added to, algorithm by algorithm, if it is of the same machine.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plain import PHASES, authors_step, has_authors_code, transcribed

from algorithms.osrl.models import sequence_dataset, silence
from harness import registry
from harness.algorithm import Policy, Replica
from harness.data.dataset import KEYS, Dataset
from harness.data.draws import Draws, prepare
from harness.engine import make_engine
from harness.errors import UserError
from harness.evaluation import CHUNK
from harness.files import replacing
from harness.forecast import KeptMemory, Measurement, Speed, read_measurement, this_machine, update_flops
from harness.memory import keep_freed_memory
from harness.report.tables import markdown_table
from harness.tasks import find_task

TASK = find_task("AntRun")
PLAIN = ("caps", "ccac", "fisor", "trac")
"""Those that OSRL does not have, nor its dataset what they train on."""
ALGORITHMS = ("bc", "bcq-lag", "bear-lag", "cpq", "coptidice", "cdt", "lspc", *PLAIN)
LOOP, ALONE, AUTHORS = "loop", "step alone", "authors' step"
LOADER_WORKERS = 8  # OSRL's num_workers
PAUSE = 2.0  # seconds in which the loader's workers fill their queue, and everyone comes to rest
LIMIT = 10.0
Run = Callable[[int], Any]
"""Makes so many updates."""


@dataclass(frozen=True)
class Contender:
    """What takes turns: the reference's ``loop`` or a step of it, or one of our engines with so many replicas."""

    algorithm: str
    kind: str
    replicas: int
    batch_size: int | None
    device: str
    keeps_memory: bool

    @property
    def ours(self) -> bool:
        return self.kind not in (LOOP, ALONE, AUTHORS)

    @property
    def label(self) -> str:
        return f"{self.kind} {self.replicas}" if self.ours else self.kind


# What a contender runs


def made_up_data(trajectories: int = 200) -> Dataset:
    """Random transitions; costs from none to some, so that every part of every algorithm has something to do."""
    rng = np.random.default_rng(0)
    length = TASK.max_episode_steps
    rows = trajectories * length
    boldness = np.repeat(rng.uniform(0, 0.4, trajectories), length)
    arrays = {
        "observations": rng.normal(size=(rows, TASK.observation_size)).astype(np.float32),
        "next_observations": rng.normal(size=(rows, TASK.observation_size)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, TASK.action_size)).astype(np.float32),
        "rewards": (5 * boldness + rng.uniform(0, 1, rows)).astype(np.float32),
        "costs": (rng.uniform(size=rows) < boldness).astype(np.float32),
        "terminals": np.zeros(rows, dtype=bool),
        "timeouts": np.arange(rows) % length == length - 1,
    }
    return Dataset(TASK, Path("made-up.hdf5"), "dsrl", arrays)


def configure(name: str, batch_size: int | None) -> Any:
    """The published settings, perhaps with another batch size, in the dearer of two phases."""
    kind = registry.load(name)
    changed = {} if batch_size is None else {"batch_size": batch_size}
    return kind.Hyperparameters.model_validate({**kind.published(TASK), **changed, **PHASES.get(name, {})})


def ours(contender: Contender, data: Dataset, config: Any) -> Run:
    """Our engine, as training has it.

    Raises:
        UserError: this algorithm ends up with another engine.
    """
    kind, notes = registry.load(contender.algorithm), []
    replicas, draws = drawn(contender, data, config)
    algorithm = kind(config, TASK, replicas, contender.device)
    engine = make_engine(contender.kind, algorithm, draws, notes.append)

    def run(count: int) -> None:
        engine.run(count)
        if engine.name != contender.kind:
            raise UserError("; ".join(notes) or f"runs as {engine.name}")

    return run


def drawn(contender: Contender, data: Dataset, config: Any) -> tuple[list[Replica], Draws]:
    """The contender's replicas, and what they train on."""
    kind = registry.load(contender.algorithm)
    replicas = [Replica(seed, LIMIT) for seed in range(contender.replicas)]
    selections = [kind.select(data, config, one) for one in replicas]
    return prepare(kind, config, data, replicas, selections, contender.device)


def loaded_batches(name: str, data: Dataset, config: Any, device: str) -> Iterator[list[Any]]:
    """OSRL's dataset behind its DataLoader, as its scripts have them."""
    from osrl.common.dataset import TransitionDataset
    from torch.utils.data import DataLoader

    if name == "cdt":
        dataset = sequence_dataset(data, config, 0)
    else:
        scale = getattr(config, "reward_scale", 1.0)
        arrays = {key: data.arrays[key].copy() for key in KEYS}
        dataset = TransitionDataset(arrays, reward_scale=scale, state_init=name == "coptidice")
    loader = DataLoader(dataset, batch_size=config.batch_size, pin_memory=device != "cpu", num_workers=LOADER_WORKERS)
    for batch in loader:
        yield [column.to(device) for column in batch]


def reference(contender: Contender, data: Dataset, config: Any) -> Run:
    """One agent of the reference code: a pass of its loop, or its step on a batch that is already there."""
    name, device = contender.algorithm, contender.device
    if name in PLAIN:
        kept = {column: values[0] for column, values in drawn(contender, data, config)[1].at(0)[0].items()}
        plain = (authors_step if contender.kind == AUTHORS else transcribed)(name, config, TASK, kept, device)
        return lambda count: [plain(kept) for _ in range(count)]
    step = lspc_step(config, device) if name == "lspc" else osrl_step(contender, data, config)
    batches = loaded_batches(name, data, config, device)
    if contender.kind == LOOP:
        return lambda count: [step(next(batches)) for _ in range(count)]
    first = next(batches)
    batches.close()  # and its workers with it
    return lambda count: [step(first) for _ in range(count)]


def osrl_step(contender: Contender, data: Dataset, config: Any) -> Callable[[list[Any]], None]:
    """OSRL's ``train_one_step``."""
    name, kind = contender.algorithm, registry.load(f"osrl-{contender.algorithm}")
    chosen = kind.select(data, config, Replica(0, LIMIT))
    adapter: Any = kind(config, TASK, [replace(Replica(0, LIMIT), statistics=chosen.statistics)], contender.device)
    train = adapter.trainer.train_one_step

    def step(batch: list[Any]) -> None:
        if name == "bc":
            train(batch[0], batch[2])
        elif name == "coptidice":
            train(batch)
        else:
            train(*batch)

    return step


def lspc_step(config: Any, device: str) -> Callable[[list[Any]], None]:
    """The plain transcription's update, of OSRL's batches."""
    columns = ("observations", "next_observations", "actions", "rewards", "costs", "done")
    update = transcribed("lspc", config, TASK, {}, device)
    return lambda batch: update(dict(zip(columns, batch, strict=True)))


# Turns


def compete(contender: Contender, seconds: float, pipe: Connection) -> None:
    """The life of a contender's process: it warms up, says so, and takes a turn whenever it is told to.

    It answers with updates a second, or with what went wrong, and then ends.
    """
    try:
        if contender.keeps_memory:
            keep_freed_memory()
        data = made_up_data()
        osrls = not contender.ours and contender.algorithm not in (*PLAIN, "lspc")
        name = f"osrl-{contender.algorithm}" if osrls else contender.algorithm
        config = configure(name, contender.batch_size)
        warnings.filterwarnings("ignore", message="This DataLoader will create 8 worker processes")
        with silence():
            run = (ours if contender.ours else reference)(contender, data, config)
        rate(run, seconds / 4, contender.device)
        pipe.send(None)
        while pipe.recv():
            pipe.send(rate(run, seconds, contender.device))
    except EOFError:  # nobody is listening any more
        return
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")


def rate(run: Run, seconds: float, device: str) -> float:
    """Updates a second, in ever larger chunks of up to a twentieth of the time, until it has passed."""
    begun, updates, chunk, passed = time.perf_counter(), 0, 1, 0.0
    while updates == 0 or passed < seconds:
        run(chunk)
        if device != "cpu":
            torch.cuda.synchronize()
        before, passed = passed, time.perf_counter() - begun
        updates += chunk
        if passed - before < seconds / 40:
            chunk *= 2
    if device != "cpu":
        torch.cuda.empty_cache()  # others have their turns on the same GPU
    return updates / passed


@contextmanager
def process(target: Callable[..., None], *arguments: Any) -> Iterator[Connection]:
    """A fresh process that talks through a pipe, its last argument."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=target, args=(*arguments, there))
    child.start()
    there.close()
    try:
        yield here
    finally:
        here.close()
        child.join(10)
        if child.is_alive():
            child.terminate()


def answer(pipe: Connection) -> Any:
    """What a process says; a string, too, where it ended without a word."""
    try:
        return pipe.recv()
    except EOFError:
        return "its process was ended"


def compete_in_turns(contenders: Sequence[Contender], rounds: int, seconds: float) -> dict[Contender, list[float]]:
    """Updates a second of every turn of every contender; those that fail are told of and left out."""
    with ExitStack() as stack:
        pipes = {}
        for contender in contenders:  # one after the other, so that none warms up while another does
            pipe = stack.enter_context(process(compete, contender, seconds))
            failure = answer(pipe)
            if failure is None:
                pipes[contender] = pipe
            else:
                tell(contender, failure)
        turns: dict[Contender, list[float]] = {contender: [] for contender in pipes}
        for _ in range(rounds):
            for contender, pipe in list(pipes.items()):
                time.sleep(PAUSE)
                pipe.send(True)
                result = answer(pipe)
                if isinstance(result, str):
                    tell(contender, result)
                    del pipes[contender], turns[contender]
                else:
                    turns[contender].append(result)
        return turns


def tell(contender: Contender, failure: str) -> None:
    """Say who is left out."""
    print(f"{contender.algorithm}, {contender.label}: left out: {failure}", file=sys.stderr, flush=True)


# Policies


def time_policies(name: str, batch_size: int | None, pipe: Connection) -> None:
    """Seconds in which each policy acts for :data:`CHUNK` environments, with one thread, by name."""
    torch.set_num_threads(1)
    kind, config, data = registry.load(name), configure(name, batch_size), made_up_data()
    replica = Replica(0, LIMIT)
    replica = replace(replica, statistics=kind.select(data, config, replica).statistics)
    pipe.send({called: act_seconds(policy) for called, policy in kind(config, TASK, [replica]).policies(0).items()})


def act_seconds(policy: Policy) -> float:
    """The median over an episode's steps, the first few left out."""
    seconds = []
    policy.eval()
    with torch.inference_mode():
        policy.reset(range(CHUNK), 20.0)
        for _ in range(TASK.max_episode_steps):
            observations = torch.randn(CHUNK, TASK.observation_size)
            begun = time.perf_counter()
            policy.act(observations)
            seconds.append(time.perf_counter() - begun)
            policy.observe(torch.ones(CHUNK), torch.zeros(CHUNK))
    return statistics.median(seconds[20:])


# Results


def measure(name: str, counts: Sequence[int], arguments: argparse.Namespace) -> Speed:
    """Every contender of one algorithm, in turns.

    Raises:
        UserError: none of ours got through.
    """
    shared = (arguments.batch_size, arguments.device)
    kept = arguments.device == "cpu"
    references = [ALONE] if name in PLAIN else [LOOP, ALONE]
    references += [AUTHORS] if has_authors_code(name) else []
    contenders = [Contender(name, kind, 1, *shared, kept and arguments.reference_keeps_memory) for kind in references]
    contenders += [Contender(name, engine, count, *shared, kept) for engine in arguments.engines for count in counts]
    turns = compete_in_turns(contenders, arguments.rounds, arguments.seconds)
    updates = {contender: statistics.median(values) for contender, values in turns.items()}
    engines: dict[str, dict[int, float]] = {}
    for contender, value in updates.items():
        if contender.ours:
            engines.setdefault(contender.kind, {})[contender.replicas] = value
    if not engines:
        raise UserError(f"{name}: no engine got through")
    with process(time_policies, name, arguments.batch_size) as pipe:
        policy_seconds = answer(pipe)
    if isinstance(policy_seconds, str):
        raise UserError(f"{name}: its policies cannot be timed: {policy_seconds}")
    config = configure(name, arguments.batch_size)
    return Speed(
        batch_size=config.batch_size,
        flops=update_flops(registry.load(name), config, TASK),
        policy_seconds=policy_seconds,
        reference={contender.kind: value for contender, value in updates.items() if not contender.ours},
        engines=engines,
        turns={contender.label: values for contender, values in turns.items()},
    )


def ratio(speed: Speed, engine: str, count: int) -> float | None:
    """Agents' updates a second against the reference's loop, or else the authors' step, or else the step alone."""
    found = (speed.reference[kind] for kind in (LOOP, AUTHORS, ALONE) if kind in speed.reference)
    theirs, updates = next(found, None), speed.engines.get(engine, {}).get(count)
    return None if theirs is None or updates is None else count * updates / theirs


def table(algorithms: dict[str, Speed]) -> str:
    """A row for every algorithm and engine."""
    counts = all_counts(algorithms)
    header = ["algorithm", "batch", "reference's loop", "its step alone", "authors' step", "engine"]
    for count in counts:
        header += [f"{count}: agents/s", "ratio"]
    rows = []
    for name, speed in algorithms.items():
        plain = [short(speed.reference.get(kind)) for kind in (LOOP, ALONE, AUTHORS)]
        for engine, updates in speed.engines.items():
            row = [name, str(speed.batch_size), *plain, engine]
            for count in counts:
                agents = count * updates[count] if count in updates else None
                row += [short(agents), short(ratio(speed, engine, count))]
            rows.append(row)
    return markdown_table(header, rows)


def short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def all_counts(algorithms: dict[str, Speed]) -> list[int]:
    return sorted({count for speed in algorithms.values() for updates in speed.engines.values() for count in updates})


def draw(measured: Measurement, path: Path) -> None:
    """Agents' updates a second against replicas, a panel for each algorithm; the file's ending says which kind."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    columns = min(4, len(measured.algorithms))
    rows = math.ceil(len(measured.algorithms) / columns)
    picture = Figure(figsize=(3.4 * columns, 2.8 * rows + 0.4), layout="constrained")
    panels = picture.subplots(rows, columns, squeeze=False).flat
    counts = all_counts(measured.algorithms)
    for panel, (name, speed) in zip(panels, measured.algorithms.items(), strict=False):
        for engine, updates in speed.engines.items():
            panel.plot(list(updates), [count * rate for count, rate in updates.items()], marker="o", label=engine)
        for (kind, updates_a_second), style in zip(speed.reference.items(), ("--", ":", "-."), strict=False):
            panel.axhline(updates_a_second, color="black", linestyle=style, linewidth=1, label=f"reference's {kind}")
        panel.set(title=f"{name}, batch {speed.batch_size}", xscale="log", yscale="log")
        panel.set_xticks(counts, [str(count) for count in counts])
        panel.xaxis.set_minor_locator(NullLocator())
    for panel in list(picture.axes)[len(measured.algorithms) :]:
        panel.remove()
    picture.axes[0].legend(fontsize="small")
    picture.supxlabel("replicas")
    picture.supylabel("agents/s")
    picture.suptitle(f"{measured.machine.describe()}, torch {measured.machine.torch}", fontsize="medium")
    picture.savefig(path, dpi=120)


def known_before(path: Path | None, empty: Measurement) -> Measurement:
    """What a file holds already, or nothing.

    Raises:
        UserError: it is of another machine, or was measured in another way.
    """
    if path is None or not path.exists():
        return empty
    known = read_measurement(path)
    if (known.machine, known.keeps_memory) != (empty.machine, empty.keeps_memory):
        here, there = (f"{one.machine}, {one.keeps_memory}" for one in (empty, known))
        raise UserError(f"it was measured elsewhere or otherwise: {there}; now: {here}. Name another file", str(path))
    return known


def machine(device: str) -> str:
    """The machine in a line."""
    here = this_machine("cpu")
    assert here is not None
    gpu = f", {torch.cuda.get_device_name()}" if device != "cpu" else ""
    return f"{here.name}, {torch.get_num_threads()} threads{gpu}"


def limits(pairs: Sequence[str], parser: argparse.ArgumentParser) -> dict[str, int]:
    """NAME=N as a mapping."""
    most = {}
    for pair in pairs:
        name, _, count = pair.partition("=")
        if name not in ALGORITHMS or not count.isdecimal() or int(count) < 1:
            parser.error(
                f"--most-replicas wants NAME=N with N from 1 and NAME of {', '.join(ALGORITHMS)}, not {pair!r}"
            )
        most[name] = int(count)
    return most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("algorithms", nargs="*", default=[], help=f"of {', '.join(ALGORITHMS)}; default: all")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 3, 9, 27])
    parser.add_argument("--engines", nargs="+", choices=("eager", "graph", "compile"), help="default: without compile")
    parser.add_argument("--most-replicas", action="append", default=[], metavar="NAME=N", help="of an algorithm")
    parser.add_argument("--batch-size", type=int, default=None, help="default: as published")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--reference-keeps-memory", action="store_true", help="give the reference our memory setting")
    parser.add_argument(
        "--output", type=Path, default=None, metavar="FILE.json", help="where the figures go, or are added"
    )
    parser.add_argument("--figure", type=Path, default=None, metavar="FILE", help="a picture, .png or .svg")
    arguments = parser.parse_args()
    unknown = set(arguments.algorithms) - set(ALGORITHMS)
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))} here; choose of {', '.join(ALGORITHMS)}")
    most = limits(arguments.most_replicas, parser)
    arguments.engines = arguments.engines or (["eager"] if arguments.device == "cpu" else ["eager", "graph"])
    on_cpu, here = arguments.device == "cpu", this_machine(arguments.device)
    if here is None or ("graph" in arguments.engines and on_cpu):
        parser.error("there is no GPU" if here is None else "the engine graph needs a GPU")
    kept = KeptMemory(ours=on_cpu, reference=on_cpu and arguments.reference_keeps_memory)
    try:
        measured = known_before(arguments.output, Measurement(machine=here, keeps_memory=kept, algorithms={}))
        for name in arguments.algorithms or ALGORITHMS:
            counts = [count for count in arguments.replicas if count <= most.get(name, count)]
            speed = measure(name, counts, arguments)
            print(f"{table({name: speed})}\n", flush=True)
            measured = measured.model_copy(update={"algorithms": {**measured.algorithms, name: speed}})
            if arguments.output is not None:
                save(measured, arguments.output)
    except UserError as error:
        sys.exit(f"throughput.py: {error}")
    print(f"{machine(arguments.device)}; torch {torch.__version__}\n\n{table(measured.algorithms)}")
    if arguments.figure is not None:
        draw(measured, arguments.figure)


def save(measured: Measurement, path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text(measured.model_dump_json(indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
