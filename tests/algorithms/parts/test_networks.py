"""A replica of a stacked network is initialised, computes and learns as it would alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from algorithms.parts.losses import per_replica_mean
from algorithms.parts.networks import (
    TRUNCATED_STD,
    Builder,
    StackedEmbedding,
    StackedGaussian,
    StackedLayerNorm,
    StackedLinear,
    StackedMLP,
    frozen,
    glorot_uniform,
    lecun_normal,
    orthogonal,
    single,
    squashed,
)
from harness.algorithm import Replica

SEEDS = (3, 14, 15)
SIZES = (5, 16, 16, 2)
BATCH = 8


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in SEEDS]


def inputs(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def plain_mlp(sizes: tuple[int, ...] = SIZES) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size, following in itertools.pairwise(sizes):
        layers += [nn.Linear(size, following, dtype=torch.float64), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("ensemble", [None, 1, 3])
def test_initial_values_are_torchs(ensemble: int | None) -> None:
    layer = StackedLinear(generators(), 256, 4, ensemble)
    for replica, seed in enumerate(SEEDS):
        torch.manual_seed(seed)
        for member in range(ensemble or 1):
            linear = nn.Linear(256, 4)
            place = replica if ensemble is None else (replica, member)
            assert torch.equal(layer.weight[place], linear.weight.T)
            assert torch.equal(layer.bias[place], linear.bias.unsqueeze(0))


def test_a_network_is_drawn_layer_by_layer_from_the_replicas_generator() -> None:
    stacked = StackedMLP(generators(), SIZES, dtype=torch.float64)
    for replica, seed in enumerate(SEEDS):
        torch.manual_seed(seed)
        expected = plain_mlp().state_dict()
        torch.testing.assert_close(stacked.unstacked(replica).state_dict(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("ensemble", [None, 1, 2])
def test_weights_are_drawn_as_asked_from_the_replicas_generator(ensemble: int | None) -> None:
    network = StackedMLP(generators(), (30, 60, 4), ensemble, initialise=glorot_uniform)
    for replica, generator in enumerate(generators()):
        for layer, bound in zip(network.layers, ((6 / 90) ** 0.5, (6 / 64) ** 0.5), strict=True):
            for member in range(ensemble or 1):
                place = replica if ensemble is None else (replica, member)
                drawn, bias = torch.empty(layer.weight.shape[:-3:-1]), torch.empty(layer.weight.shape[-1])
                glorot_uniform(drawn, bias, generator)
                assert torch.equal(layer.weight[place], drawn.T)
                assert 0.9 * bound < drawn.abs().max() <= bound
            assert not layer.bias.any()


def test_a_lecun_normal_has_its_variance_behind_the_cut() -> None:
    weight, bias = torch.empty(500, 400), torch.empty(500)
    lecun_normal(weight, bias, torch.Generator().manual_seed(0))
    assert float(weight.std()) == pytest.approx(1 / 20, rel=0.01)
    assert float(weight.abs().max()) == pytest.approx(2 / 20 / TRUNCATED_STD, rel=0.01)
    assert not bias.any()


@pytest.mark.parametrize("ensemble", [None, 2])
def test_outputs_are_torchs(ensemble: int | None) -> None:
    stacked, x = StackedMLP(generators(), SIZES, ensemble, torch.float64), inputs(len(SEEDS), BATCH, SIZES[0])
    out = stacked(x)
    lead = () if ensemble is None else (ensemble,)
    assert out.shape == (len(SEEDS), *lead, BATCH, SIZES[-1])
    for replica in range(len(SEEDS)):
        for member in range(ensemble or 1):
            place = (replica,) if ensemble is None else (replica, member)
            y = x[replica]
            for index, layer in enumerate(stacked.layers):
                y = nn.functional.linear(y.relu() if index else y, layer.weight[place].T, layer.bias[place][0])
            torch.testing.assert_close(out[place], y, rtol=0, atol=1e-12)


def test_unstacked_equals_stacked_and_is_a_copy() -> None:
    mlp, gaussian = (
        StackedMLP(generators(), SIZES, dtype=torch.float64),
        StackedGaussian(generators(), SIZES, (-0.05, 0.05), torch.float64),
    )
    x = inputs(len(SEEDS), BATCH, SIZES[0])
    for replica in range(len(SEEDS)):
        torch.testing.assert_close(mlp.unstacked(replica)(x[replica]), mlp(x)[replica], rtol=0, atol=1e-12)
        for one, other in zip(gaussian.unstacked(replica)(x[replica]), gaussian(x), strict=True):
            torch.testing.assert_close(one, other[replica], rtol=0, atol=1e-12)
    assert gaussian(x)[1].abs().max() == 0.05  # clamped
    cut, before = mlp.unstacked(1), mlp(x).detach()
    with torch.no_grad():
        for parameter in cut.parameters():
            parameter.zero_()
    assert torch.equal(mlp(x), before)


def train(network: nn.Module, loss: Callable[[nn.Module, Tensor], Tensor], data: list[Tensor]) -> nn.Module:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for x in data:
        optimizer.zero_grad()
        loss(network, x).backward()
        optimizer.step()
    return network


def stacked_loss(network: nn.Module, x: Tensor) -> Tensor:
    return per_replica_mean((network(x) - x.sum(-1, keepdim=True).sin()).square()).sum()


def plain_loss(network: nn.Module, x: Tensor) -> Tensor:
    return nn.functional.mse_loss(network(x), x.sum(-1, keepdim=True).sin().expand(-1, SIZES[-1]))


def test_the_summed_loss_trains_each_replica_as_alone() -> None:
    data = list(inputs(20, len(SEEDS), BATCH, SIZES[0]))
    stacked = StackedMLP(generators(), SIZES, dtype=torch.float64)
    initial = stacked.unstacked(0)(data[0][0]).detach()
    train(stacked, stacked_loss, data)
    for replica, seed in enumerate(SEEDS):
        torch.manual_seed(seed)
        alone = train(plain_mlp(), plain_loss, [x[replica] for x in data])
        torch.testing.assert_close(stacked.unstacked(replica).state_dict(), alone.state_dict(), rtol=0, atol=1e-10)
    assert (stacked.unstacked(0)(data[0][0]) - initial).abs().max() > 0.01


@pytest.mark.parametrize("ensemble", [None, 2])
def test_a_nan_stays_in_its_replica(ensemble: int | None) -> None:
    data = list(inputs(20, len(SEEDS), BATCH, SIZES[0]))

    def loss(network: nn.Module, x: Tensor) -> Tensor:
        return stacked_loss(network, x) if ensemble is None else per_replica_mean(network(x).square()).sum()

    healthy, sick = (StackedMLP(generators(), SIZES, ensemble, torch.float64) for _ in range(2))
    train(healthy, loss, data)
    for x in data[3:]:
        x[1] = torch.nan
    train(sick, loss, data)
    for one, other in zip(sick.parameters(), healthy.parameters(), strict=True):
        assert one[1].isnan().all()
        assert torch.equal(one[[0, 2]], other[[0, 2]])


# What the baselines need


def test_layer_norms_are_torchs() -> None:
    norm = StackedLayerNorm(2, 5, torch.float64)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(2, 1, 5))
        norm.bias.copy_(torch.randn(2, 1, 5))
    x = torch.randn(2, 7, 5, dtype=torch.float64)
    for replica in range(2):
        plain = nn.LayerNorm(5, dtype=torch.float64)
        plain.weight.data, plain.bias.data = norm.weight.data[replica, 0], norm.bias.data[replica, 0]
        assert torch.allclose(norm(x)[replica], plain(x[replica]), atol=1e-12)


def test_each_replica_looks_up_its_own_table() -> None:
    table = StackedEmbedding(3, 4, 2)
    with torch.no_grad():
        table.weight.copy_(torch.arange(24.0).reshape(3, 4, 2))
    indices = torch.tensor([[0, 3], [1, 1], [2, 0]])
    expected = torch.stack([table.weight[replica][indices[replica]] for replica in range(3)])
    assert torch.equal(table(indices), expected)


@pytest.mark.parametrize("wrong", [4, 5, 11, 12, -1, -4, 2**40, -(2**40)])
@pytest.mark.parametrize("replica", [0, 1, 2])
def test_an_index_outside_of_a_replicas_own_table_is_no_other_replicas(wrong: int, replica: int) -> None:
    table = StackedEmbedding(3, 4, 2)
    indices = torch.tensor([[0, 3], [1, 1], [2, 0]])
    indices[replica, 1] = wrong
    with pytest.raises(IndexError):
        table(indices)


def test_tanh_networks_come_apart_as_tanh_networks() -> None:
    network = StackedMLP(generators()[:2], (3, 8, 2), activation=nn.Tanh)
    x = torch.randn(2, 5, 3)
    expected = network.layers[1](torch.tanh(network.layers[0](x)))
    assert torch.equal(network(x), expected)
    assert not torch.equal(network(x), StackedMLP(generators()[:2], (3, 8, 2))(x))
    assert torch.allclose(network.unstacked(1)(x[1]), expected[1], atol=1e-6)


def test_what_is_built_is_what_the_networks_are_and_follows_the_calls() -> None:
    replicas = [Replica(0), Replica(1)]
    build = Builder.of(replicas, "cpu", torch.float64)
    first, second = build.mlp(3, 4, 2, ensemble=2), build.gaussian(3, 4, 2, log_std_range=(-1.0, 1.0))
    streams = [replica.generator("weights") for replica in replicas]
    wanted = (
        StackedMLP(streams, (3, 4, 2), 2, torch.float64),
        StackedGaussian(streams, (3, 4, 2), (-1, 1), torch.float64),
    )
    for made, one in zip((first, second), wanted, strict=True):
        torch.testing.assert_close(made.state_dict(), one.state_dict(), rtol=0, atol=0)
    assert second.log_std_range == (-1, 1)


def test_a_frozen_copy_stays_where_it_was() -> None:
    network = StackedMLP(generators(), (3, 4, 2))
    targets = frozen(network)
    torch.testing.assert_close(targets.state_dict(), network.state_dict(), rtol=0, atol=0)
    with torch.no_grad():
        network.layers[0].weight.zero_()
    assert targets.layers[0].weight.abs().sum() > 0
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not any(parameter.requires_grad for parameter in targets.parameters())


def test_a_single_replica_is_a_copy() -> None:
    network = StackedMLP(generators(), (3, 4, 2))
    alone = single(network, 2)
    x = torch.randn(3, 5, 3)
    assert torch.allclose(alone(x[2:]), network(x)[2:], atol=1e-6)
    with torch.no_grad():
        network.layers[0].weight.zero_()
    assert alone.layers[0].weight.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in alone.parameters())


def test_a_squashed_samples_density_is_torchs() -> None:
    mean, log_std, noise = inputs(3, 4, 2), inputs(3, 4, 2) - 1, inputs(3, 4, 2).flip(0)
    sample, log_density = squashed(mean, log_std, noise)
    normal = torch.distributions.Normal(mean, log_std.exp())
    wanted = torch.distributions.TransformedDistribution(normal, torch.distributions.TanhTransform())
    assert torch.allclose(sample, torch.tanh(mean + log_std.exp() * noise))
    assert torch.allclose(log_density, wanted.log_prob(sample).sum(-1), atol=1e-6)
    assert squashed(*torch.tensor([[[40.0]], [[0.0]], [[1.0]]]))[1].isfinite().all()  # where tanh is 1


def test_orthogonal_layers_are_torchs_of_each_replica() -> None:
    ours = StackedMLP([torch.Generator().manual_seed(seed) for seed in (3, 4)], (5, 8, 8, 2), initialise=orthogonal)
    for replica, seed in enumerate((3, 4)):
        generator = torch.Generator().manual_seed(seed)
        for layer in ours.layers:
            weight = nn.init.orthogonal_(torch.empty(*layer.weight.shape[:0:-1]), generator=generator)
            assert torch.equal(layer.weight[replica].T, weight)
            small = min(weight.shape)
            product = weight.T @ weight if weight.shape[0] > weight.shape[1] else weight @ weight.T
            assert torch.allclose(product, torch.eye(small), atol=1e-5)
            assert not layer.bias.any()
