"""CAPS: its heads, its thresholds and choices, its budget in roll-outs, and what its options change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from algorithms.caps import CAPS, CAPSHyperparameters, SwitchingPolicy, choose, cost_threshold, head_shares
from harness.algorithm import Policy, Replica
from harness.contract import Contract
from harness.tasks import all_tasks, find_task

TASK = find_task("BallRun")
SMALL = {"batch_size": 16, "actor_hidden_sizes": (16, 16), "critic_hidden_sizes": (16, 16)}


def small(**settings: Any) -> CAPSHyperparameters:
    return CAPSHyperparameters.model_validate({**SMALL, **settings})


def agent(**settings: Any) -> CAPS:
    return CAPS(small(**settings), TASK, [Replica(0), Replica(1)], dtype=torch.float64)


def inputs(algorithm: CAPS, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A batch and noise for both replicas."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(2, *shape, generator=generator, dtype=torch.float64)

    batch = {
        "observations": normal(16, TASK.observation_size),
        "next_observations": normal(16, TASK.observation_size),
        "actions": normal(16, TASK.action_size).tanh(),
        "rewards": normal(16),
        "costs": (normal(16) > 0).double(),
        "done": (normal(16) > 1).double(),
        "terminals": torch.zeros(2, 16, dtype=torch.float64),
    }
    return batch, {name: normal(*shape) for name, shape in CAPS.noise(algorithm.config, TASK).items()}


# What it promises


@pytest.mark.parametrize(
    "settings",
    [{"backbone": "sac", "heads": 4}, {"heads": 8, "iql_actor_std": "learned"}, {"iql_cosine_steps": None}],
    ids=["sac", "learned", "constant"],
)
def test_every_backbone_keeps_the_contract(settings: dict[str, Any]) -> None:
    for check in Contract("caps", {**SMALL, **settings}).checks().values():
        check()


@pytest.mark.parametrize("backbone", ["iql", "sac"])
def test_one_agent_a_seed_is_told_every_limit(backbone: str) -> None:
    config = small(backbone=backbone)
    assert CAPS.policy_names(config) == (f"caps-{backbone}",)
    assert not CAPS.depends_on_cost_limit(config)
    assert CAPS.acts_on_cost_limit(config)


def test_published_settings() -> None:
    for task in all_tasks().values():
        config = CAPSHyperparameters.model_validate(CAPS.published(task))
        on_metadrive = task.family == "metadrive"
        assert config.steps == (200_000 if on_metadrive else 100_000)
        assert config.iql_expectile_r == config.iql_expectile_c == (0.5 if on_metadrive else 0.7)
    config = CAPSHyperparameters()
    assert (config.backbone, config.heads, config.batch_size, config.gamma, config.polyak) == (
        "iql",
        2,
        512,
        0.99,
        0.005,
    )
    assert config.actor_hidden_sizes == config.critic_hidden_sizes == (512, 512)
    assert (config.reward_scale, config.cost_scale) == (0.1, 1.0)
    assert (config.iql_actor_lr, config.iql_critic_lr, config.iql_cosine_steps) == (3e-4, 3e-4, 1_000_000)
    assert (config.iql_critics, config.iql_beta_r, config.iql_beta_c, config.iql_cap) == (2, 3.0, 3.0, 100.0)
    assert (config.sac_actor_lr, config.sac_critic_lr, config.sac_alpha_lr) == (1e-4, 1e-3, 1e-4)
    assert (config.sac_critics, config.sac_init_alpha, config.sac_value_weight) == (4, 0.1, 2.5)


# Heads


@pytest.mark.parametrize(
    ("heads", "reward", "cost"),
    [
        (2, [1, 0], [0, 1]),
        (4, [1, 1, 1, 0], [0, 2 / 3, 4 / 3, 1]),
        (8, [1] * 7 + [0], [2 * k / 7 for k in range(7)] + [1]),
    ],
)
def test_heads_go_from_reward_alone_to_cost_alone(heads: int, reward: list[float], cost: list[float]) -> None:
    shares = head_shares(heads)
    assert shares[0] == reward
    assert shares[1] == pytest.approx(cost)


# Choosing


@pytest.mark.parametrize(
    ("budget", "steps_left", "threshold"), [(20, 1000, 1.99991), (10, 200, 4.33010), (7, 1, 7), (-3, 50, 0), (0, 9, 0)]
)
def test_thresholds(budget: float, steps_left: int, threshold: float) -> None:
    found = cost_threshold(torch.tensor([budget], dtype=torch.float64), steps_left, 0.99)
    assert found.tolist() == pytest.approx([threshold], abs=5e-6)


def test_a_threshold_is_what_an_even_cost_adds_up_to() -> None:
    even = sum(0.9**step * 12 / 30 for step in range(30))
    assert cost_threshold(torch.tensor([12.0]), 30, 0.9).tolist() == pytest.approx([even])


@pytest.mark.parametrize(
    ("rewards", "costs", "threshold", "floors", "wanted"),
    [
        ((1, 3, 2), (1, 2, 3), 9.0, False, 1),  # all fit: the most reward
        ((1, 3, 2), (1, 5, 3), 4.0, False, 2),  # some fit
        ((1, 3, 2), (1, 5, 3), 1.0, False, 0),  # none lies below: the least cost, whatever it brings
        ((1, 3, 2), (7, 6, 5), 4.0, False, 2),
        ((-5, -3, -9), (1, 1, 1), 4.0, False, 1),  # rewards below 0
        ((1, 3, 2), (-1, -2, 3), 0.0, False, 1),  # nothing is left, but a negative cost fits
        ((3, 1, 2), (-1, -2, 3), 0.0, True, 1),  # counted as 0 it does not: the least cost, and that is not counted so
        ((3, 1, 2), (-1, -2, 3), 0.1, True, 0),
    ],
)
def test_choices(
    rewards: tuple[float, ...], costs: tuple[float, ...], threshold: float, floors: bool, wanted: int
) -> None:
    row = (torch.tensor([values], dtype=torch.float64) for values in (rewards, costs))
    assert choose(*row, torch.tensor([threshold]), floors).tolist() == [wanted]


@given(st.integers(0, 2**31), st.integers(2, 8), st.booleans(), st.floats(-1, 2))
def test_a_choice_is_the_best_that_fits(seed: int, heads: int, floors: bool, threshold: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewards, costs = (torch.randn(5, heads, generator=generator) for _ in range(2))
    chosen = choose(rewards, costs, torch.full((5,), threshold), floors).tolist()
    for row, head in enumerate(chosen):
        seen = [max(cost, 0.0) if floors else cost for cost in costs[row].tolist()]
        fitting = [k for k in range(heads) if torch.tensor(seen[k]) < torch.tensor(threshold)]
        assert head in fitting or not fitting
        best = rewards[row, fitting].max() if fitting else costs[row].min()
        assert (rewards if fitting else costs)[row, head] == best


# Acting


def told(policy: Policy, reward: list[list[float]], cost: list[list[float]]) -> SwitchingPolicy:
    """A policy of two heads that act 0.5 and -0.5, with these weights of the (single) hidden unit of its critics."""
    assert isinstance(policy, SwitchingPolicy)
    with torch.no_grad():
        for module in (policy.heads, policy.critics):
            for parameter in module.parameters():
                parameter.zero_()
        size = TASK.action_size
        last = policy.heads[-1]
        last.bias[:size], last.bias[size:] = 0.549306, -0.549306  # tanh of it is 0.5
        for name, (weight, bias) in (("reward", reward), ("cost", cost)):
            critics: Any = policy.critics[name]
            # The hidden unit is 1 + the action's first number; each critic sees it with a weight and a bias of its own.
            critics.layers[0].weight[:, :, TASK.observation_size, 0] = 1
            critics.layers[0].bias[..., 0] = 1
            critics.layers[1].weight[..., 0, 0] = torch.tensor(weight)
            critics.layers[1].bias[..., 0, 0] = torch.tensor(bias)
    return policy


@pytest.mark.parametrize("backbone", ["iql", "sac"])
def test_a_budget_is_spent_step_by_step(backbone: str) -> None:
    """The first head is worth 1.5 and 2 of cost, the second 0.5 and none: it acts once the first does not fit."""
    config = {"backbone": backbone, "critic_hidden_sizes": (1,), "actor_hidden_sizes": (4,), "sac_critics": 2}
    (policy,) = agent(**config).policies(1).values()
    # The least of two critics counts, for the return of -c too: the larger cost.
    policy = told(policy, reward=[[1.0, 1.0], [0.0, 9.0]], cost=[[-2.0, -2.0], [1.0, 6.0]])
    policy.reset([1, 2, 3], 4.8)
    observations = torch.zeros(3, TASK.observation_size, dtype=torch.float64)
    policy.steps_left = 3
    costs = torch.tensor([0.0, 2.0, 5.0])
    taken = []
    for _ in range(3):
        taken.append(policy.act(observations)[:, 0].tolist())
        policy.observe(torch.zeros(3), costs)
    # 4.8 over 3 steps is 4.75 discounted; 2.8 over 2 is 2.786, 0.8 over 1 is 0.8; with -0.2 no head fits.
    assert taken[0] == pytest.approx([0.5, 0.5, 0.5])
    assert taken[1] == pytest.approx([0.5, 0.5, -0.5])
    assert taken[2] == pytest.approx([0.5, -0.5, -0.5])
    assert policy.steps_left == 1  # an episode that goes on has one step left
    policy.reset([1], 4.8)
    assert (policy.steps_left, policy.budget.tolist()) == (TASK.max_episode_steps, pytest.approx([4.8]))


def test_a_scaled_cost_is_compared_with_a_scaled_budget() -> None:
    (policy,) = agent(cost_scale=2.0).policies(0).values()
    assert isinstance(policy, SwitchingPolicy)
    policy.reset([1, 2], 10.0)
    policy.observe(torch.zeros(2), torch.tensor([0.0, 3.0]))
    assert policy.budget.tolist() == [20.0, 14.0]


def test_a_policy_that_is_told_no_limit_says_so() -> None:
    (policy,) = agent().policies(0).values()
    with pytest.raises(ValueError, match="none was given"):
        policy.reset([1], None)


# Options


@pytest.mark.parametrize(
    ("settings", "updates", "changed"),
    [
        ({"iql_cosine_steps": 5}, 1, set()),  # the first update has the whole rate
        ({"iql_cosine_steps": 5}, 2, {"actor"}),
        ({"iql_beta_c": 1.0}, 1, {"actor"}),
        ({"iql_cap": 0.9}, 1, {"actor"}),
        ({"timeouts_terminal": False}, 1, {"critics"}),
        ({"sac_value_weight": 1.0}, 1, {"actor"}),
        ({"sac_cost_floor": False}, 2, set()),  # it is for acting alone
        ({"sac_init_alpha": 0.3}, 1, {"actor", "critics"}),
    ],
)
def test_options_change_what_they_say(settings: dict[str, Any], updates: int, changed: set[str]) -> None:
    backbone = "sac" if any(name.startswith("sac") for name in settings) else "iql"
    agents = [agent(backbone=backbone), agent(backbone=backbone, **settings)]
    for algorithm in agents:
        for step in range(updates):
            algorithm.update(*inputs(algorithm, step))
    one, other = (algorithm.parts() for algorithm in agents)
    found = set()
    for name in ("actor", "critics"):
        pairs = zip(one[name].parameters(), other[name].parameters(), strict=True)
        if not all(torch.allclose(mine, theirs, rtol=0, atol=1e-9) for mine, theirs in pairs):
            found.add(name)
    assert found == changed


def test_unit_variance_weighs_both_alike_and_a_learned_one_moves() -> None:
    unit, learned = agent(), agent(iql_actor_std="learned")
    assert "spread" not in unit.parts()
    first = [algorithm.update(*inputs(algorithm))["actor_loss"] for algorithm in (unit, learned)]
    assert torch.allclose(*first)  # it starts at 1
    assert learned.parts()["spread"]["log_std"].abs().min() > 0
