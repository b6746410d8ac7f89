"""A trained policy as one file for use elsewhere: ``torch.export`` (.pt2) or ONNX, which need nothing of this project.

The file is a function of observations (n, observation_size) and, where the policy draws random numbers, of standard
normal noise (n, size), so that the same inputs give the same actions. A policy whose action depends on the steps before
is no such function, and is refused.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness import __version__, extras
from harness.algorithm import Policy
from harness.errors import UserError
from harness.policies import TrainedPolicy

ENDINGS = (".pt2", ".onnx")
ONNX = ("onnx", "onnxruntime", "onnxscript")
BATCH, STEPS = 16, 4
"""Random observations at once, and how often, that a file is tried on."""
TOLERANCE = 1e-4
"""How far an action may be from the policy's own: another runtime rounds in another way."""

Inputs = tuple[Tensor, ...]
Actor = Callable[[Inputs], Tensor]


@dataclass(frozen=True)
class Exported:
    """What a file holds.

    Args:
        content: its bytes.
        inputs: shapes by name; a batch's size is ``n``, or 1 where the policy cannot be written for any.
        difference: the largest between its actions and the policy's own, in the trial.
    """

    content: bytes
    inputs: Mapping[str, tuple[str | int, ...]]
    difference: float


def require_ending(path: Path) -> None:
    """Refuse what cannot be written.

    Raises:
        UserError: the path has another ending, or what writes ONNX is not installed.
    """
    if path.suffix not in ENDINGS:
        raise UserError(f"the policy's file must end in {' or '.join(ENDINGS)}: {str(path)!r}")
    absent = [package for package in ONNX if find_spec(package) is None]
    if path.suffix == ".onnx" and absent:
        raise UserError(
            f"ONNX needs {', '.join(absent)}, not installed here: {extras.install('onnx')}. Or write a .pt2"
        )


def export(trained: TrainedPolicy, ending: str, cost_limit: float | None) -> Exported:
    """A policy as a file, tried on random observations.

    Args:
        trained: the policy.
        ending: ``.pt2`` or ``.onnx``.
        cost_limit: that it is to act on, for good, where it acts on the limit that it is told.

    Raises:
        UserError: it is no function of an observation, cannot be traced, or the file acts otherwise.
    """
    policy = trained.policy.eval()
    if not policy.markov:
        raise UserError(
            f"{trained.name} remembers: its action depends on the steps before, not on one observation, so no file "
            "can hold it. In Python, harness.load_policy brings it back"
        )
    limit = trained.told(cost_limit)
    size = trained.cell.definition.observation_size
    with torch.no_grad():
        drawn = _drawn(policy, torch.zeros(2, size), limit)
    sizes = (size, sum(drawn)) if drawn else (size,)
    traced, any_batch = _traced(policy, sizes, drawn, limit, trained.name)
    batch: str | int = "n" if any_batch else 1
    shapes = {name: (batch, size) for name, size in zip(("observations", "noise"), sizes, strict=False)}
    about = {
        "task": trained.cell.definition.id,
        "algorithm": trained.cell.algorithm,
        "policy": trained.name,
        "seed": trained.cell.seed,
        "cell": trained.cell.hash,
        "cost_limit": trained.cell.cost_limit if limit is None else limit,
        "inputs": shapes,
        "outputs": {"actions": (batch, trained.cell.definition.action_size)},
        "lspc-bench": __version__,
    }
    write = {".pt2": _torch_export, ".onnx": _onnx}[ending]
    content, actor = write(traced, list(shapes), about)
    difference = _difference(policy, actor, sizes, drawn, limit, any_batch)
    if not difference <= TOLERANCE:
        raise UserError(
            f"{trained.name} as {ending} acts otherwise than the policy itself, by {difference:g}: it is not written. "
            "It may draw random numbers other than by Policy.noise, or remember"
        )
    return Exported(content, shapes, difference)


class _Function(nn.Module):
    """A policy whose noise is given.

    Args:
        policy: of whose parameters these are; it is not changed.
        drawn: how many numbers an episode it draws for an action, in the order of its draws.
    """

    def __init__(self, policy: Policy, drawn: list[int]) -> None:
        super().__init__()
        self.policy, self.drawn = policy, drawn

    def forward(self, observations: Tensor, noise: Tensor | None = None) -> Tensor:
        """Actions (n, action_size)."""
        parts = iter(()) if noise is None else iter(noise.split(self.drawn, 1))
        with _noise(self.policy, lambda size: next(parts)):
            return self.policy.act(observations)


class _noise:  # noqa: N801 - a context
    """A policy's noise from elsewhere, inside the block."""

    def __init__(self, policy: Policy, source: Callable[[int], Tensor]) -> None:
        self.policy, self.source = policy, source

    def __enter__(self) -> None:
        self.policy.__dict__["noise"] = self.source

    def __exit__(self, *error: object) -> None:
        del self.policy.__dict__["noise"]


def _drawn(policy: Policy, observations: Tensor, limit: float | None) -> list[int]:
    """How many numbers it draws for an action, one count a draw."""
    drawn: list[int] = []

    def counted(size: int) -> Tensor:
        drawn.append(size)
        return torch.zeros(len(observations), size)

    policy.reset(range(len(observations)), limit)
    with _noise(policy, counted):
        policy.act(observations)
    return drawn


def _traced(
    policy: Policy, sizes: tuple[int, ...], drawn: list[int], limit: float | None, name: str
) -> tuple[torch.export.ExportedProgram, bool]:
    """The policy as a program, and whether it is for any number of observations or for one.

    Raises:
        UserError: it is neither.
    """
    function = _Function(policy, drawn)
    for count in (2, 1):  # torch takes a size of 1 for a constant
        policy.reset(range(count), limit)
        inputs = tuple(torch.zeros(count, size) for size in sizes)
        any_batch = {0: torch.export.Dim("n")} if count > 1 else None
        shapes = None if any_batch is None else tuple(any_batch for _ in inputs)
        try:
            with torch.no_grad():
                return torch.export.export(function, inputs, dynamic_shapes=shapes, strict=False), count > 1
        except Exception as error:  # whatever stands in the policy's way: there is no class of its own for it
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
    raise UserError(
        f"{name} cannot be written as a program of torch's operations: {reason} In Python, harness.load_policy brings "
        "it back"
    )


def _torch_export(
    program: torch.export.ExportedProgram, names: list[str], about: Mapping[str, Any]
) -> tuple[bytes, Actor]:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"policy.json": json.dumps(about)})
    content = buffer.getvalue()
    loaded: Any = torch.export.load(io.BytesIO(content)).module()
    return content, lambda inputs: loaded(*inputs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on packages that it would know, too, and on its own future."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _onnx(program: torch.export.ExportedProgram, names: list[str], about: Mapping[str, Any]) -> tuple[bytes, Actor]:
    import onnx
    import onnxruntime

    with _quiet():
        made: Any = torch.onnx.export(
            program, input_names=names, output_names=["actions"], dynamo=True, external_data=False, verbose=False
        )
    model = made.model_proto
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in about.items()})
    content: bytes = model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def act(inputs: Inputs) -> Tensor:
        fed = {name: values.numpy() for name, values in zip(names, inputs, strict=True)}
        return torch.from_numpy(np.asarray(session.run(["actions"], fed)[0]))

    return content, act


@torch.no_grad()
def _difference(
    policy: Policy, actor: Actor, sizes: tuple[int, ...], drawn: list[int], limit: float | None, any_batch: bool
) -> float:
    """The largest between a file's actions and the policy's own, on random observations, noise and outcomes."""
    generator, worst, function = torch.Generator().manual_seed(0), 0.0, _Function(policy, drawn)
    policy.reset(range(BATCH), limit)
    for _ in range(STEPS):
        inputs = tuple(torch.randn(BATCH, size, generator=generator) for size in sizes)
        own = function(*inputs)
        pieces = [inputs] if any_batch else zip(*(values.split(1) for values in inputs), strict=True)
        there = torch.cat([actor(piece) for piece in pieces])
        worst = max(worst, float((there - own).abs().nan_to_num(torch.inf).max()))
        policy.observe(*torch.rand(2, BATCH, generator=generator))
    return worst
