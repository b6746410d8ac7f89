"""Denoising diffusion of actions (Ho et al., NeurIPS 2020, arXiv 2006.11239), R replicas in one.

A network predicts the noise in an action, given the state and how far the noise has gone; actions are sampled by taking
it off step by step. The network and the schedule are FISOR's, from a description of its authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from algorithms.parts.dropout import Dropped, thinned
from algorithms.parts.networks import (
    Initialiser,
    StackedLayerNorm,
    StackedLinear,
    glorot_uniform,
    lecun_normal,
)
from harness.algorithm import Hyperparameters
from harness.bounds import Count, Width, require_weights
from harness.tasks import Task

BETA_RANGE = (0.1, 10.0)
"""Rate of noise at the begin and at the end of the variance-preserving process, over a time of 1."""


# The process


def variance_preserving(steps: int) -> Tensor:
    """How much of the variance each step replaces by noise: (T,), float64.

    ``beta_t = 1 - exp(-b / T - (B - b) (2 t - 1) / (2 T^2))`` for t = 1..T and rates from b to B.
    """
    first, last = BETA_RANGE
    t = torch.arange(1, steps + 1, dtype=torch.float64)
    return -torch.expm1(-first / steps - 0.5 * (last - first) * (2 * t - 1) / steps**2)


class Diffusion(nn.Module):
    """The process of T steps: noise put on actions, and taken off again. It has no parameters.

    Times are counted from 0: at time t, t + 1 steps of noise are in an action.
    """

    betas: Tensor
    """How much of the variance is replaced by noise at each step: (T,)."""
    kept: Tensor
    """How much of an action's variance is left after it (alpha bar): (T,)."""

    def __init__(self, steps: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.steps, betas = steps, variance_preserving(steps)
        self.register_buffer("betas", betas.to(dtype), persistent=False)
        self.register_buffer("kept", (1 - betas).cumprod(0).to(dtype), persistent=False)

    def times(self, noise: Tensor) -> Tensor:
        """Standard normal noise as uniform times 0..T-1, the shape kept: min(T - 1, floor(T Phi(z)))."""
        places: Tensor = self.steps * torch.special.ndtr(noise)
        return places.long().clamp(max=self.steps - 1)

    def noised(self, actions: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Actions (..., A) with the noise (..., A) of times (...)."""
        kept = self.kept[times].unsqueeze(-1)
        return kept.sqrt() * actions + (1 - kept).sqrt() * noise

    def sample(self, predict: Callable[[Tensor, int], Tensor], noise: Tensor) -> Tensor:
        """Actions (..., A) in [-1, 1], from T tensors of noise: (T, ..., A).

        Args:
            predict: the noise in actions (..., A) at a time.
        """
        actions = noise[0]
        for count, time in enumerate(reversed(range(self.steps)), 1):
            beta, kept = self.betas[time], self.kept[time]
            actions = (actions - beta / (1 - kept).sqrt() * predict(actions, time)) / (1 - beta).sqrt()
            if time > 0:
                actions = actions + beta.sqrt() * noise[count]
            actions = actions.clamp(-1, 1)
        return actions


# The network


class DenoiserHyperparameters(Hyperparameters):
    """The hyperparameters that are the network's, and the process's; defaults are FISOR's."""

    diffusion_steps: Count = Field(5, description="steps of the diffusion (T)")
    frequencies: Width = Field(32, description="frequencies of the time's Fourier features, which are trained")
    frequency_std: float = Field(0.2, gt=0, description="standard deviation of the frequencies at the start")
    time_size: Width = Field(128, description="width of the two layers that embed the time")
    width: Width = Field(256, description="width of the residual blocks")
    expansion: Count = Field(4, description="a block's hidden layer is so many times as wide")
    blocks: Count = Field(3, description="residual blocks")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout of a block's input")

    @model_validator(mode="after")
    def _affordable_denoiser(self) -> Self:
        require_weights(2 * self.blocks * self.expansion * self.width**2)
        require_weights(self.time_size * max(2 * self.frequencies, self.time_size, self.width))
        return self


class Denoiser(nn.Module):
    """R networks that predict the noise in actions: Fourier features of the time, and residual blocks.

    Weights are Glorot-uniform, the blocks' LeCun-normal, biases 0.
    """

    def __init__(
        self,
        config: DenoiserHyperparameters,
        task: Task,
        generators: Sequence[torch.Generator],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.config, c, replicas = config, config, len(generators)

        def linear(inputs: int, outputs: int, initialise: Initialiser = glorot_uniform) -> StackedLinear:
            return StackedLinear(generators, inputs, outputs, dtype=dtype, initialise=initialise)

        drawn = [torch.randn(1, c.frequencies, generator=generator, dtype=dtype) for generator in generators]
        self.frequencies = nn.Parameter(c.frequency_std * torch.stack(drawn))
        self.time_in, self.time_out = linear(2 * c.frequencies, c.time_size), linear(c.time_size, c.time_size)
        self.input = linear(task.action_size + task.observation_size + c.time_size, c.width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": StackedLayerNorm(replicas, c.width, dtype, epsilon=1e-6),
                    "expand": linear(c.width, c.expansion * c.width, lecun_normal),
                    "contract": linear(c.expansion * c.width, c.width, lecun_normal),
                }
            )
            for _ in range(c.blocks)
        )
        self.output = linear(c.width, task.action_size)

    def forward(
        self, observations: Tensor, actions: Tensor, times: Tensor, keep: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The noise (R, B, A) in actions (R, B, A) at times (R, B), or (R, 1) for the same in all rows.

        Args:
            keep: what dropout keeps, (R, B, width) for each block; ``None``: everything.
        """
        angles = 2 * math.pi * times.to(actions.dtype).unsqueeze(-1) * self.frequencies
        embedded = self.time_out(functional.mish(self.time_in(torch.cat([angles.cos(), angles.sin()], -1))))
        embedded = embedded.expand(-1, actions.shape[1], -1)
        x = self.input(torch.cat([actions, observations, embedded], -1))
        for index, block in enumerate(self.blocks):
            assert isinstance(block, nn.ModuleDict)
            change = thinned(x, None if keep is None else keep.get(f"block{index}"), self.config.dropout)
            x = x + block["contract"](functional.mish(block["expand"](block["norm"](change))))
        noise: Tensor = self.output(functional.mish(x))
        return noise

    def dropped(self, rows: int) -> dict[str, Dropped]:
        """What dropout takes from, for so many rows."""
        return {
            f"block{index}": ((rows, self.config.width), self.config.dropout) for index in range(self.config.blocks)
        }
