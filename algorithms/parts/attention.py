"""Attention whose dropout masks are given, cut into pieces that fit into a CPU's cache.

The weights of all sequences together would be written to memory, and read again, half a dozen times. Piece by piece
they stay in the cache, and the backward pass computes them anew instead of keeping them (Dao et al., NeurIPS 2022,
arXiv 2205.14135, do so on GPUs).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

CACHED = 2**18
"""Attention weights of one piece on a CPU: 1 MB in float32."""


def attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, heads: int, keep: Tensor | None = None, rate: float = 0.0
) -> Tensor:
    """``dropout(softmax(q k^T / sqrt(size) + bias)) v`` for every head.

    Args:
        query: (R, B, M, heads * size).
        key: (R, B, L, heads * size).
        value: (R, B, L, heads * size).
        bias: (M, L), added to all scores.
        heads: how many.
        keep: (R, B, heads, M, L), false where a weight is dropped; ``None``: nowhere.
        rate: of dropout.

    Returns:
        (R, B, M, heads * size).
    """
    result: Tensor = _Attention.apply(query, key, value, bias, heads, keep, rate)  # type: ignore[no-untyped-call]
    return result


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, heads: int, keep: Tensor | None, rate: float
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, bias, keep)
        ctx.heads, ctx.scale = heads, 1 / (1 - rate) if keep is not None else 1.0
        result = torch.empty_like(query, memory_format=torch.contiguous_format)
        for piece in _pieces(query, key, heads):
            q, k, v = (_split(part[:, piece], heads) for part in (query, key, value))
            weights = _weights(q, k, bias)
            if keep is not None:
                weights.mul_(_flat(keep[:, piece]))
            _put(result[:, piece], weights @ v, heads, ctx.scale)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, keep = ctx.saved_tensors
        heads, scale = ctx.heads, 1 / math.sqrt(query.shape[-1] // ctx.heads)
        results = [torch.empty_like(part, memory_format=torch.contiguous_format) for part in (query, key, value)]
        for piece in _pieces(query, key, heads):
            q, k, v, g = (_split(part[:, piece], heads) for part in (query, key, value, gradient))
            weights = _weights(q, k, bias)
            of_weights = g @ v.transpose(1, 2)
            kept = weights
            if keep is not None:
                mask = _flat(keep[:, piece])
                kept, of_weights = weights * mask, of_weights.mul_(mask)
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            parts = (of_scores @ k, of_scores.transpose(1, 2) @ q, kept.transpose(1, 2) @ g)
            for result, part, factor in zip(
                results, parts, (scale * ctx.scale, scale * ctx.scale, ctx.scale), strict=True
            ):
                _put(result[:, piece], part, heads, factor)
        return (*results, None, None, None, None)


def _pieces(query: Tensor, key: Tensor, heads: int) -> list[slice]:
    """Parts of the batch whose weights fit into the cache; on a GPU all of it."""
    replicas, batch, length, _ = query.shape
    size = max(1, CACHED // (replicas * heads * length * key.shape[2])) if query.device.type == "cpu" else batch
    return [slice(start, start + size) for start in range(0, batch, size)]


def _split(tokens: Tensor, heads: int) -> Tensor:
    """(R, b, L, heads * size) -> (R * b * heads, L, size)."""
    split: Tensor = tokens.unflatten(-1, (heads, -1)).transpose(2, 3).flatten(0, 2)
    return split


def _flat(mask: Tensor) -> Tensor:
    """(R, b, heads, M, L) -> (R * b * heads, M, L), as integers, by which a CPU multiplies faster than by booleans."""
    return mask.flatten(0, 2).view(torch.uint8)


def _weights(query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
    return torch.baddbmm(bias, query, key.transpose(1, 2), alpha=1 / math.sqrt(query.shape[-1])).softmax(-1)


def _put(into: Tensor, part: Tensor, heads: int, factor: float) -> None:
    """``into`` (R, b, L, heads * size) becomes ``factor`` times ``part`` (R * b * heads, L, size)."""
    by_head = into.unflatten(-1, (heads, -1)).transpose(2, 3)
    torch.mul(part.view(by_head.shape), factor, out=by_head)
