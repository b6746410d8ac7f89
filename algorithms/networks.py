"""Layers that carry R replicas in one tensor, and the per-replica pieces of a loss.

One replica's slice is initialised, and computes, exactly as ``torch.nn.Linear`` would.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


class StackedLinear(nn.Module):
    """R linear layers side by side, or R ensembles of E: ``y = x W + b`` for each.

    Args:
        generators: one per replica; its weights are drawn from it as ``torch.nn.Linear`` draws its own.
        ensemble: E independent layers per replica that share their input (twin critics), or ``None`` for one.
    """

    def __init__(
        self,
        generators: Sequence[torch.Generator],
        inputs: int,
        outputs: int,
        ensemble: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.ensemble = ensemble
        weights, biases = [], []
        for generator in generators:
            for _ in range(ensemble or 1):
                # The fan-in must be that of one layer: kaiming_uniform_ on a (R, in, out) tensor would take another.
                weight = torch.empty(outputs, inputs, dtype=dtype)
                nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
                bias = torch.empty(outputs, dtype=dtype)
                bound = 1 / math.sqrt(inputs)
                nn.init.uniform_(bias, -bound, bound, generator=generator)
                weights.append(weight.T)
                biases.append(bias)
        lead = (len(generators),) if ensemble is None else (len(generators), ensemble)
        self.weight = nn.Parameter(torch.stack(weights).reshape(*lead, inputs, outputs).contiguous())
        self.bias = nn.Parameter(torch.stack(biases).reshape(*lead, 1, outputs).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """(R, B, in) -> (R, B, out); with an ensemble (R, E, B, in) -> (R, E, B, out)."""
        if self.ensemble is None:
            return torch.baddbmm(self.bias, x, self.weight)
        replicas, ensemble, batch, inputs = x.shape
        outputs = self.weight.shape[-1]
        y = torch.baddbmm(
            self.bias.reshape(replicas * ensemble, 1, outputs),
            x.reshape(replicas * ensemble, batch, inputs),
            self.weight.reshape(replicas * ensemble, inputs, outputs),
        )
        return y.reshape(replicas, ensemble, batch, outputs)

    def unstacked(self, replica: int) -> nn.Linear:
        """One replica's layer as an ordinary ``torch.nn.Linear`` on the CPU (no ensembles)."""
        weight = self.weight[replica].detach().T.cpu()
        linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
        with torch.no_grad():
            linear.weight.copy_(weight)
            linear.bias.copy_(self.bias[replica, 0].detach().cpu())
        return linear


class StackedMLP(nn.Module):
    """R multi-layer perceptrons with ReLU between the layers: sizes ``(in, hidden, ..., out)``."""

    def __init__(
        self,
        generators: Sequence[torch.Generator],
        sizes: Sequence[int],
        ensemble: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.ensemble = ensemble
        self.layers = nn.ModuleList(
            StackedLinear(generators, inputs, outputs, ensemble, dtype) for inputs, outputs in itertools.pairwise(sizes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(R, B, in) -> (R, B, out); with an ensemble (R, B, in) -> (R, E, B, out)."""
        if self.ensemble is not None:
            x = x.unsqueeze(1).expand(-1, self.ensemble, -1, -1)
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)  # type: ignore[no-any-return]

    def unstacked(self, replica: int) -> nn.Sequential:
        """One replica's network, built of ``torch.nn.Linear`` and ``torch.nn.ReLU``, on the CPU."""
        modules: list[nn.Module] = []
        for layer in self.layers:
            assert isinstance(layer, StackedLinear)
            modules += [layer.unstacked(replica), nn.ReLU()]
        return nn.Sequential(*modules[:-1])


class StackedGaussian(nn.Module):
    """R networks with two linear heads, mean and clamped log standard deviation.

    Args:
        sizes: ``(in, hidden, ..., out)``; the heads are one linear layer each on the last hidden layer.
        log_std_range: what the log standard deviation is clamped to.
    """

    def __init__(
        self,
        generators: Sequence[torch.Generator],
        sizes: Sequence[int],
        log_std_range: tuple[float, float],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.trunk = StackedMLP(generators, sizes[:-1], dtype=dtype)
        self.mean = StackedLinear(generators, sizes[-2], sizes[-1], dtype=dtype)
        self.log_std = StackedLinear(generators, sizes[-2], sizes[-1], dtype=dtype)
        self.log_std_range = log_std_range

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(R, B, in) -> mean (R, B, out) and log standard deviation (R, B, out)."""
        hidden = torch.relu(self.trunk(x))
        return self.mean(hidden), self.log_std(hidden).clamp(*self.log_std_range)

    def unstacked(self, replica: int) -> Gaussian:
        """One replica's network on the CPU."""
        return Gaussian(
            self.trunk.unstacked(replica),
            self.mean.unstacked(replica),
            self.log_std.unstacked(replica),
            self.log_std_range,
        )


class Gaussian(nn.Module):
    """One replica of :class:`StackedGaussian`."""

    def __init__(
        self, trunk: nn.Sequential, mean: nn.Linear, log_std: nn.Linear, log_std_range: tuple[float, float]
    ) -> None:
        super().__init__()
        self.trunk, self.mean, self.log_std, self.log_std_range = trunk, mean, log_std, log_std_range

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, in) -> mean (n, out) and log standard deviation (n, out)."""
        hidden = torch.relu(self.trunk(x))
        return self.mean(hidden), self.log_std(hidden).clamp(*self.log_std_range)


def polyak_update(targets: Iterable[Tensor], sources: Iterable[Tensor], rate: float) -> None:
    """``target <- (1 - rate) target + rate source`` for all tensors at once, in place."""
    torch._foreach_lerp_(list(targets), [source.detach() for source in sources], rate)


def per_replica_mean(values: Tensor) -> Tensor:
    """The mean over everything but the replica axis: (R, ...) -> (R,)."""
    return values.flatten(1).mean(1)
