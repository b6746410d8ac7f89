"""Pieces of losses, by hand."""

from __future__ import annotations

import pytest
import torch

from algorithms.parts.losses import expectile_loss, mean_where, per_replica_mean


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 2, 4)])
def test_per_replica_mean(shape: tuple[int, ...]) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if len(shape) == 1:
        values = values.unsqueeze(1)
    expected = torch.stack([mine.mean() for mine in values])
    torch.testing.assert_close(per_replica_mean(values), expected)


def test_an_expectile_loss_weighs_by_sign() -> None:
    found = expectile_loss(torch.tensor([[2.0, -1.0], [0.0, 3.0]]), 0.9)
    assert found.tolist() == pytest.approx([(0.9 * 4 + 0.1) / 2, 0.9 * 9 / 2])


def test_a_mean_over_none_is_0() -> None:
    chosen = torch.tensor([[True, False, True], [False, False, False]])
    assert mean_where(chosen, torch.tensor([[1.0, torch.nan, 4.0], [torch.nan] * 3])).tolist() == [2.5, 0]
