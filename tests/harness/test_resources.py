"""What algorithms take: counts that can be worked out by hand, and times on a clock that the algorithm moves itself."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from algorithms.ccac import CCAC
from harness import resources
from harness.errors import UserError
from harness.plan import Plan
from harness.planning import make_plan
from harness.resources import Resources, measure, task_of
from harness.suite import SuiteFile
from harness.tasks import find_task

TASK = find_task("BallRun")
SMALL = "batch_size: 4, actor_hidden_sizes: [5, 6], critic_hidden_sizes: [5, 6]"
SUITE = f"""
name: few
tasks: [CarRun, BallRun]
seeds: 2
algorithms:
  bc: {{hyperparameters: {{batch_size: 4, hidden_sizes: [5, 6]}}, grid: {{mode: [all, safe]}}}}
  caps: {{hyperparameters: {{{SMALL}}}}}
  lspc: {{hyperparameters: {{batch_size: 4, hidden_sizes: [5, 6], latent_dim: 3}}}}
"""


@pytest.fixture
def plan(write_suite: Callable[[str], Path]) -> Plan:
    return make_plan(SuiteFile(write_suite(SUITE)))


@pytest.fixture(autouse=True)
def no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "SECONDS", 0.0)


def mlp(*sizes: int) -> int:
    return sum((before + 1) * after for before, after in pairwise(sizes))


def test_every_policy_of_every_experiment_once(plan: Plan) -> None:
    found = {one.row: one for one in measure(plan, TASK)}
    assert list(found) == ["bc-all", "bc-safe", "caps-iql", "lspc-s", "lspc-o"]
    for one in found.values():
        assert isinstance(one, Resources)
        assert min(one.seconds, one.flops, one.memory, one.policy_parameters, *one.milliseconds.values()) > 0
        assert list(one.milliseconds) == [1, 10]
    state, action = TASK.observation_size, TASK.action_size
    actor, critic, value = (
        mlp(state, 5, 6, 2 * action),
        mlp(state + action, 5, 6, 1),
        mlp(state, 5, 6, 1),
    )
    assert found["bc-all"].parameters == found["bc-safe"].policy_parameters == mlp(state, 5, 6, action)
    assert found["bc-all"].flops == 3 * 2 * 4 * (state * 5 + 5 * 6 + 6 * action) - 2 * 4 * state * 5
    # Two heads, and two critics and a value of reward and of cost; targets are not trained, and values do not act.
    assert found["caps-iql"].parameters == actor + 2 * (2 * critic + value)
    assert found["caps-iql"].policy_parameters == actor + 4 * critic
    assert found["lspc-s"].parameters == found["lspc-o"].parameters > found["lspc-o"].policy_parameters
    assert found["lspc-o"].policy_parameters > found["lspc-s"].policy_parameters


def test_phases_count_by_their_share(write_suite: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    small = "vae_hidden_sizes: [4], classifier_hidden_sizes: [4], multiplier_hidden_sizes: [4]"
    text = (
        f"name: one\ntasks: [BallRun]\nalgorithms: {{ccac: {{hyperparameters: {{warm_up: 0.25, {SMALL}, {small}}}}}}}"
    )
    plan = make_plan(SuiteFile(write_suite(text)))
    now, update = 0.0, CCAC.update

    def slow(self: CCAC, *arguments: Any) -> dict[str, Tensor]:
        nonlocal now
        now += 1.0 if self.variant(self.step) == "warm-up" else 5.0
        return update(self, *arguments)

    monkeypatch.setattr(CCAC, "update", slow)
    monkeypatch.setattr(resources.time, "perf_counter", lambda: now)
    monkeypatch.setattr(resources, "act_milliseconds", lambda *_: {})  # it has the same clock
    for seconds in (0.0, 7.0):
        monkeypatch.setattr(resources, "SECONDS", seconds)
        (one,) = measure(plan, TASK)
        assert one.seconds == pytest.approx(1000 * (0.25 * 1 + 0.75 * 5), rel=0.02)


def test_a_task_of_the_suite(plan: Plan) -> None:
    assert task_of(plan, None).name == plan.cells[0].cell.definition.name
    assert task_of(plan, "CarRun") == task_of(plan, "OfflineCarRun-v0") == find_task("CarRun")
    with pytest.raises(UserError, match=r"the suite few has no task 'BalRun'\. Did you mean 'BallRun'\?"):
        task_of(plan, "BalRun")
