"""Layers and networks that carry R replicas in one tensor.

One replica's slice is initialised, and computes, exactly as ``torch.nn.Linear`` would.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.algorithm import Replica

SQUASHED_LOG_STD_RANGE = (-20.0, 2.0)
"""What OSRL clamps the log standard deviation of its tanh-squashed actors to."""


Initialiser = Callable[[Tensor, Tensor, torch.Generator], None]
"""Fills the weight (out, in) and the bias (out,) of one layer."""


def uniform(weight: Tensor, bias: Tensor, generator: torch.Generator) -> None:
    """As ``torch.nn.Linear`` does it."""
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
    bound = 1 / math.sqrt(weight.shape[1])
    nn.init.uniform_(bias, -bound, bound, generator=generator)


def orthogonal(weight: Tensor, bias: Tensor, generator: torch.Generator) -> None:
    """Orthonormal rows, or columns where they are fewer; no bias."""
    nn.init.orthogonal_(weight, generator=generator)
    nn.init.zeros_(bias)


def glorot_uniform(weight: Tensor, bias: Tensor, generator: torch.Generator) -> None:
    """Uniform with variance 2 / (in + out), as Keras and JAX have it; no bias."""
    nn.init.xavier_uniform_(weight, generator=generator)
    nn.init.zeros_(bias)


TRUNCATED_STD = 0.87962566103423978
"""The standard deviation of a standard normal that is cut off at -2 and 2."""


def lecun_normal(weight: Tensor, bias: Tensor, generator: torch.Generator) -> None:
    """Normal, cut off at two standard deviations, with variance 1 / in, as JAX has it; no bias."""
    std = 1 / (math.sqrt(weight.shape[1]) * TRUNCATED_STD)
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)
    nn.init.zeros_(bias)


class StackedLinear(nn.Module):
    """R linear layers side by side, or R ensembles of E: ``y = x W + b`` for each.

    Args:
        generators: one per replica; its weights are drawn from it.
        ensemble: E independent layers per replica that share their input (twin critics), or ``None`` for one.
        initialise: how they are drawn.
    """

    def __init__(
        self,
        generators: Sequence[torch.Generator],
        inputs: int,
        outputs: int,
        ensemble: int | None = None,
        dtype: torch.dtype = torch.float32,
        initialise: Initialiser = uniform,
    ) -> None:
        super().__init__()
        weights, biases = [], []
        for generator in generators:
            for _ in range(ensemble or 1):
                # One layer at a time: of a (R, in, out) tensor torch would take another fan-in.
                weight, bias = torch.empty(outputs, inputs, dtype=dtype), torch.empty(outputs, dtype=dtype)
                initialise(weight, bias, generator)
                weights.append(weight.T)
                biases.append(bias)
        lead = (len(generators),) if ensemble is None else (len(generators), ensemble)
        self.weight = nn.Parameter(torch.stack(weights).reshape(*lead, inputs, outputs).contiguous())
        self.bias = nn.Parameter(torch.stack(biases).reshape(*lead, 1, outputs).contiguous())

    def forward(self, x: Tensor, outputs_wanted: slice = slice(None)) -> Tensor:
        """(R, B, in) -> (R, B, out); with an ensemble (R * E, B, in) -> (R * E, B, out), a replica's one by one.

        Args:
            outputs_wanted: some of the outputs alone.
        """
        weight, bias = (parameter.flatten(0, -3)[..., outputs_wanted] for parameter in (self.weight, self.bias))
        return torch.baddbmm(bias, x, weight)

    def unstacked(self, replica: int) -> nn.Linear:
        """One replica's layer as an ordinary ``torch.nn.Linear`` on the CPU (no ensembles)."""
        weight = self.weight[replica].detach().T.cpu()
        linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
        with torch.no_grad():
            linear.weight.copy_(weight)
            linear.bias.copy_(self.bias[replica, 0].detach().cpu())
        return linear


IN_PLACE = {nn.ReLU: torch.relu_, nn.Tanh: torch.tanh_}
"""The activations that :class:`StackedMLP` takes, and what computes them in place."""


class StackedMLP(nn.Module):
    """R multi-layer perceptrons: sizes ``(in, hidden, ..., out)``, ``activation`` (ReLU or tanh) between the layers."""

    def __init__(
        self,
        generators: Sequence[torch.Generator],
        sizes: Sequence[int],
        ensemble: int | None = None,
        dtype: torch.dtype = torch.float32,
        activation: type[nn.ReLU | nn.Tanh] = nn.ReLU,
        initialise: Initialiser = uniform,
    ) -> None:
        super().__init__()
        self.ensemble, self.activation = ensemble, activation
        self.layers = nn.ModuleList(
            StackedLinear(generators, inputs, outputs, ensemble, dtype, initialise)
            for inputs, outputs in itertools.pairwise(sizes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(R, B, in) -> (R, B, out); with an ensemble (R, B, in) -> (R, E, B, out)."""
        if self.ensemble is not None:
            x = x.unsqueeze(1).expand(-1, self.ensemble, -1, -1).flatten(0, 1)
        for layer in self.layers[:-1]:
            # In place: a layer's backward pass does not need its output, and new memory is what takes the time. Not in
            # a view of it, of which autograd would copy the gradients.
            x = IN_PLACE[self.activation](layer(x))
        y: Tensor = self.layers[-1](x)
        return y if self.ensemble is None else y.unflatten(0, (-1, self.ensemble))

    def unstacked(self, replica: int) -> nn.Sequential:
        """One replica's network, built of ``torch.nn.Linear`` and the activation, on the CPU."""
        modules: list[nn.Module] = []
        for layer in self.layers:
            assert isinstance(layer, StackedLinear)
            modules += [layer.unstacked(replica), self.activation()]
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


class StackedLayerNorm(nn.Module):
    """R layer normalisations over the last of ``size`` features, ``epsilon`` added to the variance."""

    def __init__(self, replicas: int, size: int, dtype: torch.dtype = torch.float32, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(replicas, 1, size, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(replicas, 1, size, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(R, N, size) -> (R, N, size)."""
        return torch.addcmul(self.bias, functional.layer_norm(x, x.shape[-1:], eps=self.epsilon), self.weight)


class StackedEmbedding(nn.Module):
    """R tables of ``count`` vectors each, to be initialised by whoever uses them."""

    def __init__(self, replicas: int, count: int, size: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(replicas, count, size, dtype=dtype))

    def forward(self, indices: Tensor) -> Tensor:
        """(R, N) -> (R, N, size).

        Raises:
            IndexError: an index lies outside of its replica's table. On a GPU a kernel's assertion fails instead.
        """
        replicas, count, _ = self.weight.shape
        first = count * torch.arange(replicas, device=indices.device).unsqueeze(1)
        # In the tables one behind the other, what leaves one's own would be another replica's: it is sent behind all.
        own = (indices >= 0) & (indices < count)
        rows = torch.where(own, indices + first, replicas * count)
        return functional.embedding(rows, self.weight.flatten(0, 1))


Module = TypeVar("Module", bound=nn.Module)
"""The kind of module that comes back as it went in."""


def single(module: Module, replica: int) -> Module:
    """A copy of a stacked module on the CPU that holds one replica alone, its replica axis of size 1."""
    alone = copy.deepcopy(module).cpu().requires_grad_(False)
    for parameter in alone.parameters():
        parameter.data = parameter.data[replica : replica + 1].clone()
    return alone


def frozen(module: Module) -> Module:
    """A copy without gradients: targets, which follow by :func:`algorithms.parts.optimisers.polyak_update`."""
    return copy.deepcopy(module).requires_grad_(False)


def squashed(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """tanh of a Gaussian's sample, and its log-density: (..., out) three times -> (..., out) and (...)."""
    sample = mean + log_std.exp() * noise
    log_density = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    # log(1 - tanh^2), without its cancellation
    log_slope = 2 * (math.log(2) - sample - functional.softplus(-2 * sample))
    return torch.tanh(sample), (log_density - log_slope).sum(-1)


@dataclass(frozen=True)
class Builder:
    """Makes networks of R replicas on one device; calls draw weights one after the other.

    Args:
        generators: one per replica; its weights are drawn from it.
        device: where the networks are.
        dtype: of their parameters.
    """

    generators: Sequence[torch.Generator]
    device: torch.device | str
    dtype: torch.dtype

    @classmethod
    def of(cls, replicas: Sequence[Replica], device: torch.device | str, dtype: torch.dtype) -> Builder:
        """Draws each replica's weights from its own stream."""
        return cls([replica.generator("weights") for replica in replicas], device, dtype)

    def mlp(
        self,
        *sizes: int,
        ensemble: int | None = None,
        activation: type[nn.ReLU | nn.Tanh] = nn.ReLU,
        initialise: Initialiser = uniform,
    ) -> StackedMLP:
        """A perceptron of these sizes, or an ensemble of them, for each replica."""
        made = StackedMLP(self.generators, sizes, ensemble, self.dtype, activation, initialise)
        return made.to(self.device)

    def gaussian(self, *sizes: int, log_std_range: tuple[float, float] = SQUASHED_LOG_STD_RANGE) -> StackedGaussian:
        """A network of these sizes with a mean and a log standard deviation for each replica."""
        return StackedGaussian(self.generators, sizes, log_std_range, self.dtype).to(self.device)
