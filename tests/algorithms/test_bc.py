"""BC's declarations, what each mode clones, and training against a plain transcription."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from algorithms.bc import BC, BCHyperparameters, Mode
from harness.algorithm import Replica
from harness.data.dataset import Dataset
from harness.errors import UserError
from harness.tasks import find_task

TASK = find_task("BallRun")
MODES = get_args(Mode)
REPLICAS, STEPS, BATCH = 3, 20, 16


def config(mode: Mode, **settings: object) -> BCHyperparameters:
    return BCHyperparameters.model_validate({"mode": mode, "hidden_sizes": (12, 10), **settings})


def dataset(*costs: int) -> Dataset:
    """Trajectories of two steps with these cost returns."""
    rows = 2 * len(costs)
    arrays = {
        "observations": np.zeros((rows, 7), np.float32),
        "next_observations": np.zeros((rows, 7), np.float32),
        "actions": np.zeros((rows, 2), np.float32),
        "rewards": np.arange(rows, dtype=np.float32),
        "costs": np.repeat(np.array(costs, np.float32) / 2, 2),
        "terminals": np.zeros(rows, bool),
        "timeouts": np.arange(rows) % 2 == 1,
    }
    return Dataset(TASK, Path("made-up.hdf5"), "dsrl", arrays)


@pytest.mark.parametrize("mode", MODES)
def test_declarations(mode: Mode) -> None:
    c = config(mode)
    assert BC.policy_names(c) == (f"bc-{mode}",)
    assert BC.depends_on_cost_limit(c) == (mode in {"safe", "risky", "boundary"})
    assert BC.columns(c) == ("observations", "actions") + (("cost_returns",) if mode == "multi-task" else ())
    policies = BC(c, TASK, [Replica(0, 10.0)]).policies(0)
    assert tuple(policies) == BC.policy_names(c)
    assert BC.acts_on_cost_limit(c) == (mode == "multi-task")


def test_published_steps_are_osrls() -> None:
    assert BCHyperparameters().steps == 100_000
    assert (BC.published(TASK), BC.published(find_task("easymean"))) == ({}, {"steps": 200_000})


@pytest.mark.parametrize(
    ("mode", "chosen"),
    [("safe", [0, 1, 2, 3]), ("boundary", [2, 3, 4, 5]), ("risky", [7, 8])],
)
def test_modes_take_whole_trajectories_up_to_the_boundary_cases(mode: Mode, chosen: list[int]) -> None:
    """At limit 10: safe up to 10, boundary from above 5 up to 15, risky from 20."""
    rows = BC.select(dataset(0, 5, 6, 10, 11, 15, 16, 20, 50), config(mode), Replica(0, 10.0)).rows
    assert rows.tolist() == [row for one in chosen for row in (2 * one, 2 * one + 1)]


@pytest.mark.parametrize("mode", ["all", "multi-task"])
def test_modes_that_take_all(mode: Mode) -> None:
    assert BC.select(dataset(0, 50), config(mode), Replica(0)).rows is None


@pytest.mark.parametrize(("mode", "costs"), [("safe", (11, 50)), ("risky", (0, 19)), ("boundary", (5, 16))])
def test_an_empty_selection_is_refused(mode: Mode, costs: tuple[int, ...]) -> None:
    message = (
        f"bc mode '{mode}' selects no trajectory of made-up.hdf5 at cost limit 10.0: "
        f"its 2 trajectories cost {costs[0]} to {costs[1]}"
    )
    with pytest.raises(UserError) as error:
        BC.select(dataset(*costs), config(mode), Replica(0, 10.0))
    assert str(error.value) == message


def test_multi_task_acts_on_the_limit() -> None:
    algorithm = BC(config("multi-task"), TASK, [Replica(0)])
    policy = algorithm.policies(0)["bc-multi-task"]
    observations = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    for limit in (10.0, 40.0):
        policy.reset(range(4), limit)
        inputs = torch.cat([observations, torch.full((4, 1), limit)], 1)
        expected = torch.tanh(algorithm.actor(inputs.unsqueeze(0)))[0]
        torch.testing.assert_close(policy.act(observations), expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="acts on a cost limit, and none was given"):
        policy.reset(range(4), None)


@pytest.mark.parametrize("mode", ["all", "multi-task"])
def test_training_is_the_plain_transcription(mode: Mode) -> None:
    """OSRL's BC, one agent at a time: Adam on the mean squared error of tanh(MLP(s))."""
    replicas = [Replica(seed, None, "task|bc") for seed in range(REPLICAS)]
    generator = torch.Generator().manual_seed(0)
    shape = (STEPS, REPLICAS, BATCH)
    observations = torch.randn(*shape, 7, generator=generator, dtype=torch.float64)
    actions = torch.rand(*shape, 2, generator=generator, dtype=torch.float64) * 2 - 1
    costs = torch.randint(50, shape, generator=generator).double()
    stacked = BC(config(mode), TASK, replicas, dtype=torch.float64)
    agents = [nn.Sequential(*stacked.actor.unstacked(index), nn.Tanh()) for index in range(REPLICAS)]
    losses = []
    for step in range(STEPS):
        batch = {"observations": observations[step], "actions": actions[step]}
        if mode == "multi-task":
            batch["cost_returns"] = costs[step]
        losses.append(stacked.update(batch, {})["actor_loss"])
    assert not losses[0].requires_grad
    for index, agent in enumerate(agents):
        optimizer = torch.optim.Adam(agent.parameters(), lr=1e-3)
        for step in range(STEPS):
            inputs = observations[step, index]
            if mode == "multi-task":
                inputs = torch.hstack((inputs, costs[step, index].reshape(-1, 1)))
            loss = nn.functional.mse_loss(agent(inputs), actions[step, index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert abs(losses[step][index] - loss) < 1e-10
        trained = stacked.policies(index)[f"bc-{mode}"].state_dict()
        for ours, theirs in zip(trained.values(), agent.state_dict().values(), strict=True):
            assert (ours - theirs).abs().max() < 1e-10
    assert losses[-1].shape == (REPLICAS,)
