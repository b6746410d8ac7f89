"""The causal transformer of CDT, R replicas in one, and its dropout.

As OSRL has it (osrl-lib 0.1.0, ``CDT`` in ``osrl/algorithms/cdt.py``, ``TransformerBlock`` in ``osrl/common/net.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from algorithms.networks import StackedEmbedding, StackedLayerNorm, StackedLinear
from harness.algorithm import Hyperparameters, Replica
from harness.tasks import Task

TOKENS = 4
"""Tokens a step: reward-to-go, cost-to-go, observation, action."""


class TransformerHyperparameters(Hyperparameters):
    """The hyperparameters that are the network's; defaults are OSRL's (``examples/configs/cdt_configs.py``)."""

    sequence_length: int = Field(10, ge=1, description="steps of a window, and of the context at evaluation (K)")
    embedding_dim: int = Field(128, ge=1, description="width of the transformer; a multiple of num_heads")
    num_layers: int = Field(3, ge=1, description="transformer blocks")
    num_heads: int = Field(8, ge=1, description="attention heads of a block")
    attention_dropout: float = Field(0.1, ge=0, lt=1, description="dropout of attention weights")
    residual_dropout: float = Field(0.1, ge=0, lt=1, description="dropout of what a block adds")
    embedding_dropout: float = Field(0.1, ge=0, lt=1, description="dropout of the embedded tokens")

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
            keep: what dropout keeps, see :class:`DropoutStreams`; ``None``: everything.

        Returns:
            Mean and log standard deviation of the action (R, B, K, action), scores of the step being free or costly
            (R, B, K, 2), and the next observation (R, B, K, observation).
        """
        batch, steps = time_steps.shape[1:]
        inputs = (rewards_to_go.unsqueeze(-1), costs_to_go.unsqueeze(-1), observations, actions)
        time = self.time(time_steps.flatten(1))
        tokens = [embed(x.flatten(1, 2)) + time for embed, x in zip(self.embeddings, inputs, strict=True)]
        x = self.embedding_norm(torch.stack(tokens, 2).flatten(1, 2))  # (R, B * K * TOKENS, width)
        x = dropped(x, keep, "embedding", self.config.embedding_dropout)
        for index, block in enumerate(self.blocks):
            x = block(x, batch, keep, index)
        x = self.output_norm(x).unflatten(1, (batch * steps, TOKENS))
        state, action = x[:, :, -2], x[:, :, -1]
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

    def forward(self, x: Tensor, batch: int, keep: Mapping[str, Tensor] | None, index: int) -> Tensor:
        """(R, B * L, width) -> (R, B * L, width); attention stays within each of the B sequences."""
        rate = self.config.residual_dropout
        attended = self.attention_out(self._attend(self.attention_in(self.attention_norm(x)), batch, keep, index))
        x = x + dropped(attended, keep, f"residual{index}", rate)
        hidden = functional.gelu(self.mlp_in(self.mlp_norm(x)))
        return x + dropped(self.mlp_out(hidden), keep, f"mlp{index}", rate)

    def _attend(self, projected: Tensor, batch: int, keep: Mapping[str, Tensor] | None, index: int) -> Tensor:
        # (R, B * L, 3 * width) -> three of (R, B, heads, L, width / heads)
        split = projected.unflatten(1, (batch, -1)).unflatten(-1, (3, self.config.num_heads, -1))
        query, key, value = split.permute(3, 0, 1, 4, 2, 5)
        if keep is None or self.config.attention_dropout == 0:
            attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            length, size = query.shape[-2:]
            later = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
            scores = (query @ key.transpose(-1, -2) / math.sqrt(size)).masked_fill(later, -math.inf)
            weights = dropped(scores.softmax(-1), keep, f"attention{index}", self.config.attention_dropout)
            attended = weights @ value
        return attended.transpose(2, 3).flatten(3).flatten(1, 2)


def dropped(x: Tensor, keep: Mapping[str, Tensor] | None, name: str, rate: float) -> Tensor:
    """Dropout at a rate, with what is kept given."""
    return x if keep is None or rate == 0 else x * keep[name].view_as(x) / (1 - rate)


class DropoutStreams:
    """What dropout keeps, drawn for each replica from a generator of its own.

    Its masks would be too large to draw ahead with the rest of the noise, so they are drawn within the update.
    """

    def __init__(self, replicas: Sequence[Replica], device: torch.device | str) -> None:
        self.generators = [replica.generator("dropout", device) for replica in replicas]

    def draw(self, config: TransformerHyperparameters, window: Sequence[int]) -> dict[str, Tensor]:
        """Masks (R, B, ...), 1 where something is kept, for B windows of K steps."""
        batch, length = window[0], window[1] * TOKENS
        tokens, attention = (batch, length, config.embedding_dim), (batch, config.num_heads, length, length)
        wanted: dict[str, tuple[tuple[int, ...], float]] = {"embedding": (tokens, config.embedding_dropout)}
        for index in range(config.num_layers):
            wanted[f"attention{index}"] = (attention, config.attention_dropout)
            wanted[f"residual{index}"] = wanted[f"mlp{index}"] = (tokens, config.residual_dropout)
        device = self.generators[0].device
        masks = {}
        for name, (shape, rate) in wanted.items():
            if rate > 0:
                masks[name] = torch.empty(len(self.generators), *shape, dtype=torch.uint8, device=device)
                for mask, generator in zip(masks[name], self.generators, strict=True):
                    mask.bernoulli_(1 - rate, generator=generator)
        return masks

    def state_dict(self) -> dict[str, Any]:
        """The generators' states."""
        return {"generators": [generator.get_state() for generator in self.generators]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The generators' states."""
        for generator, kept in zip(self.generators, state["generators"], strict=True):
            generator.set_state(kept)
