"""The plain transcription of CCAC against values computed by hand."""

from __future__ import annotations

import math

import ccac_reference as ccac
import pytest
import torch
from pairing import copy_parameters, largest_change, make_constant
from torch import Tensor

S, A, Z, B = 5, 2, 3, 12
NETWORKS = ("actor", "critics", "cost_critics", "cvae", "classifier", "critic_multiplier", "actor_multiplier")
RATES = {"actor": 1e-4, "critics": 1e-3, "cost_critics": 1e-3, "cvae": 1e-3, "classifier": 1e-3}
RATES |= {"critic_multiplier": 1e-4, "actor_multiplier": 1e-4}


def make_batch(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    normals = {name: torch.randn(B, S, generator=generator).double() for name in ("observations", "next_observations")}
    return {
        **normals,
        "actions": torch.rand(B, A, generator=generator).double() * 1.8 - 0.9,
        "rewards": torch.rand(B, generator=generator).double(),
        "costs": torch.randint(0, 2, (B,), generator=generator).double(),
        "done": (torch.arange(B) % 4 == 0).double(),
        "costs_to_go": torch.randint(0, 9, (B,), generator=generator).double() + 1.0,
        "next_costs_to_go": torch.randint(0, 9, (B,), generator=generator).double(),
    }


def make_noise(seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    widths = {"encoder": Z, "critic": A, "cost_critic": A, "latent": Z, "actor": A}
    return {name: torch.randn(B, width, generator=generator).double() for name, width in widths.items()}


def make_agent(warm_up_steps: int = 0, **changes: float | bool) -> ccac.ReferenceCCAC:
    torch.manual_seed(0)
    settings = ccac.Settings(S, A, warm_up_steps, hidden_sizes=(8, 6), vae_hidden_sizes=(9, 7), latent_dim=Z, **changes)
    return ccac.ReferenceCCAC(settings, torch.full((S,), -2.0), torch.full((S,), 2.0))


def answer_ood(agent: ccac.ReferenceCCAC, answer: bool) -> None:
    make_constant(agent.classifier[4], 5.0 if answer else -5.0)


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def test_costs_to_go() -> None:
    kappa, following = ccac.costs_to_go([1, 0, 1, 0, 1, 1], [False, False, True, False, True, False])
    assert kappa == [2, 1, 1, 1, 1, 0]
    assert following == [1, 1, 0, 1, 0, 0]


def test_budget_is_never_negative() -> None:
    assert [ccac.spend(2.0, 1.0), ccac.spend(0.5, 1.0)] == [1.0, 0.0]


@pytest.mark.parametrize(("output", "exponent"), [(-30.0, -20.0), (1.5, 1.5), (7.0, 5.0)])
def test_multiplier_passes_gradients_at_its_bounds(output: float, exponent: float) -> None:
    agent = make_agent()
    make_constant(agent.critic_multiplier[4], output)
    multiplier = agent.multiplier(agent.critic_multiplier, torch.tensor([3.0]).double())
    assert float(multiplier.detach()) == pytest.approx(math.exp(exponent))
    multiplier.sum().backward()
    assert float(agent.critic_multiplier[4].bias.grad) == pytest.approx(math.exp(exponent))


def test_decoder_is_clamped_forward_alone() -> None:
    agent = make_agent()
    make_constant(agent.cvae.decoder[4], [9.0] * S + [-9.0] * A)
    decoded = agent.cvae.decode(torch.zeros(1, Z).double(), torch.ones(1).double())
    assert decoded.tolist() == [[2.0] * S + [-1.0] * A]
    decoded.sum().backward()
    assert agent.cvae.decoder[4].bias.grad.tolist() == [1.0] * (S + A)


def test_warm_up_leaves_the_rest_alone() -> None:
    agent = make_agent(warm_up_steps=1)
    before = {name: copy_parameters(getattr(agent, name)) for name in NETWORKS}
    assert set(agent.step(make_batch(), make_noise())) == {"vae_loss", "classifier_loss"}
    for name in NETWORKS:
        expected = RATES[name] if name in ("cvae", "classifier") else 0.0
        assert largest_change(getattr(agent, name), before[name]) == pytest.approx(expected, rel=1e-3), name
    assert "actor_loss" in agent.step(make_batch(), make_noise())


@pytest.mark.parametrize("ood", [True, False])
def test_full_step_changes_each_by_its_rate(ood: bool) -> None:
    agent = make_agent()
    answer_ood(agent, ood)
    before = {name: copy_parameters(getattr(agent, name)) for name in NETWORKS}
    targets = copy_parameters(agent.cost_critics_target)
    losses = agent.step(make_batch(), make_noise())
    assert losses["ood_rows"] == (B if ood else 0)
    assert all(math.isfinite(loss) for loss in losses.values())
    for name in NETWORKS:
        rests = name == "critic_multiplier" and not ood
        # The two gradients of one Adam leave the first multiplier a second, smaller step.
        change = largest_change(getattr(agent, name), before[name])
        if rests:
            assert change == 0.0
        else:
            assert RATES[name] * 0.99 < change < RATES[name] * 2.0, name
    assert largest_change(agent.cost_critics_target, targets) == pytest.approx(0.005 * 1e-3, rel=1e-2)


@pytest.mark.parametrize("zero_gradients", [True, False])
def test_resting_multiplier_moves_by_momentum_as_published(zero_gradients: bool) -> None:
    agent = make_agent(zero_gradients=zero_gradients)
    answer_ood(agent, True)
    before = copy_parameters(agent.critic_multiplier)
    agent.step(make_batch(), make_noise())
    # Adam: the first step is the rate; a second with no gradient has 0.9 m / (1 - 0.9^2) over the root of
    # 0.999 v / (1 - 0.999^2), where m = 0.1 g and v = 0.001 g^2.
    second = (0.09 / 0.19) / math.sqrt(0.000999 / (1 - 0.999**2))
    expected = 1e-4 * (1.0 + second) if zero_gradients else 1e-4
    assert largest_change(agent.critic_multiplier, before) == pytest.approx(expected, rel=1e-3)
    answer_ood(agent, False)
    before = copy_parameters(agent.critic_multiplier)
    agent.step(make_batch(), make_noise())
    assert (largest_change(agent.critic_multiplier, before) > 0.0) == zero_gradients


def make_constants(agent: ccac.ReferenceCCAC) -> None:
    for critics in (agent.critics, agent.critics_target):
        for value, critic in zip((2.0, 1.0, 3.0, 4.0), critics, strict=True):
            make_constant(critic[4], value)
    for critics in (agent.cost_critics, agent.cost_critics_target):
        for value, critic in zip((0.5, 0.0, 1.0, 1.5), critics, strict=True):
            make_constant(critic[4], value)
    make_constant(agent.critic_multiplier[4], 7.0)
    make_constant(agent.actor_multiplier[4], -1.0)


def test_losses_by_hand() -> None:
    agent = make_agent(critic_lr=0.0, vae_lr=0.0)
    make_constants(agent)
    answer_ood(agent, True)
    make_constant(agent.cvae.decoder[4], [0.0] * (S + A))
    make_constant(agent.cvae.encoder.mean, 0.5)
    make_constant(agent.cvae.encoder.log_std, -9.0)  # clamped to -4
    ones = torch.ones(B).double()
    batch = make_batch() | {"rewards": 20.0 * ones, "costs": ones, "done": 0.0 * ones}
    kappa = batch["costs_to_go"]
    penalty = 0.01 * sum(float((p.detach() ** 2).sum()) for p in agent.critic_multiplier.parameters())
    losses = agent.step(batch, make_noise())

    pairs = torch.cat([batch["observations"], batch["actions"]], dim=-1)
    kl = -0.5 * (1 - 8 - 0.25 - math.exp(-8))
    assert losses["vae_loss"] == pytest.approx(float((pairs**2).mean()) + 0.5 * kl)
    share = float((kappa > kappa[0]).double().mean())
    assert 0.0 < share < 1.0
    assert losses["classifier_loss"] == pytest.approx(share * softplus(-5) + (1 - share) * softplus(5))
    goal = 2.0 + 0.99 * softplus(1.0)
    assert losses["critic_loss"] == pytest.approx(sum((softplus(q) - goal) ** 2 for q in (2, 1, 3, 4)))
    goal = 1.0 + 0.99 * softplus(0.0)
    bellman = sum((softplus(q) - goal) ** 2 for q in (0.5, 0.0, 1.0, 1.5))
    gap = float((softplus(0.0) - kappa).mean())
    assert losses["cost_critic_loss"] == pytest.approx(bellman - math.exp(5) * gap)
    assert losses["critic_multiplier_loss"] == pytest.approx(math.exp(5) * gap + penalty)
    assert losses["actor_loss"] == pytest.approx(-softplus(1.0) + math.exp(-1) * gap)


def test_ood_rows_raise_the_cost_critic_alone_there() -> None:
    """Without an OOD row the loss is the Bellman error, whatever the multiplier."""
    batch, noise = make_batch(), make_noise()
    losses = {}
    for output in (0.0, 2.0):
        for ood in (True, False):
            agent = make_agent()
            answer_ood(agent, ood)
            make_constant(agent.critic_multiplier[4], output)
            losses[output, ood] = agent.step(batch, noise)["cost_critic_loss"]
    assert losses[0.0, False] == losses[2.0, False]
    assert losses[0.0, True] != losses[2.0, True]


def test_noise_goes_where_it_is_drawn() -> None:
    names = ["vae_loss", "critic_loss", "cost_critic_loss", "cost_critic_loss", "actor_loss"]
    order = ["vae_loss", "critic_loss", "cost_critic_loss", "actor_loss"]

    def step(noise: dict[str, Tensor]) -> dict[str, float]:
        agent = make_agent()
        answer_ood(agent, True)
        return agent.step(make_batch(), noise)

    losses = step(make_noise())
    for key, name in zip(("encoder", "critic", "cost_critic", "latent", "actor"), names, strict=True):
        changed = step(make_noise() | {key: 0.1 * make_noise()[key]})
        assert changed[name] != losses[name]
        for earlier in order[: order.index(name)]:
            assert changed[earlier] == losses[earlier]
    far = make_noise() | {"latent": 1.0 + make_noise()["latent"].abs()}
    farther = make_noise() | {"latent": 5.0 + make_noise()["latent"].abs()}
    assert step(far) == step(farther)  # both clamped to 1


def test_acting_sees_the_budget() -> None:
    agent = make_agent()
    observation = torch.linspace(-1, 1, S).double()
    mean, _ = agent.actor(torch.cat([observation, torch.tensor([4.0]).double()]))
    assert agent.act(observation, 4.0).tolist() == pytest.approx(torch.tanh(mean).tolist())
    assert agent.act(observation, 4.0).tolist() != agent.act(observation, 0.0).tolist()
