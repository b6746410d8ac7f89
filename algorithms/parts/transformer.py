"""The causal transformer of CDT, R replicas in one.

As OSRL has it (osrl-lib 0.1.0, ``CDT`` in ``osrl/algorithms/cdt.py``, ``TransformerBlock`` in ``osrl/common/net.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from algorithms.parts.attention import attention
from algorithms.parts.dropout import Dropped, thinned
from algorithms.parts.networks import StackedEmbedding, StackedLayerNorm, StackedLinear
from harness.algorithm import Hyperparameters
from harness.bounds import Count, Width, require_weights
from harness.tasks import Task

TOKENS = 4
"""Tokens a step: reward-to-go, cost-to-go, observation, action."""


class TransformerHyperparameters(Hyperparameters):
    """The hyperparameters that are the network's; defaults are OSRL's (``examples/configs/cdt_configs.py``)."""

    sequence_length: int = Field(
        10, ge=1, le=1000, description="steps of a window, and of the context at evaluation (K)"
    )
    embedding_dim: Width = Field(128, description="width of the transformer; a multiple of num_heads")
    num_layers: Count = Field(3, description="transformer blocks")
    num_heads: Count = Field(8, description="attention heads of a block")
    attention_dropout: float = Field(0.1, ge=0, lt=1, description="dropout of attention weights")
    residual_dropout: float = Field(0.1, ge=0, lt=1, description="dropout of what a block adds")
    embedding_dropout: float = Field(0.1, ge=0, lt=1, description="dropout of the embedded tokens")

    @model_validator(mode="after")
    def _affordable(self) -> Self:
        require_weights(12 * self.embedding_dim**2 * self.num_layers)
        return self

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.embedding_dim % self.num_heads:
            raise ValueError(f"embedding_dim {self.embedding_dim} is no multiple of num_heads {self.num_heads}")
        return self


class Transformer(nn.Module):
    """R causal transformers over windows of steps, and their heads."""

    def __init__(
        self, config: TransformerHyperparameters, task: Task, generators: Sequence[torch.Generator], dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.config, replicas, width = config, len(generators), config.embedding_dim
        observation, action = task.observation_size, task.action_size

        def linear(inputs: int, outputs: int) -> StackedLinear:
            return StackedLinear(generators, inputs, outputs, dtype=dtype)

        # Windows that begin at an episode's last steps reach beyond its end.
        times = task.max_episode_steps + config.sequence_length
        self.time = StackedEmbedding(replicas, times, width, dtype)
        self.embeddings = nn.ModuleList([linear(1, width), linear(1, width), linear(observation, width)])
        self.embeddings.append(linear(action, width))
        self.embedding_norm, self.output_norm = (StackedLayerNorm(replicas, width, dtype) for _ in range(2))
        self.blocks = nn.ModuleList(Block(config, generators, dtype) for _ in range(config.num_layers))
        self.mean, self.log_std = linear(width, action), linear(width, action)
        self.cost, self.state = linear(width, 2), linear(width, observation)
        self._initialise(generators)

    def dropped(self, window: Sequence[int]) -> dict[str, Dropped]:
        """What dropout meets, and its rates, for B windows of K steps."""
        config, batch, length = self.config, window[0], window[1] * TOKENS
        tokens, attention = (batch, length, config.embedding_dim), (batch, config.num_heads, length, length)
        wanted: dict[str, Dropped] = {"embedding": (tokens, config.embedding_dropout)}
        for index in range(config.num_layers):
            wanted[f"attention{index}"] = (attention, config.attention_dropout)
            wanted[f"residual{index}"] = wanted[f"mlp{index}"] = (tokens, config.residual_dropout)
        return wanted

    def _initialise(self, generators: Sequence[torch.Generator]) -> None:
        """As OSRL: N(0, 0.02) for layers and table, no bias; the attention's inputs as torch initialises them."""
        for module in self.modules():
            if isinstance(module, StackedLinear):
                nn.init.zeros_(module.bias)
            if isinstance(module, (StackedLinear, StackedEmbedding)):
                for replica, generator in enumerate(generators):
                    nn.init.normal_(module.weight.data[replica], std=0.02, generator=generator)
        for block in self.blocks:
            for replica, generator in enumerate(generators):
                assert isinstance(block, Block)
                nn.init.xavier_uniform_(block.attention_in.weight.data[replica], generator=generator)

    def forward(
        self,
        rewards_to_go: Tensor,
        costs_to_go: Tensor,
        observations: Tensor,
        actions: Tensor,
        time_steps: Tensor,
        keep: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Predictions at every step, for inputs (R, B, K) or (R, B, K, dim).

        Args:
            keep: what dropout keeps, as :meth:`dropped` asks for it; ``None``: everything.

        Returns:
            Mean and log standard deviation of the action (R, B, K, action), scores of the step being free or costly
            (R, B, K, 2), and the next observation (R, B, K, observation).
        """
        batch, steps = time_steps.shape[1:]
        inputs = (rewards_to_go.unsqueeze(-1), costs_to_go.unsqueeze(-1), observations, actions)
        time = self.time(time_steps.flatten(1))
        tokens = [embed(x.flatten(1, 2)) + time for embed, x in zip(self.embeddings, inputs, strict=True)]
        x = self.embedding_norm(torch.stack(tokens, 2).flatten(1, 2))
        x = x.unflatten(1, (batch, steps * TOKENS))
        x = thinned(x, None if keep is None else keep.get("embedding"), self.config.embedding_dropout)
        *blocks, final = self.blocks
        for index, block in enumerate(blocks):
            x = block(x, keep, index)
        x = final(x, keep, len(blocks), last=2)  # the heads read the observation's and the action's token
        state, action = self.output_norm(x.flatten(1, 2)).unflatten(1, (batch * steps, 2)).unbind(2)
        heads = (self.mean(state), self.log_std(state), self.cost(action), self.state(action))
        mean, log_std, cost, following = (head.unflatten(1, (batch, steps)) for head in heads)
        return mean, log_std, cost, following


class Block(nn.Module):
    """R pre-norm transformer blocks: causal attention, then a multi-layer perceptron."""

    def __init__(
        self, config: TransformerHyperparameters, generators: Sequence[torch.Generator], dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.config, width = config, config.embedding_dim
        self.attention_norm, self.mlp_norm = (StackedLayerNorm(len(generators), width, dtype) for _ in range(2))
        self.attention_in = StackedLinear(generators, width, 3 * width, dtype=dtype)
        self.attention_out = StackedLinear(generators, width, width, dtype=dtype)
        self.mlp_in = StackedLinear(generators, width, 4 * width, dtype=dtype)
        self.mlp_out = StackedLinear(generators, 4 * width, width, dtype=dtype)

    def forward(self, x: Tensor, keep: Mapping[str, Tensor] | None, index: int, last: int | None = None) -> Tensor:
        """(R, B, L, width) -> (R, B, L, width), or only the last tokens of every step: (R, B, K * last, width)."""
        rate, width = self.config.residual_dropout, self.config.embedding_dim
        normed = self.attention_norm(x.flatten(1, 2))
        if last is None:
            query, key, value = self.attention_in(normed).unflatten(1, x.shape[1:3]).chunk(3, -1)
        else:
            x, wanted = (tail(tokens, last) for tokens in (x, normed.view_as(x)))
            query = self.attention_in(wanted.flatten(1, 2), slice(width)).view_as(x)
            key, value = self.attention_in(normed, slice(width, None)).unflatten(1, (x.shape[1], -1)).chunk(2, -1)
        attended = self.attention_out(self._attend(query, key, value, keep, index, last).flatten(1, 2)).view_as(x)
        x = added(x, attended, keep, f"residual{index}", rate, last)
        hidden = functional.gelu(self.mlp_in(self.mlp_norm(x.flatten(1, 2))))
        return added(x, self.mlp_out(hidden).view_as(x), keep, f"mlp{index}", rate, last)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        keep: Mapping[str, Tensor] | None,
        index: int,
        last: int | None,
    ) -> Tensor:
        """What every token, or the last ones of every step, takes from those before it: (R, B, tokens, width)."""
        length, rate = key.shape[2], self.config.attention_dropout
        causal = torch.full((length, length), -math.inf, dtype=query.dtype, device=query.device).triu(1)
        kept = None if keep is None or rate == 0 else keep[f"attention{index}"]
        if last is not None:
            causal = tail(causal.unsqueeze(0).unsqueeze(0), last)[0, 0]
            kept = None if kept is None else tail(kept.flatten(1, 2), last).unflatten(1, kept.shape[1:3])
        return attention(query, key, value, causal, self.config.num_heads, kept, rate)


def tail(tokens: Tensor, last: int) -> Tensor:
    """The last tokens of every step: (R, B, K * TOKENS, ...) -> (R, B, K * last, ...)."""
    kept: Tensor = tokens.unflatten(2, (-1, TOKENS))[:, :, :, -last:].flatten(2, 3)
    return kept


def added(
    x: Tensor, change: Tensor, keep: Mapping[str, Tensor] | None, name: str, rate: float, last: int | None
) -> Tensor:
    """``x + dropout(change)`` at a rate, with what is kept given for all tokens."""
    if keep is None or rate == 0:
        return x + change
    kept = keep[name].unflatten(2, (-1, TOKENS))
    kept = kept[..., slice(None) if last is None else slice(-last, None), :].reshape(change.shape)
    return torch.add(x, torch.where(kept, change, 0.0), alpha=1 / (1 - rate))
