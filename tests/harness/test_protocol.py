"""Protocols are named by their limits, and told apart."""

from __future__ import annotations

import pytest

from harness.planning import make_plan
from harness.protocol import NAMED, Protocol
from harness.statistics import WHOLE
from harness.suite import read_suite
from harness.tasks import FAMILIES, Task, all_tasks, find_task


@pytest.mark.parametrize(
    ("suite", "name"),
    [
        ("dsrl", "dsrl"),
        ("dsrl-velocity", "dsrl"),
        ("dsrl-strict", "strict"),
        ("limit-sweep", "limits 2.5, 5, 10, 20, 40, 80"),
        ("evidence-small", "limits 5, 10, 20, 40"),
    ],
)
def test_of_built_in_suites(suite: str, name: str) -> None:
    plan = make_plan(read_suite(suite))
    limits = WHOLE.limits(plan)
    assert Protocol.of((task, limits[one]) for one, task in plan.tasks.items()).name == name


def test_the_named_ones_are_what_the_literature_has() -> None:
    assert all(set(limits) == set(FAMILIES) for limits in NAMED.values())
    assert NAMED["dsrl"]["bullet"] == NAMED["dsrl"]["metadrive"] == (10, 20, 40)
    assert NAMED["dsrl"]["navigation"] == NAMED["dsrl"]["velocity"] == (20, 40, 80)
    assert {task.cost_limits for task in all_tasks().values() if task.family == "velocity"} == {(20, 40, 80)}
    assert set(NAMED["copdt"].values()) == {(10, 20, 40, 80)}
    assert {family: limits for family, limits in NAMED["strict"].items() if limits == (10,)}.keys() == {
        *("navigation", "velocity")
    }


def test_limits_of_one_family_are_no_limits_of_another() -> None:
    ball, goal = find_task("BallRun"), find_task("PointGoal1")
    assert Protocol.of([(ball, (40, 10, 20))]).name == "dsrl"
    assert Protocol.of([(goal, (10, 20, 40))]).name == "limits 10, 20, 40"
    mixed = Protocol.of([(ball, (10, 20, 40)), (goal, (10, 20, 40))])
    assert mixed.name == "limits 10, 20, 40"
    assert Protocol.of([(ball, (5,)), (goal, (10,))]).describe() == (
        "strict: cost limit 5 (bullet) and 10 (navigation); returns and costs as DSRL normalises them"
    )
    assert Protocol.of([(ball, (5,)), (goal, (20,))]).name == "limit 5 (bullet) and 20 (navigation)"
    assert Protocol.together([Protocol.of([(ball, (5,))]), Protocol.of([(goal, (10,))])]).name == "strict"


def test_own_tasks_normalise_as_their_suite_says() -> None:
    sizes = {"max_episode_steps": 9, "observation_size": 1, "action_size": 1, "dataset_file": ""}
    scores = {"min_episode_reward": 0, "max_episode_reward": 1, "min_episode_cost": 0, "max_episode_cost": 1}
    own = Task(id="Reach", name="Reach", family="own", cost_limits=(10,), **sizes, **scores)  # type: ignore[arg-type]
    assert Protocol.of([(own, (10,))]).name == "limit 10, normalisation own"
    assert Protocol.of([(own, (10,)), (find_task("BallRun"), (10,))]).normalisation == "dsrl and own"
