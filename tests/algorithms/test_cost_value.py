"""What LSPC does beside the method's steps, which tests/parity holds to a transcription."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from algorithms.lspc import LSPC, LSPCHyperparameters, effective_sample
from harness.algorithm import Replica
from harness.tasks import find_task

TASK = find_task("BallRun")


def agent(**settings: object) -> LSPC:
    config = LSPCHyperparameters.model_validate({"hidden_sizes": (8, 8), "latent_dim": 2, "batch_size": 16, **settings})
    return LSPC(config, TASK, [Replica(0), Replica(1)], dtype=torch.float64)


def update(lspc: LSPC) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(2, 16, *shape, generator=generator, dtype=torch.float64)

    batch = {
        "observations": normal(TASK.observation_size),
        "actions": normal(TASK.action_size).tanh(),
        "next_observations": normal(TASK.observation_size),
        "rewards": normal(),
        "costs": torch.ones(2, 16, dtype=torch.float64),
        "done": torch.zeros(2, 16, dtype=torch.float64),
    }
    return lspc.update(batch, {"vae": normal(2), "latent": normal(2)})


def fix_cost_value(lspc: LSPC, *values: float) -> None:
    """Make each replica's Vc the same in every state."""
    with torch.no_grad():
        last = lspc.networks["vc"].layers[-1]  # type: ignore[union-attr, index]
        last.weight.zero_()  # type: ignore[union-attr, operator]
        last.bias.copy_(torch.tensor(values).view(-1, 1, 1))  # type: ignore[union-attr, operator]


@pytest.mark.parametrize(("gradient", "moves"), [("published", False), ("live", True)])
def test_a_negative_cost_value_learns_only_with_a_live_gradient(
    gradient: Literal["published", "live"], moves: bool
) -> None:
    lspc = agent(cost_value_gradient=gradient)
    fix_cost_value(lspc, -1, 1)
    bias = lspc.networks["vc"].layers[-1].bias  # type: ignore[union-attr, index]
    before = bias.detach().clone()  # type: ignore[union-attr, operator]
    metrics = update(lspc)
    changed = (bias - before).abs().flatten(1).amax(1) > 0  # type: ignore[operator]
    assert changed.tolist() == [moves, True]
    assert metrics["cost_value"][0] == 0 < metrics["cost_value"][1]


def test_targets_and_mask_keep_the_clamp_with_a_live_gradient() -> None:
    lspc = agent(cost_value_gradient="live", safety_threshold=0.0)
    fix_cost_value(lspc, -1, 1)
    metrics = update(lspc)
    assert metrics["safety_mask"].tolist() == [0, 0]  # max(Vc, 0) < 0 holds nowhere
    assert metrics["effective_sample"].tolist() == [0, 0]
    assert torch.isfinite(torch.stack(list(metrics.values()))).all()


def test_effective_sample_by_hand() -> None:
    weights = torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 0], [3, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
    assert effective_sample(weights).tolist() == pytest.approx([1, 0.25, 16 / 40, 0])


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"cost_value": 0.0, "safety_mask": 1.0, "effective_sample": 0.9}, ["cost value is 0"]),
        ({"cost_value": 1.0, "safety_mask": 1.0, "effective_sample": 0.001}, ["clones a few rows"]),
        ({"cost_value": 0.0, "safety_mask": 0.0, "effective_sample": 0.0}, ["cost value is 0", "learns from no"]),
        ({"cost_value": 1.0, "safety_mask": 0.1, "effective_sample": 0.5}, []),
    ],
)
def test_what_it_warns_of(metrics: dict[str, float], words: list[str]) -> None:
    said = LSPC.warnings(LSPCHyperparameters(), metrics)
    assert len(said) == len(words)
    assert all(word in text for word, text in zip(words, said, strict=True))
