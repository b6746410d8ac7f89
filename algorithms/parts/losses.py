"""Pieces of losses, per replica."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_where(chosen: Tensor, values: Tensor) -> Tensor:
    """The mean over the chosen of values, both (R, B): (R,), 0 where none is chosen."""
    return torch.where(chosen, values, 0).sum(1) / chosen.sum(1).clamp(min=1)


def per_replica_mean(values: Tensor) -> Tensor:
    """The mean over everything but the replica axis: (R, ...) -> (R,)."""
    return values.flatten(1).mean(1)


def gaussian_kl(mean: Tensor, log_std: Tensor) -> Tensor:
    """KL divergence of each N(mean, std) from N(0, 1), elementwise."""
    return -0.5 * (1 + 2 * log_std - mean.square() - (2 * log_std).exp())


def expectile_loss(difference: Tensor, expectile: float) -> Tensor:
    """Batch mean of |tau - 1(u < 0)| u^2 for differences u (R, B): (R,)."""
    weight = torch.abs(expectile - (difference < 0).to(difference.dtype))
    return (weight * difference.square()).mean(1)
