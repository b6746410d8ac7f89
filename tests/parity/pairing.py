"""Stacked parameters beside those of plain agents, one agent for each replica: what belongs together, and agrees."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from algorithms.parts.networks import StackedLayerNorm, StackedLinear


@dataclass(frozen=True)
class Pair:
    """One stacked parameter, and what it is in a plain agent.

    Args:
        name: for messages.
        ours: (R, ...), or (R, E, ...) of ensembles.
        theirs: one agent's.
        transposed: a weight (in, out) of ours is one (out, in) of theirs.
        member: of the ensemble.
        outputs: which of the last axis of ours.
    """

    name: str
    ours: Tensor
    theirs: Tensor
    transposed: bool = False
    member: int | None = None
    outputs: slice | None = None

    def mine(self, stacked: Tensor, replica: int) -> Tensor:
        """One replica's part of a tensor shaped like ours, shaped like theirs."""
        part = stacked[replica] if self.member is None else stacked[replica, self.member]
        part = part if self.outputs is None else part[..., self.outputs]
        return part.T if self.transposed else part.reshape(self.theirs.shape)


def pair_layers(
    name: str, ours: nn.Module, *theirs: nn.Module, member: int | None = None, outputs: slice | None = None
) -> list[Pair]:
    """Layers in order: stacked ones of ``ours`` with linear ones and norms of theirs."""
    layers = [layer for layer in ours.modules() if isinstance(layer, StackedLinear | StackedLayerNorm)]
    plain = [layer for one in theirs for layer in one.modules() if isinstance(layer, nn.Linear | nn.LayerNorm)]
    assert len(layers) == len(plain) > 0, name
    pairs = []
    for index, (layer, other) in enumerate(zip(layers, plain, strict=True)):
        linear = isinstance(other, nn.Linear)
        assert linear == isinstance(layer, StackedLinear), name
        pairs += [
            Pair(f"{name} {index} weight", layer.weight, other.weight, linear, member, outputs),
            Pair(f"{name} {index} bias", layer.bias, other.bias, False, member, outputs),
        ]
    return pairs


def pair_ensemble(name: str, ours: nn.Module, theirs: Iterable[nn.Module]) -> list[Pair]:
    """Each member of an ensemble of ours with one of their networks."""
    numbered = enumerate(theirs)
    return [pair for member, net in numbered for pair in pair_layers(f"{name} {member}", ours, net, member=member)]


def copy_weights(pairs: Iterable[Pair], replica: int) -> None:
    """Give theirs one replica's."""
    with torch.no_grad():
        for pair in pairs:
            pair.theirs.copy_(pair.mine(pair.ours, replica))


def optimizers(*owners: Any) -> list[torch.optim.Optimizer]:
    """The optimisers that are attributes of these."""
    return [value for owner in owners for value in vars(owner).values() if isinstance(value, torch.optim.Optimizer)]


def compare(
    pairs: Sequence[Pair],
    replica: int,
    ours: Sequence[Any],
    theirs: Sequence[torch.optim.Optimizer],
    tolerance: float,
    relative: bool = False,
) -> None:
    """All parameters; and of each that is stepped the count of its steps and both moments.

    Args:
        pairs: of one agent.
        replica: which replica it stands beside.
        ours: optimisers, or what else has a ``state`` by parameter, whose counts may be (R,).
        theirs: all of the agent's.
        tolerance: of a number.
        relative: a moment's is relative to the largest where that lies above 1.
    """
    stepped = {id(parameter) for optimizer in theirs for parameter in optimizer.state}
    assert stepped <= {id(pair.theirs) for pair in pairs}, "what is stepped has no partner"
    for pair in pairs:
        where = f"{pair.name} of replica {replica}"
        _close(pair.mine(pair.ours, replica), pair.theirs, tolerance, where)
        mine, other = _kept(ours, pair.ours), _kept(theirs, pair.theirs)
        steps = torch.as_tensor(mine.get("step", 0))
        assert float(steps if steps.ndim == 0 else steps[replica]) == float(other.get("step", 0)), where
        for key in ("exp_avg", "exp_avg_sq"):
            own = pair.mine(mine.get(key, torch.zeros_like(pair.ours)), replica)
            wanted = other.get(key, torch.zeros_like(pair.theirs))
            size = max(1.0, float(wanted.abs().max())) if relative else 1.0
            _close(own, wanted, tolerance * size, f"{key} of {where}")


def _kept(stepping: Iterable[Any], parameter: Tensor) -> dict[str, Any]:
    """What the one optimiser that steps a parameter keeps of it; nothing where none has."""
    (kept,) = [one.state[parameter] for one in stepping if parameter in one.state] or [{}]
    return dict(kept)


def _close(ours: Tensor, theirs: Tensor, tolerance: float, where: str) -> None:
    difference = float((ours - theirs).detach().abs().max())
    assert difference < tolerance, (where, difference)


def largest_change(module: nn.Module, before: Sequence[Tensor]) -> float:
    """How far the parameter that moved most has moved since :func:`copy_parameters`."""
    return max(float((new - old).detach().abs().max()) for new, old in zip(module.parameters(), before, strict=True))


def copy_parameters(module: nn.Module) -> list[Tensor]:
    """What a module's parameters are now."""
    return [parameter.detach().clone() for parameter in module.parameters()]


def make_constant(layer: nn.Module, value: float | Sequence[float]) -> None:
    """Let a linear layer answer this, whatever it sees."""
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.as_tensor(value, dtype=torch.float64))
