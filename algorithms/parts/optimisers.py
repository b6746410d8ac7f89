"""Steps of all replicas at once: Adam, clipping, targets that follow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


def minimise(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Step the optimiser's parameters, and them alone, down the losses (R,), which are summed over replicas.

    Whatever else the losses depend on, critics under an actor, say, gets no gradient and costs none.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss.sum(), parameters), strict=True):
        parameter.grad = gradient
    optimizer.step()


def adam(groups: Iterable[tuple[float | Tensor, Iterable[nn.Parameter]]]) -> torch.optim.Adam:
    """Adam over (learning rate, parameters) groups. It is elementwise, so one serves all replicas and networks."""
    return torch.optim.Adam([{"params": list(parameters), "lr": lr} for lr, parameters in groups], fused=True)


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


def polyak_update(targets: Iterable[Tensor], sources: Iterable[Tensor], rate: float) -> None:
    """``target <- (1 - rate) target + rate source`` for all tensors at once, in place."""
    torch._foreach_lerp_(list(targets), [source.detach() for source in sources], rate)
