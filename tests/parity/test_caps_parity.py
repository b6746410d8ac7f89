"""CAPS, stacked, against a plain single-agent transcription of each backbone: 50 steps in float64, and acting.

Both sides start from the same weights and see the same batches and noise. Every parameter, target, temperature and
moment of an optimiser is compared.
"""

from __future__ import annotations

from typing import Any

import caps_reference
import pytest
import torch
from pairing import Pair, compare, copy_weights, optimizers, pair_ensemble, pair_layers
from torch import Tensor, nn

from algorithms.caps import CAPS, CAPSHyperparameters
from harness.algorithm import Replica
from harness.engine import optimizers as our_optimizers
from harness.tasks import find_task

TASK = find_task("BallRun")
REPLICAS, STEPS, BATCH, HIDDEN, TOLERANCE = 2, 50, 32, (16, 12), 1e-7
IQL, SAC = {"backbone": "iql"}, {"backbone": "sac"}
FAST_SAC = {**SAC, "sac_actor_lr": 5e-3, "sac_critic_lr": 5e-3, "sac_alpha_lr": 5e-3, "sac_init_alpha": 0.3}
# Our settings; the transcription's, by its names.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "iql, 2 heads": (IQL, {}),
    "iql, 4 heads": ({**IQL, "heads": 4}, {}),
    "iql, fast, clipped": (
        {
            **{**IQL, "heads": 4, "polyak": 0.1, "gamma": 0.9, "cost_scale": 2.0, "reward_scale": 0.5, "iql_cap": 1.1},
            **{"iql_actor_lr": 5e-3, "iql_critic_lr": 2e-3, "iql_cosine_steps": 60},
            **{"iql_expectile_r": 0.5, "iql_expectile_c": 0.8, "iql_beta_r": 2.0, "iql_beta_c": 4.0},
        },
        {
            **{"polyak": 0.1, "gamma": 0.9, "cost_scale": 2.0, "reward_scale": 0.5, "cap": 1.1, "tau": 0.5},
            **{"tau_c": 0.8, "beta": 2.0, "beta_c": 4.0, "actor_lr": 5e-3, "critic_lr": 2e-3, "value_lr": 2e-3},
            "actor_schedule_steps": 60,
        },
    ),
    "sac, 2 heads": (SAC, {}),
    "sac, 4 heads": ({**SAC, "heads": 4}, {}),
    "sac, fast, 3 critics": (
        {**FAST_SAC, "heads": 3, "sac_critics": 3, "polyak": 0.1, "sac_value_weight": 1.5, "cost_scale": 2.0},
        {
            **{"critics": 3, "polyak": 0.1, "bc_scale": 1.5, "cost_scale": 2.0, "initial_alpha": 0.3},
            **dict.fromkeys(("actor_lr", "critic_lr", "alpha_lr"), 5e-3),
        },
    ),
}


# What belongs together


def pair_heads(name: str, ours: nn.Module, theirs: nn.ModuleList) -> list[Pair]:
    size, pairs = TASK.action_size, []
    for head, linear in enumerate(theirs):
        pairs += pair_layers(f"{name} {head}", ours, linear, outputs=slice(head * size, (head + 1) * size))
    return pairs


def pair_all(ours: CAPS, theirs: Any) -> list[Pair]:
    """Everything that is trained, or follows."""
    backbone: Any = ours.backbone
    pairs = []
    for signal, name in (("reward", "critics"), ("cost", "cost_critics")):
        for stacked, plain in (
            (backbone.critics[signal], getattr(theirs, name)),
            (backbone.targets[signal], getattr(theirs, f"{name}_target")),
        ):
            pairs += pair_ensemble(name, stacked, plain)
    if isinstance(theirs, caps_reference.ReferenceCapsIQL):
        pairs += pair_layers("value", backbone.values["reward"], theirs.value)
        pairs += pair_layers("cost value", backbone.values["cost"], theirs.cost_value)
        pairs += pair_layers("trunk", backbone.actor.layers[:-1], theirs.actor.trunk)
        pairs += pair_heads("head", backbone.actor.layers[-1], theirs.actor.heads)
    else:
        pairs += pair_layers("trunk", backbone.actor.trunk, theirs.actor.trunk)
        pairs += pair_heads("mean", backbone.actor.mean, theirs.actor.means)
        pairs += pair_heads("log std", backbone.actor.log_std, theirs.actor.log_stds)
        pairs.append(Pair("log alpha", backbone.temperature["log_alpha"], theirs.log_alpha))
    return pairs


def build(case: str) -> tuple[CAPS, list[Any], list[list[Pair]]]:
    """Ours, theirs for each replica with the same weights, and what belongs together."""
    settings, their_settings = CASES[case]
    config = CAPSHyperparameters(batch_size=BATCH, actor_hidden_sizes=HIDDEN, critic_hidden_sizes=HIDDEN, **settings)
    ours = CAPS(config, TASK, [Replica(seed) for seed in range(REPLICAS)], dtype=torch.float64)
    if config.backbone == "iql":
        kind, model = caps_reference.ReferenceCapsIQL, caps_reference.IQLSettings
    else:
        kind, model = caps_reference.ReferenceCapsSAC, caps_reference.SACSettings
    sizes = (TASK.observation_size, TASK.action_size)
    theirs = [kind(model(*sizes, heads=config.heads, hidden_sizes=HIDDEN, **their_settings)) for _ in range(REPLICAS)]
    pairs = [pair_all(ours, agent) for agent in theirs]
    for replica, agent in enumerate(theirs):
        networks = [value for value in vars(agent).values() if isinstance(value, nn.Module)]
        covered = {id(pair.theirs) for pair in pairs[replica]}
        assert {id(p) for network in networks for p in network.parameters()} <= covered, "one of theirs has no partner"
        copy_weights(pairs[replica], replica)
    modules = [part for part in ours.parts().values() if isinstance(part, nn.Module)]
    mine = {id(p) for module in modules for p in module.parameters()}
    assert mine == {id(pair.ours) for pair in pairs[0]}, "one of ours has no partner"
    return ours, theirs, pairs


def random_batch(generator: torch.Generator) -> dict[str, Tensor]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(REPLICAS, BATCH, *shape, generator=generator, dtype=torch.float64)

    return {
        "observations": normal(TASK.observation_size),
        "actions": normal(TASK.action_size).tanh(),
        "next_observations": normal(TASK.observation_size),
        "rewards": 3 * normal(),
        "costs": (normal() > 0.5).double(),
        "done": (normal() > 1.2).double(),
    }


# The metrics of ours that the transcription logs under another name.
LOGGED = {
    "value_loss": "reward_value_loss",
    "cost_value_loss": "cost_value_loss",
    "critic_loss": "reward_critic_loss",
    "cost_critic_loss": "cost_critic_loss",
    "actor_loss": "actor_loss",
}


@pytest.mark.parametrize("case", CASES)
def test_fifty_steps_agree_with_the_transcription(case: str) -> None:
    ours, theirs, pairs = build(case)
    generator = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        batch = random_batch(generator)
        noise = {
            name: torch.randn(REPLICAS, *shape, generator=generator, dtype=torch.float64)
            for name, shape in CAPS.noise(ours.config, TASK).items()
        }
        metrics = ours.update(batch, noise)
        for replica, agent in enumerate(theirs):
            alone = {name: column[replica] for name, column in batch.items()}
            logged = agent.step(alone, [draw for name in noise for draw in noise[name][replica]])
            for name in logged.keys() & LOGGED.keys():
                assert abs(float(metrics[LOGGED[name]][replica]) - logged[name]) < TOLERANCE, (name, replica, step)
    for replica, agent in enumerate(theirs):
        compare(pairs[replica], replica, our_optimizers(ours), optimizers(agent), TOLERANCE)


@pytest.mark.parametrize("case", ["iql, 2 heads", "iql, 4 heads", "sac, 2 heads", "sac, 4 heads"])
def test_acting_agrees_with_the_transcription(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over episodes with budgets from ample to overspent: with all, some and no head feasible."""
    ours, theirs, pairs = build(case)
    generator = torch.Generator().manual_seed(1)
    horizon, episodes, heads, feasible = TASK.max_episode_steps, 10, set(), set()
    choose_head = caps_reference.choose_head

    def watched(rewards: list[float], costs: list[float], threshold: float, clamp_costs: bool) -> int:
        feasible.add(sum((max(cost, 0.0) if clamp_costs else cost) < threshold for cost in costs))
        return choose_head(rewards, costs, threshold, clamp_costs)

    monkeypatch.setattr(caps_reference, "choose_head", watched)
    for replica, agent in enumerate(theirs):
        # Heads that differ, and costs around what the budgets below come to.
        with torch.no_grad():
            for pair in pairs[replica]:
                pair.theirs.copy_(pair.theirs + 0.3 * torch.randn(pair.theirs.shape, generator=generator))
                pair.mine(pair.ours, replica).copy_(pair.theirs)
        policy = ours.policies(replica)[f"caps-{ours.config.backbone}"]
        for limit in (0.0, 2.0, 10.0, 40.0):
            policy.reset(range(episodes), limit)
            budgets = torch.full((episodes,), limit)
            for step in range(6):
                seen = torch.randn(episodes, TASK.observation_size, generator=generator, dtype=torch.float64)
                with torch.inference_mode():
                    actions = policy.act(seen)
                for one in range(episodes):
                    wanted, head = agent.act(seen[one], float(budgets[one]), step, horizon)
                    assert (actions[one] - wanted).abs().max() < TOLERANCE, (replica, limit, step, one)
                    heads.add(head)
                costs = (torch.rand(episodes, generator=generator) > 0.5).float()
                policy.observe(torch.zeros(episodes), costs)
                budgets -= costs
    assert heads == set(range(ours.config.heads))
    assert feasible == set(range(ours.config.heads + 1))
