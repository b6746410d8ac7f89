"""Steps are each replica's own, and of what they are asked for."""

from __future__ import annotations

import torch
from torch import nn

from algorithms.parts.networks import StackedMLP
from algorithms.parts.optimisers import adam, clip_per_replica, joint_norm, minimise, polyak_update


def test_polyak_update() -> None:
    targets, sources = [torch.tensor([0.0, 4.0]), torch.ones(2, 2)], [torch.tensor([1.0, 0.0]), torch.zeros(2, 2)]
    sources = [nn.Parameter(source) for source in sources]
    kept = targets[0]
    polyak_update(iter(targets), iter(sources), 0.25)
    assert targets[0] is kept
    assert targets[0].tolist() == [0.25, 3]
    assert targets[1].tolist() == [[0.75, 0.75]] * 2
    assert sources[0].tolist() == [1, 0]
    assert not targets[0].requires_grad


def test_clipping_is_torchs_for_each_replica_and_a_nan_stays_where_it_is() -> None:
    gradients = [torch.randn(3, 4, 5, dtype=torch.float64) * torch.tensor([0.01, 1.0, 5.0])[:, None, None]]
    gradients.append(torch.randn(3, 1, 7, dtype=torch.float64))
    expected = []
    for replica in range(3):
        parameters = [nn.Parameter(torch.zeros_like(gradient[replica])) for gradient in gradients]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient[replica].clone()
        norm = nn.utils.clip_grad_norm_(parameters, 2.0)
        assert torch.isclose(joint_norm(gradients)[replica], norm)
        expected.append([parameter.grad for parameter in parameters])
    sick = [gradient.clone() for gradient in gradients]
    sick[0][0, 0, 0] = torch.nan
    for tensors, replicas in ((gradients, range(3)), (sick, (1, 2))):
        clip_per_replica(tensors, joint_norm(tensors), 2.0)
        for replica in replicas:
            for tensor, wanted in zip(tensors, expected[replica], strict=True):
                assert torch.allclose(tensor[replica], wanted, atol=1e-12)
    assert sick[0][0].isnan().all()


def test_minimising_steps_the_optimisers_parameters_alone() -> None:
    actor, critic = (StackedMLP([torch.Generator().manual_seed(seed) for seed in (3, 14)], (3, 4, 3)) for _ in range(2))
    before = [parameter.clone() for parameter in critic.parameters()]
    optimizer = adam([(0.1, actor.parameters())])
    loss = critic(actor(torch.randn(2, 6, 3))).square().mean((1, 2))
    first = actor.layers[0].weight.detach().clone()
    minimise(optimizer, loss)
    assert not torch.equal(actor.layers[0].weight, first)
    assert all(torch.equal(one, other) for one, other in zip(critic.parameters(), before, strict=True))
    assert all(parameter.grad is None for parameter in critic.parameters())
