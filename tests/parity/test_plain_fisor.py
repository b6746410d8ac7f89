"""The plain transcription of FISOR against values computed by hand."""

from __future__ import annotations

import math

import fisor_reference as fisor
import pytest
import torch
from pairing import copy_parameters, largest_change, make_constant
from torch import Tensor

S, A, ROWS, FEW = 5, 2, 8, 4
LEARNED = ("actor", "critics", "value", "safety_critics", "safety_value")


def make_batch(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = 2 * ROWS
    normals = {
        name: torch.randn(rows, S, generator=generator).double() for name in ("observations", "next_observations")
    }
    return {
        **normals,
        "actions": torch.rand(rows, A, generator=generator).double() * 1.8 - 0.9,
        "rewards": torch.rand(rows, generator=generator).double(),
        "costs": (torch.arange(rows) % 3 == 0).double(),
        "done": (torch.arange(rows) % 4 == 0).double(),
    }


def make_noise(seed: int = 1) -> dict[str, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    times, normals = [], []
    for _ in range(2):
        times.append(torch.randint(0, 5, (ROWS,), generator=generator))
        normals.append(torch.randn(ROWS, A, generator=generator).double())
    return {"times": times, "normals": normals}


def make_settings(**changes: float) -> fisor.Settings:
    sizes = {"frequencies": 3, "time_size": 6, "width": 7, "expansion": 2, "blocks": 2, "candidates": 3}
    sizes |= {"actor_rows": ROWS, "critic_rows": FEW}
    return fisor.Settings(S, A, critic_hidden_sizes=(8, 6), **sizes, **changes)  # type: ignore[arg-type]


def make_agent(**changes: float) -> fisor.ReferenceFISOR:
    torch.manual_seed(0)
    return fisor.ReferenceFISOR(make_settings(**changes))


def test_noise_schedule() -> None:
    betas, alphas, abars = fisor.noise_schedule(5)
    assert betas == pytest.approx([0.195875, 0.458818, 0.635781, 0.754878, 0.835031], abs=5e-7)
    assert abars == pytest.approx([0.80412544, 0.43517806, 0.15850011, 0.03885183, 0.00640933], abs=5e-9)
    assert [beta + alpha for beta, alpha in zip(betas, alphas, strict=True)] == [1.0] * 5


def test_sizes_as_published() -> None:
    agent = fisor.ReferenceFISOR(fisor.Settings(S, A))
    shapes = {name: tuple(parameter.shape) for name, parameter in agent.actor.named_parameters()}
    assert shapes["frequencies"] == (32,)
    assert shapes["time_first.weight"] == (128, 64)
    assert shapes["input.weight"] == (256, A + S + 128)
    assert shapes["blocks.2.expand.weight"] == (1024, 256)
    assert float(agent.actor.blocks[0].expand.weight.detach().std()) == pytest.approx(1 / 16, rel=0.02)
    assert all(parameter.dtype == torch.float64 for parameter in agent.actor.parameters())


def test_reward_scale() -> None:
    assert fisor.reward_scale(200, -10.0, 30.0) == 5.0


def test_rate_ends_at_a_quarter() -> None:
    assert fisor.cosine_rate(3e-4, 0, 3_000_000) == 3e-4
    assert fisor.cosine_rate(3e-4, 2_000_000, 3_000_000) == pytest.approx(0.75e-4)
    assert fisor.cosine_rate(3e-4, 4_000_000, 3_000_000) == pytest.approx(0.0)


def test_regression_weights_of_every_case() -> None:
    q = torch.tensor([1.0, 1.0, 9.0, 1.0, 1.0, 1.0, 1e4])
    v = torch.tensor([0.5, 0.5, 0.0, 0.5, 0.5, 0.5, 0.0])
    g = torch.tensor([-1.0, 0.5, -1.0, 0.9, 3.0, -9.0, 0.0])
    u = torch.tensor([-0.5, -0.5, 0.0, 1.0, 1.0, 1.0, -1.0])
    expected = [math.exp(1.5), 0.0, 100.0, math.exp(0.5), math.exp(-10.0), 150.0, 100.0]
    assert fisor.regression_weights(q, v, g, u, make_settings()).tolist() == pytest.approx(expected, rel=1e-6)
    expected[4] = 1.0
    floored = fisor.regression_weights(q, v, g, u, make_settings(cost_floor=1.0))
    assert floored.tolist() == pytest.approx(expected, rel=1e-6)


def test_step_changes_each_by_its_rate() -> None:
    agent = make_agent()
    make_constant(agent.safety_value[4], 1.0)  # no state is feasible, so that every row has a weight
    before = {name: copy_parameters(getattr(agent, name)) for name in LEARNED}
    targets = {name: copy_parameters(getattr(agent, name)) for name in ("critics_target", "safety_critics_target")}
    slow = copy_parameters(agent.actor_target)
    losses = agent.step(make_batch(), make_noise())
    assert all(math.isfinite(loss) for loss in losses.values())
    for name in LEARNED:
        change = largest_change(getattr(agent, name), before[name])
        updates = 2 if name == "actor" else 1
        assert 3e-4 * 0.99 < change < 3e-4 * updates * 1.01, name
    for name, old in targets.items():
        assert largest_change(getattr(agent, name), old) == pytest.approx(0.005 * 3e-4, rel=1e-3)
    assert 0.001 * 3e-4 * 0.99 < largest_change(agent.actor_target, slow) < 0.001 * 3e-4 * 3.01
    assert agent.actor_updates == 2


def test_which_rows_are_seen_by_whom() -> None:
    def step(row: int) -> dict[str, float]:
        batch = make_batch()
        for name in ("observations", "rewards"):
            batch[name][row] += 0.5
        agent = make_agent()
        make_constant(agent.safety_value[4], 1.0)
        return agent.step(batch, make_noise())

    critics = ["value_loss", "critic_loss", "safety_value_loss", "safety_critic_loss"]
    agent = make_agent()
    make_constant(agent.safety_value[4], 1.0)
    plain = agent.step(make_batch(), make_noise())
    assert all(step(FEW - 1)[name] != plain[name] for name in critics)
    first = step(FEW)  # beyond the critics' rows
    assert all(first[name] == plain[name] for name in critics)
    assert first["actor_loss_1"] != plain["actor_loss_1"]
    second = step(ROWS)
    assert second["actor_loss_1"] == plain["actor_loss_1"]
    assert second["actor_loss_2"] != plain["actor_loss_2"]


def test_losses_by_hand() -> None:
    agent = make_agent(value_lr=0.0, reward_scale=2.0)
    for critics, values in (
        (agent.critics, (1.0, 2.0)),
        (agent.critics_target, (1.0, 2.0)),
        (agent.safety_critics, (-3.0, -0.5)),
        (agent.safety_critics_target, (-3.0, -0.5)),
    ):
        for critic, value in zip(critics, values, strict=True):
            make_constant(critic[4], value)
    make_constant(agent.value[4], 1.5)
    make_constant(agent.safety_value[4], -0.2)
    make_constant(agent.actor.output, 0.0)
    batch, noise = make_batch(), make_noise()
    batch |= {"rewards": torch.full((2 * ROWS,), 0.5).double()}
    batch |= {"costs": torch.tensor([0.0, 2.0, 0.0, 2.0] * 4), "done": torch.tensor([0.0, 0.0, 1.0, 1.0] * 4)}
    losses = agent.step(batch, noise)

    weight = math.exp(3 * (1.0 - 1.5))  # feasible: u = -0.2, g = -0.5
    first_errors = (noise["normals"][0] ** 2).sum(dim=-1)
    assert losses["actor_loss_1"] == pytest.approx(weight * float(first_errors.mean()))
    assert losses["value_loss"] == pytest.approx(0.1 * 0.5**2, rel=1e-13)
    goals = [1.0 + 0.99 * 1.5] * 2 + [1.0] * 2
    assert losses["critic_loss"] == pytest.approx(sum((q - goal) ** 2 for q in (1, 2) for goal in goals) / 8)
    assert losses["safety_value_loss"] == pytest.approx(0.9 * 0.3**2, rel=1e-13)
    goals = [-0.01 + 0.99 * -0.2, 25.0, -1.0, 25.0]
    assert losses["safety_critic_loss"] == pytest.approx(sum((h - g) ** 2 for h in (-3, -0.5) for g in goals) / 8)


def test_q_sees_v_as_just_updated() -> None:
    assert (
        make_agent(value_lr=0.0).step(make_batch(), make_noise())["critic_loss"]
        != (make_agent(value_lr=0.1).step(make_batch(), make_noise())["critic_loss"])
    )
    agents = [make_agent(value_lr=rate) for rate in (0.0, 0.1)]
    weights = [agent.step(make_batch(), make_noise())["actor_loss_2"] for agent in agents]
    assert weights[0] == weights[1]  # the actor's weights are from before this step


def test_noised_action_and_network_by_hand() -> None:
    agent = make_agent()
    observations, times = torch.ones(1, S).double(), torch.tensor([3])
    x = torch.full((1, A), 0.3).double()
    actor = agent.actor
    angles = 2 * math.pi * 3 * actor.frequencies
    features = torch.cat([angles.cos(), angles.sin()])

    def by_hand_mish(values: Tensor) -> Tensor:
        return values * torch.tanh(torch.log1p(torch.exp(values)))

    condition = actor.time_second(by_hand_mish(actor.time_first(features)))
    hidden = actor.input(torch.cat([x[0], observations[0], condition]))
    for block in actor.blocks:
        normal = (hidden - hidden.mean()) / torch.sqrt(hidden.var(unbiased=False) + 1e-6)
        hidden = hidden + block.contract(by_hand_mish(block.expand(normal)))
    expected = actor.output(by_hand_mish(hidden))
    assert actor(observations, x, times)[0].tolist() == pytest.approx(expected.tolist(), rel=1e-9)


def test_dropout_masks_reach_their_block() -> None:
    def step(masks: list[Tensor] | None) -> dict[str, float]:
        agent = make_agent()
        make_constant(agent.safety_value[4], 1.0)
        return agent.step(make_batch(), make_noise() | ({} if masks is None else {"masks": masks}))

    ones = [torch.ones(ROWS, 7).double() for _ in range(4)]
    assert step(ones) == step(None)
    third = [*ones[:2], ones[2] * (torch.arange(7) % 2 == 0), ones[3]]
    assert step(third)["actor_loss_1"] == step(None)["actor_loss_1"]
    assert step(third)["actor_loss_2"] != step(None)["actor_loss_2"]


def test_denoising_without_a_prediction() -> None:
    agent = make_agent()
    make_constant(agent.actor_target.output, 0.0)
    betas, alphas, _ = fisor.noise_schedule(5)
    noise = [torch.full((1, A), value).double() for value in (0.01, 0.02, -0.03, 0.04, 0.05)]
    x = 0.01
    for t, z in ((5, 0.02), (4, -0.03), (3, 0.04), (2, 0.05), (1, 0.0)):
        x = min(1.0, max(-1.0, x / math.sqrt(alphas[t - 1]) + math.sqrt(betas[t - 1]) * z))
    assert agent.denoise(torch.zeros(1, S).double(), noise)[0].tolist() == pytest.approx([x, x])
    far = [torch.full((1, A), 9.0).double()] * 5
    assert agent.denoise(torch.zeros(1, S).double(), far)[0].tolist() == [1.0, 1.0]


def test_a_constant_prediction_is_taken_off() -> None:
    agent = make_agent()
    make_constant(agent.actor_target.output, 0.01)
    betas, alphas, abars = fisor.noise_schedule(5)
    x = 0.0
    for t in (4, 3, 2, 1, 0):
        x = (x - betas[t] / math.sqrt(1 - abars[t]) * 0.01) / math.sqrt(alphas[t])
    noise = [torch.zeros(1, A).double()] * 5
    assert agent.denoise(torch.zeros(1, S).double(), noise)[0].tolist() == pytest.approx([x, x])


def test_acting_takes_the_safest_candidate() -> None:
    agent = make_agent()
    observation = torch.linspace(-1, 1, S).double()
    generator = torch.Generator().manual_seed(3)
    noise = [torch.randn(3, A, generator=generator).double() for _ in range(5)]
    candidates = agent.denoise(observation.expand(3, -1), noise)
    pairs = torch.cat([observation.expand(3, -1), candidates], dim=-1)
    first, second = (critic(pairs).squeeze(-1).tolist() for critic in agent.safety_critics_target)
    danger = [max(pair) for pair in zip(first, second, strict=True)]
    assert agent.act(observation, noise).tolist() == candidates[danger.index(min(danger))].tolist()
