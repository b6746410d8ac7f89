"""Layers that carry R replicas in one tensor, and the per-replica pieces of a loss.

One replica's slice is initialised, and computes, exactly as ``torch.nn.Linear`` would.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

SQUASHED_LOG_STD_RANGE = (-20.0, 2.0)
"""What OSRL clamps the log standard deviation of its tanh-squashed actors to."""


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

    def forward(self, x: Tensor, outputs_wanted: slice = slice(None)) -> Tensor:
        """(R, B, in) -> (R, B, out); with an ensemble (R, E, B, in) -> (R, E, B, out).

        Args:
            outputs_wanted: some of the outputs alone (no ensembles).
        """
        if self.ensemble is None:
            return torch.baddbmm(self.bias[..., outputs_wanted], x, self.weight[..., outputs_wanted])
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


IN_PLACE = {nn.ReLU: torch.relu_, nn.Tanh: torch.tanh_}


class StackedMLP(nn.Module):
    """R multi-layer perceptrons: sizes ``(in, hidden, ..., out)``, ``activation`` (ReLU or tanh) between the layers."""

    def __init__(
        self,
        generators: Sequence[torch.Generator],
        sizes: Sequence[int],
        ensemble: int | None = None,
        dtype: torch.dtype = torch.float32,
        activation: type[nn.ReLU | nn.Tanh] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.ensemble, self.activation = ensemble, activation
        self.layers = nn.ModuleList(
            StackedLinear(generators, inputs, outputs, ensemble, dtype) for inputs, outputs in itertools.pairwise(sizes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(R, B, in) -> (R, B, out); with an ensemble (R, B, in) -> (R, E, B, out)."""
        if self.ensemble is not None:
            x = x.unsqueeze(1).expand(-1, self.ensemble, -1, -1)
        for layer in self.layers[:-1]:
            # In place: a layer's backward pass does not need its output, and new memory is what takes the time.
            x = IN_PLACE[self.activation](layer(x))
        return self.layers[-1](x)  # type: ignore[no-any-return]

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


class StackedVAE(nn.Module):
    """R conditional variational auto-encoders of actions, as OSRL has them (``VAE`` in ``osrl/common/net.py``).

    Args:
        sizes: observation, hidden, latent and action size; two hidden layers each way.
    """

    def __init__(
        self,
        generators: Sequence[torch.Generator],
        sizes: tuple[int, int, int, int],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        observation, hidden, latent, action = sizes
        self.latent_size = latent
        encoder_sizes = (observation + action, hidden, hidden, latent)
        self.encoder = StackedGaussian(generators, encoder_sizes, (-4.0, 15.0), dtype)
        self.decoder = StackedMLP(generators, (observation + latent, hidden, hidden, action), dtype=dtype)

    def encode(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of the latent, (R, B, latent) each."""
        mean, log_std = self.encoder(torch.cat([observations, actions], -1))
        return mean, log_std

    def decode(self, observations: Tensor, latents: Tensor) -> Tensor:
        """Actions before their tanh, (R, B, action)."""
        return self.decoder(torch.cat([observations, latents], -1))  # type: ignore[no-any-return]

    def loss(self, observations: Tensor, actions: Tensor, noise: Tensor, beta: float) -> Tensor:
        """Mean squared reconstruction error plus ``beta`` times the mean KL term: (R,).

        Args:
            noise: (R, B, latent) of the reparameterisation.
        """
        mean, log_std = self.encode(observations, actions)
        reconstruction = torch.tanh(self.decode(observations, mean + log_std.exp() * noise))
        error = (reconstruction - actions).square()
        return per_replica_mean(error) + beta * per_replica_mean(gaussian_kl(mean, log_std))


class StackedLayerNorm(nn.Module):
    """R layer normalisations over the last of ``size`` features."""

    def __init__(self, replicas: int, size: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(replicas, 1, size, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(replicas, 1, size, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(R, N, size) -> (R, N, size)."""
        return torch.addcmul(self.bias, nn.functional.layer_norm(x, x.shape[-1:]), self.weight)


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
        return nn.functional.embedding(rows, self.weight.flatten(0, 1))


Module = TypeVar("Module", bound=nn.Module)


def single(module: Module, replica: int) -> Module:
    """A copy of a stacked module on the CPU that holds one replica alone, its replica axis of size 1."""
    alone = copy.deepcopy(module).cpu().requires_grad_(False)
    for parameter in alone.parameters():
        parameter.data = parameter.data[replica : replica + 1].clone()
    return alone


def joint_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of each replica's gradients (R, ...) together: (R,)."""
    return torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0).sqrt()


def clip_per_replica(gradients: Sequence[Tensor], norm: Tensor, most: float) -> None:
    """Scale each replica's gradients, in place, so that their joint norm (R,) becomes at most ``most``.

    As ``torch.nn.utils.clip_grad_norm_`` does for one replica; a replica's NaN stays its own.
    """
    scale = (most / (norm + 1e-6)).clamp(max=1)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.ndim - 1)))


def gaussian_kl(mean: Tensor, log_std: Tensor) -> Tensor:
    """KL divergence of each N(mean, std) from N(0, 1), elementwise."""
    return -0.5 * (1 + 2 * log_std - mean.square() - (2 * log_std).exp())


def minimise(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Step the optimiser's parameters, and them alone, down the losses (R,), which are summed over replicas.

    Whatever else the losses depend on, critics under an actor, say, gets no gradient and costs none.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss.sum(), parameters), strict=True):
        parameter.grad = gradient
    optimizer.step()


def adam(groups: Iterable[tuple[float, Iterable[nn.Parameter]]]) -> torch.optim.Adam:
    """Adam over (learning rate, parameters) groups. It is elementwise, so one serves all replicas and networks."""
    return torch.optim.Adam([{"params": list(parameters), "lr": lr} for lr, parameters in groups], fused=True)


def polyak_update(targets: Iterable[Tensor], sources: Iterable[Tensor], rate: float) -> None:
    """``target <- (1 - rate) target + rate source`` for all tensors at once, in place."""
    torch._foreach_lerp_(list(targets), [source.detach() for source in sources], rate)


def per_replica_mean(values: Tensor) -> Tensor:
    """The mean over everything but the replica axis: (R, ...) -> (R,)."""
    return values.flatten(1).mean(1)
