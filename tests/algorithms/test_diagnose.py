"""What algorithms measure on held-out data, against numbers computed by hand or row by row."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from algorithms.cdt import CDTPolicy
from algorithms.parts import diagnostics
from harness import registry
from harness.algorithm import Algorithm, Batch, Replica
from harness.data.dataset import Dataset, load_dataset
from harness.diagnostics import held_out_batch
from harness.tasks import find_task

TASK = find_task("BallRun")
SMALL: dict[str, dict[str, Any]] = {
    "lspc": {"hidden_sizes": (8,), "latent_dim": 3, "cost_scale": 2.0, "reward_scale": 0.5, "safety_threshold": 0.3},
    "bcq-lag": {"num_qc": 1},
    "cpq": {"cost_scale": 3.0},
    "coptidice": {"num_nu": 1},
    "caps": {"cost_scale": 3.0},
    "ccac": {f"{part}_hidden_sizes": (8,) for part in ("actor", "critic", "vae", "classifier", "multiplier")},
    "cdt": {"sequence_length": 4, "embedding_dim": 8, "num_layers": 2, "num_heads": 2, "augment_share": 0},
}


def build(name: str, seeds: int = 2) -> tuple[Algorithm[Any], Batch, Dataset]:
    """Untrained agents and a batch of 200 held-out steps."""
    kind = registry.load(name)
    config = kind.Hyperparameters.model_validate(SMALL[name])
    dataset = load_dataset(TASK, "demo").split(0.1, 0)[1]
    limit = 20.0 if kind.depends_on_cost_limit(config) else None
    agents = [Replica(seed, limit, "test") for seed in range(seeds)]
    selections = [kind.select(dataset, config, agent) for agent in agents]
    agents = [
        Replica(one.seed, one.cost_limit, one.key, kept.statistics)
        for one, kept in zip(agents, selections, strict=True)
    ]
    algorithm = kind(config, TASK, agents, "cpu", torch.float64)
    return algorithm, held_out_batch(algorithm, config, dataset, seeds, "cpu", torch.float64), dataset


def rows(*values: float) -> Tensor:
    """(1, N)."""
    return torch.tensor([values], dtype=torch.float64)


# Shared pieces


@pytest.mark.parametrize(
    ("scores", "positive", "area"),
    [
        ((0.1, 0.4, 0.35, 0.8), (0, 0, 1, 1), 0.75),  # 3 of 4 pairs in order
        ((1, 2, 3, 4), (0, 0, 1, 1), 1.0),
        ((4, 3, 2, 1), (0, 0, 1, 1), 0.0),
        ((7, 7, 7, 7), (0, 1, 0, 1), 0.5),  # nothing but ties
        ((1, 2, 2, 3), (0, 0, 1, 1), 0.875),  # one pair of four ties
        ((1, 2, 3, 4), (1, 1, 1, 1), float("nan")),
        ((1, 2, 3, 4), (0, 0, 0, 0), float("nan")),
        ((1, float("nan"), 3, 4), (0, 0, 1, 1), float("nan")),
    ],
)
def test_auc_counts_pairs_in_order(scores: tuple[float, ...], positive: tuple[int, ...], area: float) -> None:
    found = diagnostics.auc(rows(*scores), torch.tensor([positive]) > 0)
    assert found.tolist() == pytest.approx([area], nan_ok=True)


def test_auc_is_of_each_replica_alone() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    positive = torch.tensor([[False, False, True]]).expand(2, -1)
    assert diagnostics.auc(scores, positive).tolist() == [1.0, 0.0]


def test_correlation_is_pearsons_and_0_where_there_is_nothing_to_correlate() -> None:
    one, other = rows(1, 2, 3, 6), rows(2, 1, 4, 9)
    expected = np.corrcoef(one[0].numpy(), other[0].numpy())[0, 1]
    assert diagnostics.correlation(one, other).item() == pytest.approx(expected)
    assert diagnostics.correlation(one.float(), -2 * one.float() + 5).item() == pytest.approx(-1)
    assert diagnostics.correlation(one, torch.full_like(one, 0.1)).tolist() == [0.0]
    assert diagnostics.correlation(torch.full((1, 999), 0.1), torch.arange(999.0).unsqueeze(0)).tolist() == [0.0]


def test_calibration_tells_safe_from_unsafe_steps() -> None:
    predicted, actual, safe = rows(1, 2, 5, 8), rows(0, 2, 7, 11), torch.tensor([[True, True, False, False]])
    found = {name: value.item() for name, value in diagnostics.cost_calibration("qc", predicted, actual, safe).items()}
    assert found["qc_bias_safe"] == 0.5
    assert found["qc_bias_unsafe"] == -2.5
    assert found["qc_auc"] == 1.0
    assert found["qc_correlation"] == pytest.approx(np.corrcoef(predicted[0], actual[0])[0, 1])
    levels = diagnostics.cost_levels(actual, safe)
    assert (levels["cost_to_go_safe"].item(), levels["cost_to_go_unsafe"].item()) == (1.0, 9.0)
    assert diagnostics.calibration("q", predicted, actual)["q_bias"].item() == -1.0
    assert diagnostics.mean_over(predicted, safe & ~safe).isnan().all()


def test_an_action_is_supported_if_it_lies_among_those_of_the_nearest_states() -> None:
    """Two clouds of states: in one the actions are around -1, in the other around 1."""
    generator = torch.Generator().manual_seed(0)
    side = (torch.arange(100) % 2 * 2 - 1.0).unsqueeze(-1)
    states = torch.cat([side * 10 + torch.randn(100, 1, generator=generator), torch.ones(100, 1)], -1)
    actions = side + 0.1 * torch.randn(100, 2, generator=generator)
    observations, data = states.expand(3, -1, -1), actions.expand(3, -1, -1)
    middle, opposite, mixed = side.expand(3, 100, 2), -data, torch.cat([side, -side], -1).expand(3, -1, -1)
    shares = diagnostics.supported(observations, data, middle, opposite, mixed, torch.cat([data[:2], -data[2:]]))
    assert [share.tolist() for share in shares[:3]] == [[1.0] * 3, [0.0] * 3, [0.0] * 3]
    among = shares[3].tolist()
    assert among[0] == among[1] > 0.6  # (1 - 2/21)² of random actions
    assert among[2] == 0.0


def test_a_steps_own_action_does_not_support_itself() -> None:
    observations, actions = torch.arange(3.0).reshape(1, 3, 1), torch.tensor([0.0, 5.0, 1.0]).reshape(1, 3, 1)
    own, constant = diagnostics.supported(observations, actions, actions, torch.full_like(actions, 0.9))
    assert own.item() == pytest.approx(1 / 3)  # 1 is between 0 and 5
    assert constant.item() == pytest.approx(2 / 3)  # and 0.9 between 0 and 1, and 0 and 5


def test_noise_is_each_replicas_own_and_the_same_in_every_call() -> None:
    agents, like = [Replica(0), Replica(1)], torch.zeros(2, 5, 1)
    drawn = diagnostics.noise(agents, like, 3)
    assert drawn.shape == (2, 5, 3)
    assert torch.equal(drawn, diagnostics.noise(agents, like, 3))
    assert torch.equal(drawn[1], diagnostics.noise(agents[1:], like[1:], 3)[0])
    assert not torch.equal(drawn[0], drawn[1])


# Algorithms


def test_lspc_measures_what_its_page_says() -> None:
    """Row by row, of the second of two agents."""
    algorithm, batch, dataset = build("lspc")
    net = algorithm.networks  # type: ignore[attr-defined]
    with torch.no_grad():
        found = {name: value[1].item() for name, value in algorithm.diagnose(batch).items()}
    one = {name: values[1].numpy() for name, values in batch.items()}

    def network(name: str, where: Any, inputs: Any) -> Any:
        with torch.no_grad():
            stacked = torch.as_tensor(np.asarray(inputs)).unsqueeze(0).expand(2, -1, -1)
            return where[name](stacked)[1].squeeze(-1).numpy()

    observations, actions = one["observations"], one["actions"]
    pairs = np.concatenate([observations, actions], -1)
    with torch.no_grad():
        mean, log_std = (x[1].numpy() for x in net["encoder"](torch.as_tensor(pairs).expand(2, -1, -1)))
        generator = algorithm.replicas[1].generator("diagnostics")  # type: ignore[attr-defined]
        noise = torch.randn(len(pairs), 3, generator=generator, dtype=torch.float64).numpy()
        generator = algorithm.replicas[1].generator("diagnostics")  # type: ignore[attr-defined]
        partner = torch.randn(len(pairs), 1, generator=generator, dtype=torch.float64)[:, 0].argsort().numpy()
    decoded = np.tanh(network("decoder", net, np.concatenate([observations, mean + np.exp(log_std) * noise], -1)))
    assert found["reconstruction"] == pytest.approx(((decoded - actions) ** 2).sum(-1).mean())
    assert found["kl"] == pytest.approx((0.5 * (mean**2 + np.exp(2 * log_std) - 1 - 2 * log_std)).mean())
    between = np.tanh(network("decoder", net, np.concatenate([observations, (mean + mean[partner]) / 2], -1)))
    low, high = actions.min(0), actions.max(0)
    assert found["interpolation_inside"] == np.mean([((a >= low) & (a <= high)).all() for a in between])
    assert found["interpolation_distance"] == pytest.approx(np.mean(np.sqrt(((between - actions) ** 2).sum(-1))))

    scaled = observations[:, :-1] / observations[:, :-1].std(0, ddof=1)
    assert np.ptp(observations[:, -1]) < 1e-12
    looked_at = np.linspace(0, len(scaled) - 1, 1000).round().astype(int)
    distances = ((scaled[looked_at, None] - scaled) ** 2).sum(-1)
    distances[range(1000), looked_at] = np.inf
    like = actions[np.argsort(distances)[:, :20]]
    for name, wanted in (("interpolation_supported", between), ("data_supported", actions)):
        among = (wanted[looked_at] >= like.min(1)) & (wanted[looked_at] <= like.max(1))
        assert 0 < found[name] == among.all(-1).mean() < 1

    vc = np.maximum(network("vc", net, observations), 0)
    qc = np.maximum(network("qc", algorithm.targets, pairs).max(0), 0)  # type: ignore[attr-defined]
    passed, safe = (vc < 0.3) & (qc < 0.3), one["safe"] == 1
    assert 0 < passed.mean() < 1
    assert (found["mask_safe"], found["mask_unsafe"]) == pytest.approx((passed[safe].mean(), passed[~safe].mean()))
    to_go = dataset.trajectories.to_go(dataset.arrays["costs"], 0.99)
    assert found["vc_bias_unsafe"] == pytest.approx((vc / 2 - to_go)[~safe].mean())
    assert found["qc_bias_safe"] == pytest.approx((qc / 2 - to_go)[safe].mean())
    pairs_in_order = (vc[~safe][:, None] > vc[safe]) + 0.5 * (vc[~safe][:, None] == vc[safe])
    assert found["vc_auc"] == pytest.approx(pairs_in_order.mean())
    returns = dataset.trajectories.to_go(dataset.arrays["rewards"], 0.99)
    q = network("q", algorithm.targets, pairs).min(0)  # type: ignore[attr-defined]
    assert found["q_bias"] == pytest.approx((q / 0.5 - returns).mean())
    assert found["q_correlation"] == pytest.approx(np.corrcoef(q, returns)[0, 1])


def test_an_interpolation_that_leaves_the_datas_actions_is_seen() -> None:
    algorithm, batch, _ = build("lspc")
    narrow = {**batch, "actions": batch["actions"] * 1e-6}
    with torch.no_grad():
        algorithm.networks["decoder"].layers[-1].bias.fill_(1.0)  # type: ignore[attr-defined]
        assert algorithm.diagnose(batch)["interpolation_inside"].min() > 0
        assert algorithm.diagnose(narrow)["interpolation_inside"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("name", "scale"), [("bcq-lag", 1.0), ("cpq", 3.0), ("caps", 3.0)])
def test_critics_are_compared_in_the_tasks_own_units(name: str, scale: float) -> None:
    """Critics whose last layer says a constant."""
    algorithm, batch, dataset = build(name)
    nets: Any = algorithm
    reward, cost = {
        "cpq": lambda: (nets.critics[key] for key in ("reward", "cost")),
        "bcq-lag": lambda: (nets.networks[key] for key in ("critics", "cost_critics")),
        "caps": lambda: (nets.backbone.critics[key] for key in ("reward", "cost")),
    }[name]()
    sign = -1 if name == "caps" else 1  # its cost critics value the return of -c
    with torch.no_grad():
        for critics, value in ((reward, 2.0), (cost, sign * 6.0)):
            critics.layers[-1].weight.zero_()
            critics.layers[-1].bias.fill_(value)
        found = {key: value[0].item() for key, value in algorithm.diagnose(batch).items()}
    returns, costs = (
        torch.as_tensor(dataset.trajectories.to_go(dataset.arrays[key], 0.99)) for key in ("rewards", "costs")
    )
    safe = batch["safe"][0] > 0
    assert found["q_bias"] == pytest.approx(2.0 / 0.1 - returns.mean().item())
    assert found["qc_bias_safe"] == pytest.approx(6.0 / scale - costs[safe].mean().item())
    assert found["qc_bias_unsafe"] == pytest.approx(6.0 / scale - costs[~safe].mean().item())
    assert (found["q_correlation"], found["qc_correlation"], found["qc_auc"]) == (0.0, 0.0, 0.5)
    assert found["cost_to_go_unsafe"] == pytest.approx(costs[~safe].mean().item())


def constant(layer: Any, *values: float) -> None:
    """A last layer that says the same of everything."""
    layer.weight.zero_()
    layer.bias.copy_(torch.tensor(values, dtype=torch.float64).expand_as(layer.bias))


def test_caps_first_and_last_head_are_compared_with_the_datas_actions() -> None:
    algorithm, batch, dataset = build("caps")
    with torch.no_grad():
        constant(algorithm.backbone.actor.layers[-1], *[math.atanh(0.5)] * 2, *[math.atanh(-0.25)] * 2)  # type: ignore[attr-defined]
        found = algorithm.diagnose(batch)
    actions = dataset.arrays["actions"].astype(float)
    assert found["reward_head_error"].tolist() == pytest.approx([((0.5 - actions) ** 2).mean()] * 2)
    assert found["cost_head_error"].tolist() == pytest.approx([((-0.25 - actions) ** 2).mean()] * 2)


def test_ccacs_mean_action_and_what_it_decodes_are_compared_with_the_data() -> None:
    """What is decoded lies within the bounds of the data: the least and the greatest value of each dimension."""
    algorithm, batch, dataset = build("ccac")
    nets: Any = algorithm
    with torch.no_grad():
        constant(nets.actor.mean, math.atanh(0.5))
        constant(nets.models["decoder"].layers[-1], 0.1)
        found = algorithm.diagnose(batch)
    observations, actions = (dataset.arrays[name].astype(float) for name in ("observations", "actions"))
    assert found["ccac/action_error"].tolist() == pytest.approx([((0.5 - actions) ** 2).mean()] * 2)
    pairs = np.concatenate([observations, actions.clip(-1, 1)], -1)
    size = observations.shape[1]
    expected = np.full(size + actions.shape[1], 0.1)
    expected[:size] = expected[:size].clip(observations.min(0), observations.max(0))
    assert (expected < 0.1).any()  # a dimension that never reaches it
    assert found["reconstruction"].tolist() == pytest.approx([((expected - pairs) ** 2).mean()] * 2)


def test_coptidices_nu_is_compared_with_what_it_values() -> None:
    algorithm, batch, dataset = build("coptidice")
    nets: Any = algorithm
    with torch.no_grad():
        nets.nu.layers[-1].weight.zero_()
        nets.nu.layers[-1].bias.fill_(1.5)
        found = algorithm.diagnose(batch)
        multiplier = torch.nn.functional.softplus(torch.tensor(1.0, dtype=torch.float64))
    penalised = 0.1 * dataset.arrays["rewards"].astype(float) - multiplier.item() * dataset.arrays["costs"]
    expected = 1.5 - dataset.trajectories.to_go(penalised, 0.99).mean()
    assert found["nu_bias"].tolist() == pytest.approx([expected] * 2)


def test_cdt_is_measured_on_windows_that_hold_every_step_once() -> None:
    """Against the policy, put into the place where each window ends."""
    algorithm, batch, dataset = build("cdt")
    assert batch["mask"].sum().item() == 2 * len(dataset)
    with torch.no_grad():
        found = algorithm.diagnose(batch)
        policy = algorithm.policies(1)["cdt"].double()
        assert isinstance(policy, CDTPolicy)
        c, total = policy.config, 0.0
        for window in range(batch["mask"].shape[1]):
            for last in range(int(batch["mask"][1, window].sum())):
                part = {name: values[1, window : window + 1, : last + 1] for name, values in batch.items()}
                to_go = (part["rewards_to_go"] * c.reward_scale, part["costs_to_go"] * c.cost_scale)
                policy.context = [*to_go, part["observations"], part["actions"]]
                action = policy.predict(part["time_steps"]).clamp(-1, 1)
                total += (action - part["actions"][:, -1]).square().mean().item()
    assert found["cdt/action_error"][1].item() == pytest.approx(total / len(dataset))
    assert 0 <= found["cost_accuracy"].min() <= found["cost_accuracy"].max() <= 1
