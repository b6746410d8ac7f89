"""Masks are each replica's own."""

from __future__ import annotations

import pytest
import torch

from algorithms.parts.dropout import DropoutStreams
from harness.algorithm import Replica


def test_dropout_is_each_replicas_own_at_its_rate() -> None:
    def streams() -> DropoutStreams:
        return DropoutStreams([Replica(0), Replica(1)], "cpu")

    wanted = {"half": ((300, 20), 0.5), "none": ((300, 20), 0.0), "odd": ((7, 3, 5), 0.1)}
    both, alone = streams().draw(wanted), DropoutStreams([Replica(1)], "cpu").draw(wanted)
    assert {name: tuple(mask.shape) for name, mask in both.items()} == {"half": (2, 300, 20), "odd": (2, 7, 3, 5)}
    assert float(both["half"].double().mean()) == pytest.approx(0.5, abs=0.02)
    assert all(torch.equal(mask[1], alone[name][0]) for name, mask in both.items())
    assert not torch.equal(both["half"][0], both["half"][1])
    going, resumed = streams(), streams()
    going.draw(wanted)
    resumed.load_state_dict(going.state_dict())
    assert torch.equal(going.draw(wanted)["half"], resumed.draw(wanted)["half"])
