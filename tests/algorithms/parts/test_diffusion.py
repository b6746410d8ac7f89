"""The diffusion process against numbers worked out by hand, and its network's initial weights and dropout."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from algorithms.parts.diffusion import Denoiser, DenoiserHyperparameters, Diffusion, variance_preserving
from algorithms.parts.networks import TRUNCATED_STD, StackedLinear
from harness.tasks import find_task

TASK = find_task("BallRun")
DOUBLE = torch.float64


def config(**settings: float) -> DenoiserHyperparameters:
    small = {"width": 16, "blocks": 2, "time_size": 8, "frequencies": 4, "expansion": 2}
    return DenoiserHyperparameters.model_validate({"steps": 1, "batch_size": 8, **small, **settings})


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_the_published_schedule() -> None:
    betas = [0.195875, 0.458818, 0.635781, 0.754878, 0.835031]
    assert variance_preserving(5).tolist() == pytest.approx(betas, abs=5e-7)
    kept = [0.80412544, 0.43517806, 0.15850011, 0.03885183, 0.00640933]
    assert Diffusion(5, DOUBLE).kept.tolist() == pytest.approx(kept, abs=5e-9)


@given(st.integers(1, 100))
def test_any_number_of_steps_ends_at_the_same_noise(steps: int) -> None:
    """The rates' mean is 5.05 over a time of 1, whatever the steps."""
    kept = Diffusion(steps, DOUBLE).kept
    assert float(kept[-1]) == pytest.approx(math.exp(-5.05))
    assert (kept.diff() < 0).all()


def test_times_are_uniform() -> None:
    times = Diffusion(5).times(torch.randn(50_000, generator=torch.Generator().manual_seed(0)))
    assert torch.bincount(times, minlength=5).div(50_000).tolist() == pytest.approx([0.2] * 5, abs=0.01)
    # The fifths of the normal distribution end at +-0.8416 and +-0.2533.
    ends = torch.tensor([-40.0, -0.85, -0.83, -0.26, -0.25, 0.25, 0.26, 0.84, 0.85, 40.0])
    assert Diffusion(5).times(ends).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_noise_that_is_known_is_taken_off_again() -> None:
    """A network that sees the truth brings the last step's action back, whatever noise came before."""
    diffusion, truth = Diffusion(5, DOUBLE), torch.tensor([[0.3, -0.6]], dtype=DOUBLE)

    def predict(actions: Tensor, time: int) -> Tensor:
        kept = diffusion.kept[time]
        return (actions - kept.sqrt() * truth) / (1 - kept).sqrt()

    noise = torch.randn(5, 1, 2, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    assert torch.allclose(diffusion.sample(predict, noise), truth)
    for time in range(5):
        noised = diffusion.noised(truth, noise[0], torch.tensor([time]))
        assert torch.allclose(predict(noised, time), noise[0])


def test_sampled_actions_stay_within_bounds_at_every_step() -> None:
    seen = []

    def predict(actions: Tensor, time: int) -> Tensor:
        seen.append((time, float(actions.abs().max())))
        return torch.full_like(actions, -9.0)

    actions = Diffusion(4).sample(predict, 3 * torch.ones(4, 2, 3))
    assert actions.tolist() == [[1.0] * 3] * 2
    assert seen == [(3, 3.0), (2, 1.0), (1, 1.0), (0, 1.0)]


# The network


def test_a_denoiser_starts_as_published() -> None:
    wide = DenoiserHyperparameters.model_validate({"steps": 1, "batch_size": 8})
    network = Denoiser(wide, TASK, generators(0))
    assert tuple(network.frequencies.shape) == (1, 1, 32)
    assert tuple(network.input.weight.shape) == (1, TASK.action_size + TASK.observation_size + 128, 256)
    block = network.blocks[2]
    for layer, inputs in ((block["expand"], 256), (block["contract"], 1024)):
        weight = layer.weight.detach()
        assert float(weight.std()) == pytest.approx(inputs**-0.5, rel=0.02)
        assert float(weight.abs().max()) <= 2 / TRUNCATED_STD * inputs**-0.5
    assert float(network.time_out.weight.detach().abs().max()) == pytest.approx((6 / 256) ** 0.5, rel=0.02)
    biases = [layer.bias for layer in network.modules() if isinstance(layer, StackedLinear)]
    assert not any(bias.any() for bias in biases)


def test_a_replica_is_drawn_from_its_own_generator() -> None:
    both, alone = Denoiser(config(), TASK, generators(1, 2)), Denoiser(config(), TASK, generators(2))
    for one, other in zip(both.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one[1], other[0])
    assert not torch.equal(both.frequencies[0], both.frequencies[1])


def test_one_time_for_all_rows_is_the_time_of_each() -> None:
    network = Denoiser(config(), TASK, generators(0, 1), DOUBLE)
    observations = torch.randn(2, 6, TASK.observation_size, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    actions = torch.tanh(observations[..., : TASK.action_size])
    together = network(observations, actions, torch.tensor([[3], [1]]))
    each = network(observations, actions, torch.tensor([[3] * 6, [1] * 6]))
    assert torch.allclose(together, each)
    assert not torch.allclose(together, network(observations, actions, torch.tensor([[2], [2]])))


def test_dropout_takes_from_a_blocks_input_before_its_norm() -> None:
    """By hand, with one block; what is added to stays whole."""
    network = Denoiser(config(blocks=1, dropout=0.5), TASK, generators(0), DOUBLE)
    generator = torch.Generator().manual_seed(0)
    observations = torch.randn(1, 6, TASK.observation_size, generator=generator, dtype=DOUBLE)
    actions, times = torch.tanh(observations[..., : TASK.action_size]), torch.zeros(1, 6)
    assert network.dropped(6) == {"block0": ((6, 16), 0.5)}
    kept = torch.rand(1, 6, 16, generator=generator) > 0.5
    # At time 0 all angles are 0: cosines 1, sines 0.
    features = torch.tensor([1.0] * 4 + [0.0] * 4, dtype=DOUBLE).expand(1, 6, -1)
    embedded = network.time_out(functional.mish(network.time_in(features)))
    x = network.input(torch.cat([actions, observations, embedded], -1))
    block = network.blocks[0]
    normed = functional.layer_norm(x * kept * 2, (16,), eps=1e-6)
    x = x + block["contract"](functional.mish(block["expand"](normed)))
    assert torch.allclose(network(observations, actions, times, {"block0": kept}), network.output(functional.mish(x)))
