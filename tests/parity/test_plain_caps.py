"""The plain transcription of CAPS against values computed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import caps_reference as caps
import pytest
import torch
from pairing import copy_parameters, largest_change, make_constant
from torch import Tensor, nn

S, A, B = 5, 2, 12


def make_batch(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    normals = {name: torch.randn(B, S, generator=generator).double() for name in ("observations", "next_observations")}
    return {
        **normals,
        "actions": torch.rand(B, A, generator=generator).double() * 1.8 - 0.9,
        "rewards": torch.randn(B, generator=generator).double(),
        "costs": torch.randint(0, 2, (B,), generator=generator).double(),
        "done": (torch.arange(B) % 4 == 0).double(),
    }


def make_noise(number: int, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, A, generator=generator).double() for _ in range(number)]


def make_iql(heads: int = 2, **changes: float) -> caps.ReferenceCapsIQL:
    torch.manual_seed(0)
    return caps.ReferenceCapsIQL(caps.IQLSettings(S, A, heads, hidden_sizes=(8, 6), **changes))


def make_sac(heads: int = 2, **changes: float) -> caps.ReferenceCapsSAC:
    torch.manual_seed(0)
    return caps.ReferenceCapsSAC(caps.SACSettings(S, A, heads, hidden_sizes=(8, 6), **changes))


@pytest.mark.parametrize(
    ("budget", "steps_left", "threshold"), [(20.0, 1000, 1.99991), (10.0, 200, 4.33010), (7.0, 1, 7.0), (-3.0, 9, 0.0)]
)
def test_threshold(budget: float, steps_left: int, threshold: float) -> None:
    assert caps.cost_threshold(budget, steps_left, 0.99) == pytest.approx(threshold, abs=5e-6)


def test_head_weights_of_four_heads() -> None:
    weights = caps.head_weights(torch.tensor(3.0), torch.tensor(6.0), 4)
    assert [float(weight) for weight in weights] == pytest.approx([3.0, 7.0, 11.0, 6.0])
    assert [float(w) for w in caps.head_weights(torch.tensor(3.0), torch.tensor(6.0), 2)] == [3.0, 6.0]


def test_mixtures_of_four_heads() -> None:
    mixed = caps.mixtures(torch.tensor(3.0), torch.tensor(-6.0), 4)
    assert [float(value) for value in mixed] == pytest.approx([3.0, -1.0, -5.0, -6.0])


def test_cosine_rate() -> None:
    assert caps.cosine_rate(3e-4, 0, 1_000_000) == 3e-4
    assert caps.cosine_rate(1.0, 100_000, 1_000_000) == pytest.approx(1 - 0.024, abs=5e-4)
    assert caps.cosine_rate(1.0, 200_000, 1_000_000) == pytest.approx(1 - 0.095, abs=5e-4)
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=3e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
    for update in range(40):
        assert schedule.get_last_lr()[0] == pytest.approx(caps.cosine_rate(3e-4, update, 40), rel=1e-9)
        optimizer.step()
        schedule.step()


def test_choice_of_head() -> None:
    assert caps.choose_head([5.0, 4.0, 3.0], [2.0, 0.5, 0.1], 1.0, clamp_costs=False) == 1
    assert caps.choose_head([5.0, 4.0, 3.0], [2.0, 1.5, 1.1], 1.0, clamp_costs=False) == 2
    assert caps.choose_head([5.0, 4.0], [1.0, 2.0], 1.0, clamp_costs=False) == 0  # not below: none is feasible
    # With the budget spent a negative estimate is accepted by one backbone and not by the other.
    assert caps.choose_head([5.0, 4.0], [-0.1, -0.2], 0.0, clamp_costs=False) == 0
    assert caps.choose_head([5.0, 4.0], [-0.1, -0.2], 0.0, clamp_costs=True) == 1


def test_loss_of_expectile() -> None:
    u = torch.tensor([-2.0, 1.0], dtype=torch.float64)
    assert float(caps.expectile_loss(u, 0.7)) == pytest.approx((0.3 * 4 + 0.7) / 2, rel=1e-14)


def test_density_of_squashed_sample() -> None:
    mean, log_std, noise = (torch.tensor([[value]], dtype=torch.float64) for value in (0.2, -0.5, 0.7))
    action, log_pi = caps.squashed_sample(mean, log_std, noise)
    u = 0.2 + math.exp(-0.5) * 0.7
    density = math.exp(-0.5 * 0.49) / (math.sqrt(2 * math.pi) * math.exp(-0.5)) / (1 - math.tanh(u) ** 2)
    assert float(action) == pytest.approx(math.tanh(u), rel=1e-12)
    assert float(log_pi) == pytest.approx(math.log(density), rel=1e-12)


@pytest.mark.parametrize("make", [make_iql, make_sac])
def test_cost_critics_choose_while_acting(make: Callable[..., caps.ReferenceCapsIQL | caps.ReferenceCapsSAC]) -> None:
    agent = make(3)
    for layer, value in zip(
        agent.actor.heads if isinstance(agent, caps.ReferenceCapsIQL) else agent.actor.means,
        ([-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]),
        strict=True,
    ):
        make_constant(layer, value)
    for critic in [*agent.critics, *agent.cost_critics]:
        make_constant(critic[4], 0.0)
    observation = torch.zeros(S, dtype=torch.float64)
    # Each cost critic says a constant, the worst of which is an expected cost of 3; all heads share it.
    make_constant(agent.cost_critics[0][4], -3.0)
    make_constant(agent.cost_critics[1][4], -1.0)
    # The first critic's hidden unit carries the sum of actions, so head 2 has the most reward.
    with torch.no_grad():
        for critic in agent.critics:
            for layer in (critic[0], critic[2]):
                layer.weight.zero_()
                layer.bias.zero_()
            critic[0].weight[0, S:] = 1.0
            critic[0].bias[0] = 4.0
            critic[2].weight[0, 0] = 1.0
            critic[4].weight[0, 0] = 1.0
    action, head = agent.act(observation, budget=3.01, step=9, horizon=10)
    assert head == 2
    assert action.tolist() == pytest.approx([math.tanh(1.0)] * 2)
    # None is feasible at 2.99, and all estimates are equal: the first.
    assert agent.act(observation, budget=2.99, step=9, horizon=10)[1] == 0


def test_iql_step_changes_everything_but_its_targets_far() -> None:
    agent = make_iql(4)
    learned = [agent.critics, agent.cost_critics, agent.value, agent.cost_value, agent.actor]
    before = [copy_parameters(module) for module in learned]
    targets = copy_parameters(agent.critics_target)
    losses = agent.step(make_batch())
    assert all(math.isfinite(loss) for loss in losses.values())
    # The first step of Adam moves by the learning rate.
    for module, old in zip(learned, before, strict=True):
        assert largest_change(module, old) == pytest.approx(3e-4, rel=1e-3)
    assert largest_change(agent.critics_target, targets) == pytest.approx(0.005 * 3e-4, rel=1e-3)


def test_iql_losses_by_hand() -> None:
    agent = make_iql(4)
    for value, network in ((0.5, agent.value), (-1.0, agent.cost_value)):
        make_constant(network[4], value)
    for critics in (agent.critics_target, agent.critics):
        make_constant(critics[0][4], 1.0)
        make_constant(critics[1][4], 2.0)
    for critics in (agent.cost_critics_target, agent.cost_critics):
        make_constant(critics[0][4], -4.0)
        make_constant(critics[1][4], -3.0)
    for head in agent.actor.heads:
        make_constant(head, 0.0)
    batch = make_batch()
    batch |= {"rewards": torch.full((B,), 20.0).double(), "costs": torch.ones(B).double(), "done": torch.zeros(B)}
    losses = agent.step(batch)
    assert losses["value_loss"] == pytest.approx(0.7 * 0.5**2)
    assert losses["cost_value_loss"] == pytest.approx(0.3 * 3.0**2)
    goal, cost_goal = 2.0 + 0.99 * 0.5, -1.0 - 0.99
    assert losses["critic_loss"] == pytest.approx(((goal - 1) ** 2 + (goal - 2) ** 2) / 2)
    assert losses["cost_critic_loss"] == pytest.approx(((cost_goal + 4) ** 2 + (cost_goal + 3) ** 2) / 2)
    w_r, w_c = math.exp(1.5), math.exp(-9.0)
    nll = float((0.5 * (batch["actions"] ** 2).sum(dim=-1)).mean())
    total = w_r + (w_r + 2 / 3 * w_c) + (w_r + 4 / 3 * w_c) + w_c
    assert losses["actor_loss"] == pytest.approx(total / 4 * nll)


def test_iql_terminal_rows_do_not_bootstrap() -> None:
    batch = make_batch() | {"done": torch.ones(B).double()}
    other = batch | {"next_observations": batch["next_observations"] + 1.0}
    assert make_iql().step(batch) == make_iql().step(other)
    assert make_iql().step(make_batch()) != make_iql().step(make_batch() | {"next_observations": other["observations"]})


def test_iql_rate_of_the_actor_alone_decays() -> None:
    agent = make_iql(actor_schedule_steps=4)
    for _ in range(3):
        agent.step(make_batch())
    assert agent.actor_optimizer.param_groups[0]["lr"] == pytest.approx(3e-4 * 0.5)
    assert agent.critics_optimizer.param_groups[0]["lr"] == 3e-4
    agent.updates = 4
    before = copy_parameters(agent.actor)
    agent.step(make_batch())
    assert largest_change(agent.actor, before) == 0.0


@pytest.mark.parametrize("heads", [2, 4])
def test_sac_step_changes_each_by_its_rate(heads: int) -> None:
    agent = make_sac(heads)
    learned = {agent.critics: 1e-3, agent.cost_critics: 1e-3, agent.actor: 1e-4}
    before = {module: copy_parameters(module) for module in learned}
    targets = copy_parameters(agent.cost_critics_target)
    losses = agent.step(make_batch(), make_noise(3 * heads))
    assert all(math.isfinite(loss) for loss in losses.values())
    for module, rate in learned.items():
        assert largest_change(module, before[module]) == pytest.approx(rate, rel=1e-3)
    assert largest_change(agent.cost_critics_target, targets) == pytest.approx(0.005 * 1e-3, rel=1e-3)
    assert abs(float(agent.log_alpha) - math.log(0.1)) == pytest.approx(1e-4, rel=1e-3)


def test_sac_noise_goes_where_it_is_drawn() -> None:
    batch, noise = make_batch(), make_noise(6)
    losses = make_sac().step(batch, noise)
    first_affected = ["critic_loss", "critic_loss", "cost_critic_loss", "cost_critic_loss", "actor_loss", "actor_loss"]
    order = ["critic_loss", "cost_critic_loss", "actor_loss"]
    for position, name in enumerate(first_affected):
        other = [e + 0.1 * (number == position) for number, e in enumerate(noise)]
        changed = make_sac().step(batch, other)
        assert changed[name] != losses[name]
        for earlier in order[: order.index(name)]:
            assert changed[earlier] == losses[earlier]


def test_sac_losses_by_hand() -> None:
    agent = make_sac(critic_lr=0.0)
    for critics in (agent.critics, agent.critics_target):
        for value, critic in zip((4.0, 1.0, 2.0, 3.0), critics, strict=True):
            make_constant(critic[4], value)
    for critics in (agent.cost_critics, agent.cost_critics_target):
        for value, critic in zip((-2.0, -2.0, -5.0, -2.0), critics, strict=True):
            make_constant(critic[4], value)
    for layer in [*agent.actor.means, *agent.actor.log_stds]:
        make_constant(layer, 0.0)
    batch = make_batch()
    batch |= {"actions": torch.full((B, A), 0.5).double(), "rewards": torch.full((B,), 10.0).double()}
    batch |= {"costs": torch.ones(B).double(), "done": torch.ones(B).double()}
    losses = agent.step(batch, [torch.zeros(B, A).double()] * 6)
    log_pi = -A * 0.5 * math.log(2 * math.pi)  # at u = 0 the tanh has slope 1
    goal = 1.0 - 0.1 * log_pi  # the entropy term remains although every row is terminal
    assert losses["critic_loss"] == pytest.approx(sum((goal - q) ** 2 for q in (4, 1, 2, 3)))
    cost_goal = -1.0 - 0.1 * log_pi
    assert losses["cost_critic_loss"] == pytest.approx(3 * (cost_goal + 2) ** 2 + (cost_goal + 5) ** 2)
    # Constant mixtures: 2.5 mean/mean|.| is 2.5 for the first head (1) and -2.5 for the second (-5).
    assert losses["actor_loss"] == pytest.approx(2 * (0.1 * log_pi + 0.25) - 2.5 + 2.5)
    assert losses["alpha_loss"] == pytest.approx(2 * 0.1 * (-log_pi + A))
