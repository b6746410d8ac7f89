"""LSPC, stacked, against a plain single-agent transcription of the method."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import lspc_reference as reference
import pytest
import torch
from pairing import Pair, compare, copy_weights, optimizers, pair_ensemble, pair_layers
from torch import Tensor, nn

from algorithms.lspc import LSPC, LSPCHyperparameters
from algorithms.parts.networks import StackedGaussian, StackedMLP
from harness.algorithm import Replica
from harness.tasks import find_task

REPLICAS, STEPS, BATCH, TOLERANCE = 3, 50, 64, 1e-8


def pair_all(ours: LSPC, plain: reference.ReferenceLSPC) -> list[Pair]:
    """Everything that is trained, or follows."""

    def gaussian(network: Any) -> tuple[nn.Module, ...]:
        return network.trunk, network.mean, network.log_std

    n, t, p = ours.networks, ours.targets, plain
    return [
        *pair_layers("v", n["v"], p.v),
        *pair_layers("vc", n["vc"], p.vc),
        *pair_ensemble("q", n["q"], (p.q1, p.q2)),
        *pair_ensemble("qc", n["qc"], (p.qc1, p.qc2)),
        *pair_ensemble("q target", t["q"], (p.q1_target, p.q2_target)),
        *pair_ensemble("qc target", t["qc"], (p.qc1_target, p.qc2_target)),
        *pair_layers("encoder", n["encoder"], *gaussian(p.encoder)),
        *pair_layers("decoder", n["decoder"], p.decoder),
        *pair_layers("latent encoder", n["latent_encoder"], *gaussian(p.latent_encoder)),
    ]


def random_batch(generator: torch.Generator) -> dict[str, Tensor]:
    task = find_task("BallRun")

    def normal(*shape: int) -> Tensor:
        return torch.randn(REPLICAS, BATCH, *shape, generator=generator, dtype=torch.float64)

    return {
        "observations": normal(task.observation_size),
        "actions": normal(task.action_size).tanh(),
        "next_observations": normal(task.observation_size),
        "rewards": normal(),
        "costs": (normal() > 0.5).double(),
        "done": (normal() > 1.5).double(),
    }


@pytest.mark.parametrize("gradient", ["published", "live"])
@pytest.mark.parametrize("threshold", [999.0, 0.05])
def test_fifty_steps_agree_with_the_reference(threshold: float, gradient: Literal["published", "live"]) -> None:
    task = find_task("BallRun")
    config = LSPCHyperparameters(
        batch_size=BATCH,
        hidden_sizes=(32, 32),
        latent_dim=6,
        safety_threshold=threshold,
        max_latent=0.6,
        vae_clamp=0.3,
        cost_value_gradient=gradient,
    )
    ours = LSPC(config, task, [Replica(seed) for seed in range(REPLICAS)], dtype=torch.float64)
    settings = reference.Settings(
        observation_size=task.observation_size,
        action_size=task.action_size,
        hidden_sizes=(32, 32),
        latent_dim=6,
        safety_threshold=threshold,
        max_latent=0.6,
        vae_clamp=0.3,
        clamped_cost_value=gradient == "published",
    )
    plain = [reference.ReferenceLSPC(settings, torch.float64) for _ in range(REPLICAS)]
    for replica, agent in enumerate(plain):
        copy_weights(pair_all(ours, agent), replica)
    generator = torch.Generator().manual_seed(0)
    masked = []
    for _ in range(STEPS):
        batch = random_batch(generator)
        noise = {
            name: torch.randn(REPLICAS, *shape, generator=generator, dtype=torch.float64)
            for name, shape in LSPC.noise(config, task).items()
        }
        metrics = ours.update(batch, noise)
        masked.append(metrics["safety_mask"])
        for replica, agent in enumerate(plain):
            expected = agent.update(
                {name: value[replica] for name, value in batch.items()},
                {name: value[replica] for name, value in noise.items()},
            )
            for name, value in expected.items():
                assert abs(float(metrics[name][replica]) - float(value)) < TOLERANCE, (name, replica)
    mask = torch.stack(masked)
    assert (mask == 1).all() if threshold > 1 else ((mask > 0) & (mask < 1)).any()
    for replica, agent in enumerate(plain):
        compare(pair_all(ours, agent), replica, optimizers(ours), optimizers(agent), TOLERANCE)


def test_the_policies_agree_with_the_reference() -> None:
    task = find_task("BallRun")
    # noise is clamped in single precision, where a quarter is exact
    config = LSPCHyperparameters(hidden_sizes=(32, 32), latent_dim=6, max_latent=0.6, vae_clamp=0.25)
    ours = LSPC(config, task, [Replica(0), Replica(1)], dtype=torch.float64)
    settings = replace(
        reference.Settings(observation_size=task.observation_size, action_size=task.action_size),
        hidden_sizes=(32, 32),
        latent_dim=6,
        max_latent=0.6,
        vae_clamp=0.25,
    )
    plain = reference.ReferenceLSPC(settings, torch.float64)
    copy_weights(pair_all(ours, plain), 1)
    policies = ours.policies(1)
    observations = torch.randn(4, task.observation_size, dtype=torch.float64)
    for name, act in (("lspc-s", plain.act_safe), ("lspc-o", plain.act_optimised)):
        policies[name].reset([5, 6, 7, 8], None)
        noise = policies[name].noise(6).double()
        policies[name].reset([5, 6, 7, 8], None)
        with torch.no_grad():
            assert torch.allclose(policies[name].act(observations), act(observations, noise), atol=1e-12)


def test_networks_are_what_the_paper_says() -> None:
    ours = LSPC(LSPCHyperparameters(), find_task("BallRun"), [Replica(0)])
    assert isinstance(ours.networks["encoder"], StackedGaussian)
    assert ours.networks["encoder"].log_std_range == (-4.0, 15.0)
    assert isinstance(ours.networks["latent_encoder"], StackedGaussian)
    assert ours.networks["latent_encoder"].log_std_range == (-10.0, 2.0)
    assert isinstance(ours.networks["q"], StackedMLP)
    assert ours.networks["q"].ensemble == 2
    assert [tuple(layer.weight.shape[-2:]) for layer in ours.networks["v"].layers] == [(7, 256), (256, 256), (256, 1)]
