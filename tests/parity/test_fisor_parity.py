"""FISOR, stacked, against a plain single-agent transcription: 15 steps, 30 of the diffusion model, in float64; acting.

Both sides start from the same weights and see the same batches, noise and dropout masks. Every parameter, slow copy,
target and moment of an optimiser is compared.
"""

from __future__ import annotations

import math
from typing import Any

import fisor_reference
import pytest
import torch
from pairing import Pair, compare, copy_weights, optimizers, pair_ensemble, pair_layers
from torch import Tensor, nn

from algorithms.fisor import FISOR, FISORHyperparameters
from harness.algorithm import Replica
from harness.engine import optimizers as our_optimizers
from harness.tasks import find_task

TASK = find_task("BallRun")
REPLICAS, STEPS, TOLERANCE = 2, 15, 1e-7
OURS = {"frequencies": 4, "time_size": 10, "width": 12, "expansion": 2, "critic_hidden_sizes": (16, 12)}
FAST = {"actor_lr": 5e-3, "critic_lr": 3e-3, "polyak": 0.1, "gamma": 0.9}
# Our settings; the transcription's, by its names. Batches are as published: 2048 rows, of which critics see 256.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "published, without dropout": ({"dropout": 0.0}, {}),
    "published": ({}, {}),
    "fast, clipped, all options": (
        {
            **{**FAST, "batch_size": 640, "critic_share": 0.5, "actor_cosine_updates": 40, "ema": 0.05, "dropout": 0.3},
            **{"expectile_r": 0.8, "expectile_h": 0.8, "beta_r": 2.0, "beta_h": 4.0, "cap_r": 1.1, "cap_h": 1.2},
            **{"floor_h": 0.9, "signal_costly": 3.0, "signal_free": -0.5, "reward_scale": 0.5, "action_margin": 0.1},
            **{"diffusion_steps": 3, "blocks": 2, "samples": 5},
        },
        {
            **{**FAST, "value_lr": 3e-3, "actor_rows": 320, "critic_rows": 320, "actor_schedule_updates": 40},
            **{"actor_polyak": 0.05, "dropout": 0.3, "expectile": 0.8, "reward_temperature": 2.0},
            **{"cost_temperature": 4.0, "reward_cap": 1.1, "cost_cap": 1.2, "cost_floor": 0.9, "unsafe_signal": 3.0},
            **{"safe_signal": -0.5, "reward_scale": 0.5, "action_limit": 0.9},
            **{"diffusion_steps": 3, "blocks": 2, "candidates": 5},
        },
    ),
}


# What belongs together


def pair_all(ours: FISOR, theirs: fisor_reference.ReferenceFISOR) -> list[Pair]:
    """Everything that is trained, or follows."""
    pairs = []
    for signal, name in (("reward", "critics"), ("feasibility", "safety_critics")):
        for stacked, ensemble in ((ours.critics, name), (ours.targets, f"{name}_target")):
            pairs += pair_ensemble(ensemble, stacked[signal], getattr(theirs, ensemble))
    pairs += pair_layers("value", ours.values["reward"], theirs.value)
    pairs += pair_layers("safety value", ours.values["feasibility"], theirs.safety_value)
    for actor, plain in ((ours.actor, theirs.actor), (ours.slow_actor, theirs.actor_target)):
        pairs += pair_layers("actor", actor, plain)
        pairs.append(Pair("frequencies", actor.frequencies, plain.frequencies))
    return pairs


def build(case: str) -> tuple[FISOR, list[fisor_reference.ReferenceFISOR], list[list[Pair]]]:
    """Ours, theirs for each replica with the same weights, and what belongs together."""
    settings, their_settings = CASES[case]
    config = FISORHyperparameters(**{**OURS, **settings})
    ours = FISOR(config, TASK, [Replica(seed) for seed in range(REPLICAS)], dtype=torch.float64)
    sizes = (TASK.observation_size, TASK.action_size)
    scale = fisor_reference.reward_scale(TASK.max_episode_steps, TASK.min_episode_reward, TASK.max_episode_reward)
    model = fisor_reference.Settings(*sizes, **{**OURS, "reward_scale": scale, **their_settings})
    theirs = [fisor_reference.ReferenceFISOR(model) for _ in range(REPLICAS)]
    pairs = [pair_all(ours, agent) for agent in theirs]
    for replica, agent in enumerate(theirs):
        networks = [value for value in vars(agent).values() if isinstance(value, nn.Module)]
        covered = {id(pair.theirs) for pair in pairs[replica]}
        assert {id(p) for network in networks for p in network.parameters()} == covered, "one of theirs has no partner"
        copy_weights(pairs[replica], replica)
    modules = [part for part in ours.parts().values() if isinstance(part, nn.Module)]
    mine = {id(p) for module in modules for p in module.parameters()}
    assert mine == {id(pair.ours) for pair in pairs[0]}, "one of ours has no partner"
    return ours, theirs, pairs


def random_batch(generator: torch.Generator, rows: int) -> dict[str, Tensor]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(REPLICAS, rows, *shape, generator=generator, dtype=torch.float64)

    return {
        "observations": normal(TASK.observation_size),
        "actions": (3 * normal(TASK.action_size)).tanh(),  # some beyond the margin
        "next_observations": normal(TASK.observation_size),
        "rewards": normal(),
        "costs": (normal() > 1.5).double(),
        "done": (normal() > 1.2).double(),
    }


def uniform_times(noise: Tensor, steps: int) -> Tensor:
    """Times by the normal distribution's function, one by one."""
    places = [steps * 0.5 * (1 + math.erf(z / math.sqrt(2))) for z in noise.flatten().tolist()]
    return torch.tensor([min(steps - 1, math.floor(place)) for place in places]).view(noise.shape)


@pytest.mark.parametrize("case", CASES)
def test_every_step_agrees_with_the_transcription(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs, pairs = build(case)
    c = ours.config
    masks: list[dict[str, Tensor]] = []
    draw, weighed, met = ours.dropout.draw, fisor_reference.regression_weights, set()

    def recorded(*arguments: Any) -> dict[str, Tensor]:
        masks.append(draw(*arguments))
        return masks[-1]

    def watched(q: Tensor, v: Tensor, g: Tensor, u: Tensor, settings: fisor_reference.Settings) -> Tensor:
        met.update(zip((u > 0).tolist(), (g > 0).tolist(), strict=True))
        return weighed(q, v, g, u, settings)

    monkeypatch.setattr(ours.dropout, "draw", recorded)
    monkeypatch.setattr(fisor_reference, "regression_weights", watched)
    generator = torch.Generator().manual_seed(0)
    half = c.batch_size // 2
    for step in range(STEPS):
        batch = random_batch(generator, c.batch_size)
        noise = {
            name: torch.randn(REPLICAS, *shape, generator=generator, dtype=torch.float64)
            for name, shape in FISOR.noise(c, TASK).items()
        }
        times = uniform_times(noise["times"], c.diffusion_steps)
        assert set(times.unique().tolist()) == set(range(c.diffusion_steps))
        masks.clear()
        metrics = ours.update(batch, noise)
        assert len(masks) == 2
        for replica, agent in enumerate(theirs):
            given = {"times": times[replica].split(half), "normals": noise["actions"][replica].split(half)}
            if c.dropout:
                kept = [mask[replica] for half_masks in masks for mask in half_masks.values()]
                assert len(kept) == 2 * c.blocks
                given["masks"] = tuple(one.double() / (1 - c.dropout) for one in kept)
            logged = agent.step({name: column[replica] for name, column in batch.items()}, given)
            logged["actor_loss"] = (logged.pop("actor_loss_1") + logged.pop("actor_loss_2")) / 2
            for name, value in logged.items():
                found = float(metrics[name.replace("safety", "feasibility")][replica])
                assert found == pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE), (name, replica, step)
    assert len(met) == 4, "some kind of row was never weighed"
    for replica, agent in enumerate(theirs):
        compare(pairs[replica], replica, our_optimizers(ours), optimizers(agent), TOLERANCE, relative=True)


@pytest.mark.parametrize("case", ["published", "fast, clipped, all options"])
def test_acting_agrees_with_the_transcription(case: str) -> None:
    ours, theirs, pairs = build(case)
    c, episodes, size = ours.config, 7, TASK.action_size
    generator = torch.Generator().manual_seed(1)
    chosen, inside = set(), 0
    for replica, agent in enumerate(theirs):
        with torch.no_grad():  # the slow copies differ from what they follow
            for pair in pairs[replica]:
                pair.theirs.add_(0.1 * torch.randn(pair.theirs.shape, generator=generator))
                pair.mine(pair.ours, replica).copy_(pair.theirs)
        (policy,) = ours.policies(replica).values()
        policy.reset(range(episodes), None)
        streams = [torch.Generator().manual_seed(seed) for seed in range(episodes)]
        for _ in range(3):
            seen = torch.randn(episodes, TASK.observation_size, generator=generator, dtype=torch.float64)
            with torch.inference_mode():
                actions = policy.act(seen)
            inside += int((actions.abs() < 1).sum())
            for one, stream in enumerate(streams):
                drawn = torch.randn(c.diffusion_steps * c.samples * size, generator=stream).double()
                noise = drawn.view(c.diffusion_steps, c.samples, size)
                wanted = agent.act(seen[one], list(noise))
                assert (actions[one] - wanted).abs().max() < TOLERANCE, (replica, one)
                candidates = agent.denoise(seen[one].expand(c.samples, -1), list(noise))
                chosen.add(int((candidates - wanted).abs().sum(-1).argmin()))
    assert len(chosen) > 2, "one sample is always taken"
    assert inside > 10, "nearly all actions are clipped"
