"""How the updates of a group are run: one by one, replayed from CUDA graphs, or compiled.

``eager`` is what the others are held to. ``graph`` captures an update, optimiser steps and the sums of metrics
included, in a CUDA graph, and replays it: hundreds of small kernels cost the host one launch. ``compile`` fuses an
update with torch.compile, and on a GPU captures what comes of it.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from harness.algorithm import Algorithm
from harness.data.draws import Draws
from harness.errors import UserError
from harness.notes import Note, silent

NAMES = ("auto", "eager", "graph", "compile")
WARM_UP = 3
"""Updates of every variant that run eagerly before it is captured: libraries set themselves up, optimisers make their
state."""

Update = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]]


class Engine:
    """Runs updates one by one, and sums up their metrics on the device; the host waits for nothing.

    Args:
        algorithm: whose updates.
        draws: batches and noise.
        note: is told what the user should know.
    """

    def __init__(self, algorithm: Algorithm[Any], draws: Draws, note: Note = silent) -> None:
        self.algorithm, self.draws, self.note = algorithm, draws, note
        self.name = "eager"
        self.step = 0
        self.sums: dict[str, Tensor] = {}
        """Each metric's sum (R,) since it was last taken."""
        self._update: Update = algorithm.update

    def run(self, count: int) -> None:
        """Make so many updates.

        Raises:
            ValueError: an update's metrics are not one value a replica, or not those of the update before.
            TypeError: they are no tensors of real numbers by name.
        """
        for _ in range(count):
            self._advance()
            self.step += 1

    def take(self) -> dict[str, Tensor]:
        """The metrics' sums since the last time; they begin anew."""
        taken = {name: total.clone() for name, total in self.sums.items()}
        for total in self.sums.values():
            total.zero_()
        return taken

    def _advance(self) -> None:
        self._once(*self.draws.at(self.step))

    def _once(self, batch: Mapping[str, Tensor], noise: Mapping[str, Tensor]) -> None:
        """One update; its metrics are added up."""
        self.algorithm.step = self.step
        metrics = self._update(batch, noise)
        if not self.sums:
            self.sums = _sums(metrics)
        if metrics.keys() != self.sums.keys():
            changed = ", ".join(sorted(metrics.keys() ^ self.sums.keys()))
            raise ValueError(f"an update must give the same metrics every time; at step {self.step} differ {changed}")
        for name, value in metrics.items():
            if value.shape != (self.draws.replicas,):
                raise ValueError(f"the metric {name!r} has shape {tuple(value.shape)}, not one value a replica")
        for name, value in metrics.items():
            self.sums[name] += value.detach()


def _sums(metrics: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Zeros for the sums of the first update's metrics.

    Raises:
        TypeError: these are no metrics.
    """
    if not isinstance(metrics, Mapping):
        raise TypeError(f"update must give metrics by name, not {type(metrics).__name__}")
    for name, value in metrics.items():
        if not isinstance(name, str) or name in ("", "step") or not name.isprintable():
            raise TypeError(f"a metric cannot be called {name!r}")
        if not isinstance(value, Tensor) or value.is_complex() or value.dtype == torch.bool:
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"the metric {name!r} must be a tensor of real numbers, not {kind}")
    return {
        name: torch.zeros_like(value, dtype=torch.promote_types(value.dtype, torch.float32))
        for name, value in metrics.items()
    }


class CompiledEngine(Engine):
    """Runs updates as torch.compile makes them, or eagerly where it cannot."""

    def __init__(self, algorithm: Algorithm[Any], draws: Draws, note: Note = silent) -> None:
        super().__init__(algorithm, draws, note)
        self.name = "compile"
        self._update = compiled(self, note)


class Graph(Protocol):
    """What is captured once can be replayed."""

    def capture(self, body: Callable[[], None], generators: Sequence[torch.Generator]) -> None:
        """Record what ``body`` would do, without doing it; it draws from these generators."""

    def replay(self) -> None:
        """Do it, with the same memory."""


class CudaGraph:
    """A CUDA graph."""

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()

    def capture(self, body: Callable[[], None], generators: Sequence[torch.Generator]) -> None:
        """Record what ``body`` would do."""
        for generator in generators:
            self._graph.register_generator_state(generator)
        stream = torch.cuda.current_stream()
        try:
            # Other threads, which gather data, may go on.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                body()
        finally:
            torch.cuda.set_stream(stream)  # a capture that breaks off leaves its own behind

    def replay(self) -> None:
        """Do it."""
        self._graph.replay()

    @staticmethod
    @contextmanager
    def beside() -> Iterator[None]:
        """A stream of its own, where an update is warmed up before its capture."""
        present, stream = torch.cuda.current_stream(), torch.cuda.Stream()
        stream.wait_stream(present)
        with torch.cuda.stream(stream):
            yield
        present.wait_stream(stream)


class GraphEngine(Engine):
    """Captures every variant of an update after a few that run eagerly, and replays it from then on.

    Where a capture fails, the rest runs eagerly, and the reason is told.
    """

    def __init__(self, algorithm: Algorithm[Any], draws: Draws, note: Note = silent, fuse: bool = False) -> None:
        super().__init__(algorithm, draws, note)
        self.name = "compile" if fuse else "graph"
        if fuse:
            self._update = compiled(self, note)
        self._graphs: dict[Hashable, Graph] = {}
        self._warm: Counter[Hashable] = Counter()
        self._captures = True

    def _advance(self) -> None:
        if not self._captures:
            super()._advance()
            return
        variant = self.algorithm.variant(self.step)
        self.draws.aim(self.step)
        if variant not in self._graphs and self._warm[variant] < WARM_UP:
            if not self._warm:
                make_capturable(self.algorithm)
            self._warm[variant] += 1
            with CudaGraph.beside():
                self._aimed()
            return
        if variant not in self._graphs:
            self._capture(variant)
        if self._captures:
            self._graphs[variant].replay()
        else:
            super()._advance()

    def _aimed(self) -> None:
        self._once(*self.draws.aimed())

    def _capture(self, variant: Hashable) -> None:
        self.draws.settle()
        before = copy.deepcopy(self.algorithm.state_dict())
        graph = CudaGraph()
        try:
            graph.capture(self._aimed, self.algorithm.generators())
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a plugin does that a graph cannot hold
            self.algorithm.load_state_dict(before)
            self._captures, self.name = False, "eager"
            self._graphs.clear()
            self.note(f"its update cannot be captured in a CUDA graph, so it runs eagerly: {brief(error)}")
        else:
            self._graphs[variant] = graph


def compiled(engine: Engine, note: Note) -> Update:
    """The update as torch.compile makes it; when its first call fails, that is told, and it stays as it is."""
    algorithm = engine.algorithm
    fused: Update | None = torch.compile(algorithm.update, dynamic=False)
    tried = False

    def update(batch: Mapping[str, Tensor], noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
        nonlocal fused, tried
        if fused is None:
            return algorithm.update(batch, noise)
        if tried:
            return fused(batch, noise)
        tried = True
        before = copy.deepcopy(algorithm.state_dict())
        try:
            return fused(batch, noise)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of the compiler, or of a plugin that it does not understand
            note(f"its update cannot be compiled, so it runs as it is: {brief(error)}")
            algorithm.load_state_dict(before)
            fused, engine.name = None, "graph" if isinstance(engine, GraphEngine) else "eager"
            return algorithm.update(batch, noise)

    return update


def make_capturable(algorithm: Algorithm[Any]) -> None:
    """Let the optimisers among an algorithm's parts count their steps on the device."""
    warnings.filterwarnings("ignore", message="This instance was constructed with capturable=True")  # warm-ups
    for optimizer in optimizers(algorithm):
        for group in optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = True
            for parameter in group["params"]:
                state = optimizer.state.get(parameter, {})
                if isinstance(state.get("step"), Tensor):
                    state["step"] = state["step"].to(parameter.device)


def optimizers(algorithm: Algorithm[Any]) -> list[torch.optim.Optimizer]:
    """Those among an algorithm's parts; where it keeps its state in another way, they are its own affair."""
    try:
        parts = algorithm.parts()
    except NotImplementedError:
        return []
    return [part for part in parts.values() if isinstance(part, torch.optim.Optimizer)]


def make_engine(name: str, algorithm: Algorithm[Any], draws: Draws, note: Note = silent) -> Engine:
    """The engine of that name.

    Args:
        name: ``eager``, ``graph`` (on a GPU only), ``compile``, or ``auto``: the graph on a GPU.
        algorithm: whose updates it runs.
        draws: their batches and noise.
        note: is told where an engine cannot be had, and why.
    """
    on_gpu = draws.device.type == "cuda"
    if name == "auto":
        name = "graph" if on_gpu else "eager"
    if name == "eager":
        return Engine(algorithm, draws, note)
    if algorithm.synchronises:
        note("its update hands values to the host, so it can be neither captured nor compiled, and runs eagerly")
        return Engine(algorithm, draws, note)
    if name == "compile" and not on_gpu:
        return CompiledEngine(algorithm, draws, note)
    return GraphEngine(algorithm, draws, note, fuse=name == "compile")


def require_engine(name: str, device: str, precision: str = "float32") -> None:
    """Refuse an engine, or a precision of matrix products, that a device does not have.

    Raises:
        UserError: says which to take.
    """
    if precision == "tf32" and device == "cpu":
        raise UserError("--precision tf32 needs a GPU, and this runs on the CPU; leave it out")
    if name == "graph" and device == "cpu":
        raise UserError("--engine graph needs a GPU, and this runs on the CPU; use --engine auto")


def brief(error: Exception) -> str:
    """The first line of what an exception says."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}".rstrip(": ")
