"""LSPC, stacked, against a plain single-agent transcription of the method."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from algorithms.lspc import LSPC, LSPCHyperparameters
from algorithms.networks import StackedGaussian, StackedMLP
from harness.algorithm import Replica
from harness.tasks import find_task

REPLICAS, STEPS, BATCH, TOLERANCE = 3, 50, 64, 1e-8


def load_reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lspc_reference", Path(__file__).with_name("lspc_reference.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


reference = load_reference()


def copy_linears(stacked: nn.Module, replica: int, *plain: nn.Module, member: int | None = None) -> None:
    """Give the plain layers the weights of one replica (and ensemble member) of the stacked ones, in order."""
    linears = [layer for module in plain for layer in module.modules() if isinstance(layer, nn.Linear)]
    layers = [layer for layer in stacked.modules() if hasattr(layer, "weight")]
    for layer, linear in zip(layers, linears, strict=True):
        weight, bias = layer.weight[replica], layer.bias[replica]
        if member is not None:
            weight, bias = weight[member], bias[member]
        linear.weight.data.copy_(weight.T)
        linear.bias.data.copy_(bias[0])


def pairs(ours: LSPC, plain: object, replica: int) -> list[tuple[str, nn.Module, int | None, tuple[nn.Module, ...]]]:
    """(name, our stacked network, ensemble member, the reference's network) for everything that is trained."""

    def gaussian(network: object) -> tuple[nn.Module, ...]:
        return (network.trunk, network.mean, network.log_std)  # type: ignore[attr-defined]

    n, t, p = ours.networks, ours.targets, plain
    return [
        ("v", n["v"], None, (p.v,)),
        ("q1", n["q"], 0, (p.q1,)),
        ("q2", n["q"], 1, (p.q2,)),
        ("vc", n["vc"], None, (p.vc,)),
        ("qc1", n["qc"], 0, (p.qc1,)),
        ("qc2", n["qc"], 1, (p.qc2,)),
        ("q1 target", t["q"], 0, (p.q1_target,)),
        ("q2 target", t["q"], 1, (p.q2_target,)),
        ("qc1 target", t["qc"], 0, (p.qc1_target,)),
        ("qc2 target", t["qc"], 1, (p.qc2_target,)),
        ("encoder", n["encoder"], None, gaussian(p.encoder)),
        ("decoder", n["decoder"], None, (p.decoder,)),
        ("latent encoder", n["latent_encoder"], None, gaussian(p.latent_encoder)),
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
        for _, stacked, member, network in pairs(ours, agent, replica):
            copy_linears(stacked, replica, *network, member=member)
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
        for name, stacked, member, network in pairs(ours, agent, replica):
            linears = [layer for module in network for layer in module.modules() if isinstance(layer, nn.Linear)]
            layers = [layer for layer in stacked.modules() if hasattr(layer, "weight")]
            for layer, linear in zip(layers, linears, strict=True):
                weight = layer.weight[replica] if member is None else layer.weight[replica, member]
                bias = layer.bias[replica] if member is None else layer.bias[replica, member]
                assert (weight.T - linear.weight).abs().max() < TOLERANCE, (name, replica)
                assert (bias[0] - linear.bias).abs().max() < TOLERANCE, (name, replica)


def test_the_policies_agree_with_the_reference() -> None:
    task = find_task("BallRun")
    config = LSPCHyperparameters(hidden_sizes=(32, 32), latent_dim=6, max_latent=0.6, vae_clamp=0.3)
    ours = LSPC(config, task, [Replica(0), Replica(1)], dtype=torch.float64)
    settings = replace(
        reference.Settings(observation_size=task.observation_size, action_size=task.action_size),
        hidden_sizes=(32, 32),
        latent_dim=6,
        max_latent=0.6,
        vae_clamp=0.3,
    )
    plain = reference.ReferenceLSPC(settings, torch.float64)
    for _, stacked, member, network in pairs(ours, plain, 1):
        copy_linears(stacked, 1, *network, member=member)
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
