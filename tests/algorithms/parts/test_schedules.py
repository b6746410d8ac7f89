"""Learning rates, by hand and beside torch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from algorithms.parts.schedules import Schedule


def rates(schedule: Schedule, count: int) -> list[float]:
    return [float(schedule.advance()) for _ in range(count)]


def test_a_warm_up_rises_and_stays() -> None:
    assert rates(Schedule.warm_up(0.4, 4), 6) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_a_cosine_falls_as_torchs_does_and_stays_at_0() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3e-4)
    torchs, wanted = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10), []
    for _ in range(11):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        torchs.step()
    schedule = Schedule.cosine(3e-4, 10)
    assert rates(schedule, 11) == pytest.approx(wanted, abs=1e-10)
    assert rates(schedule, 3) == [0.0] * 3


@pytest.mark.parametrize(("updates", "lost"), [(100_000, 0.024), (200_000, 0.095)])
def test_a_long_cosine_has_hardly_begun(updates: int, lost: float) -> None:
    schedule = Schedule.cosine(1.0, 1_000_000)
    schedule.count.fill_(updates)
    assert float(schedule.advance()) == pytest.approx(1 - lost, abs=5e-4)
    assert int(schedule.count) == updates + 1


def test_a_schedules_count_is_its_state() -> None:
    one, other = Schedule.cosine(1.0, 8), Schedule.cosine(1.0, 8)
    rates(one, 3)
    other.load_state_dict(one.state_dict())
    assert rates(one, 2) == rates(other, 2) != rates(Schedule.cosine(1.0, 8), 2)
    counted_in_floats = {"count": torch.tensor(3.0)}  # checkpoints of CDT from before there were schedules
    other.load_state_dict(counted_in_floats)
    assert int(other.count) == 3
