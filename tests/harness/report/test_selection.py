"""Selection by the data alone, on made-up results with regrets computed by hand."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from running import suite_plan

from harness.report.selection import (
    FQE,
    HELD_OUT,
    LAST,
    PEEKS,
    Outcome,
    SelectionReport,
    best_by_roll_outs,
    make_report,
    to_csv,
    to_json,
    to_markdown,
)
from harness.statistics import checkpoint_episodes
from harness.store import DIAGNOSTICS, Store
from harness.tasks import find_task

SUITE = """
name: made-up
tasks: [BallRun]
algorithms: {{bc: {{grid: {{mode: [all, safe]}}}}}}
seeds: {seeds}
cost_limits: [20]
steps: 300
evaluation: {{every: 100, fqe: {{gamma: 0.9}}}}
"""
TASK = find_task("BallRun")
FACTOR = TASK.max_episode_steps * (1 - 0.9)

# Of each policy at the steps 100, 200 and 300: normalised reward and cost, predicted reward and cost, action error.
# By roll-outs bc-all is best at step 200; FQE takes step 100, held-out loss 300.
Point = tuple[float, float, float, float, float]
POINTS: dict[str, list[Point]] = {
    "bc-all": [(0.5, 0.5, 0.9, 0.5, 3.0), (0.75, 1.0, 0.6, 0.3, 2.0), (1.0, 1.5, 2.0, 1.1, 1.0)],
    "bc-safe": [(0.2, 2.0, 0.2, 3.0, 2.0), (0.4, 1.25, 0.4, 2.0, 1.0), (0.3, 1.4, 0.3, 2.5, 3.0)],
}

Make = Callable[..., SelectionReport]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(
        seeds: int = 1,
        change: Callable[[str, int, int, Point], Point] = lambda policy, seed, step, point: point,
        suite: str = SUITE,
        steps: tuple[int, ...] = (100, 200, 300),
        diagnosed: bool = True,
    ) -> SelectionReport:
        plan, store = suite_plan(tmp_path, suite.format(seeds=seeds)), Store(tmp_path)
        span = TASK.max_episode_reward - TASK.min_episode_reward
        for planned in plan.cells:
            ((policy, row),) = planned.rows.items()
            episodes, diagnostics = [], []
            for step, point in zip((100, 200, 300), POINTS[row], strict=True):
                reward, cost, fqe_return, fqe_cost, error = change(row, planned.cell.seed, step, point)
                if step not in steps:
                    continue
                measured = {
                    "fqe_return": (TASK.min_episode_reward + fqe_return * span) / FACTOR,
                    "fqe_cost": fqe_cost * 20 / FACTOR,
                    "action_error": error,
                }
                diagnostics += [(step, policy, np.nan, *metric) for metric in measured.items()]
                for index, off in enumerate((-0.1, 0.1)):  # of two episodes, whose mean it is
                    here = {"step": step, "policy": policy, "cost_limit": np.nan, "episode": index, "seed": index}
                    raw = TASK.min_episode_reward + (reward + off) * span
                    episodes.append({**here, "episode_return": raw, "cost": (cost + off) * 20, "length": 9})
            store.write_results(
                planned.cell,
                {},
                pd.DataFrame(episodes),
                pd.DataFrame({"step": [300]}),
                {policy: {"w": torch.zeros(1)}},
                {},
                pd.DataFrame(diagnostics, columns=list(DIAGNOSTICS)) if diagnosed else None,
            )
        report = make_report(store, plan)
        assert make_report(store, plan, checkpoint_episodes(store, plan)) == report
        return report

    return make


def numbers(found: list[Outcome], policy: str) -> dict[str, tuple[float, float, float, float]]:
    """Reward, cost, violations and regret by rule."""
    return {
        one.rule: tuple(round(value, 9) for value in (one.reward, one.cost, one.violations, one.regret))
        for one in found
        if one.policy == policy
    }


def test_choices_and_regrets_by_hand(make: Make) -> None:
    report = make()
    assert numbers(report.checkpoints, "bc-all") == {
        "at random": (0.75, 1.0, round(1 / 3, 9), 0.0),
        "last": (1.0, 1.5, 1.0, -0.25),
        "FQE": (0.5, 0.5, 0.0, 0.25),  # step 300 promises more, at too high a cost
        "held-out loss": (1.0, 1.5, 1.0, -0.25),
        "best of evaluations": (0.75, 1.0, 0.0, 0.0),  # a mean cost of exactly the limit is within it
    }
    assert numbers(report.checkpoints, "bc-safe") == {
        "at random": (0.3, 1.55, 1.0, 0.1),
        "last": (0.3, 1.4, 1.0, 0.1),
        "FQE": (0.4, 1.25, 1.0, 0.0),  # nothing is predicted to be safe: the least cost
        "held-out loss": (0.4, 1.25, 1.0, 0.0),
        "best of evaluations": (0.4, 1.25, 1.0, 0.0),
    }
    assert numbers(report.checkpoints, "")["FQE"] == (0.45, 0.875, 0.5, 0.125)
    assert [one.runs for one in report.checkpoints] == [2] * 5 + [1] * 10
    # Among the policies at their last checkpoints: all (1.0, 1.5) and safe (0.3, 1.4), both unsafe.
    assert numbers(report.policies, "") == {
        "at random": (0.65, 1.45, 1.0, -0.35),
        "FQE": (1.0, 1.5, 1.0, -0.7),
        "held-out loss": (1.0, 1.5, 1.0, -0.7),
        "best of evaluations": (0.3, 1.4, 1.0, 0.0),
    }
    assert report.notes == []


def test_the_interval_is_over_seeds(make: Make) -> None:
    """The last checkpoint's regrets are -0.25 and 0.1 with seed 0, 0.5 more of both with seed 1."""

    def change(policy: str, seed: int, step: int, point: Point) -> Point:
        return (point[0] - 0.5 * seed, *point[1:]) if step == 300 else point

    report = make(seeds=2, change=change)
    (last,) = (one for one in report.checkpoints if (one.rule, one.policy) == (LAST.name, "bc-all"))
    assert (last.seeds, last.runs, round(last.regret, 9)) == (2, 2, 0.0)
    assert last.interval == pytest.approx((-0.25, 0.25))
    (overall,) = (one for one in report.checkpoints if (one.rule, one.policy) == (LAST.name, ""))
    assert overall.interval == pytest.approx((-0.075, 0.425))
    assert overall.runs == 4
    assert make(seeds=1).checkpoints[0].interval is None


def test_what_a_rule_knows_nothing_of_is_said(make: Make) -> None:
    def change(policy: str, seed: int, step: int, point: Point) -> Point:
        return (*point[:2], np.nan, np.inf, np.nan) if policy == "bc-all" else point

    report = make(change=change)
    assert FQE.name not in numbers(report.checkpoints, "bc-all")
    assert numbers(report.checkpoints, "") == numbers(report.checkpoints, "bc-safe")
    assert numbers(report.policies, "")[FQE.name] == (0.3, 1.4, 1.0, 0.0)
    assert report.notes == [
        f"{name} knows nothing of bc-all; over all policies, runs that it cannot judge are out."
        for name in (FQE.name, HELD_OUT.name)
    ]


def test_without_estimates_the_other_rules_stay(make: Make) -> None:
    report = make(diagnosed=False)
    assert list(numbers(report.checkpoints, "")) == ["at random", LAST.name, PEEKS.name]
    assert [note.partition(" has nothing")[0] for note in report.notes] == [FQE.name, HELD_OUT.name]


def test_one_checkpoint_is_no_choice(make: Make) -> None:
    report = make(steps=(300,))
    assert report.checkpoints == []
    assert len(report.policies) == 4
    assert "evaluation.every" in report.notes[0]


def test_without_results_the_suite_is_not_said_to_ask_for_too_little(tmp_path: Path) -> None:
    report = make_report(Store(tmp_path), suite_plan(tmp_path, SUITE.format(seeds=1)))
    assert (report.checkpoints, report.policies) == ([], [])
    assert not [note for note in report.notes if "does not ask" in note]


def test_formats_agree(make: Make) -> None:
    report = make(seeds=2)
    from_csv = list(csv.DictReader(io.StringIO(to_csv([report]))))
    (suite,) = json.loads(to_json([report]))
    assert [
        {key: "" if value is None else str(value) for key, value in row.items()} for row in suite["rows"]
    ] == from_csv
    assert {row["of"] for row in from_csv} == {"checkpoint", "policy"}
    page = to_markdown([report])
    assert page.count("peeks (online selection)") == 2
    shown = [line for line in page.splitlines() if line.startswith("| ") and "| rule" not in line and "---" not in line]
    for line, row in zip(shown, from_csv, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        expected = [row["policy"] or "all", row["rule"], *(f"{float(row[key]):.3f}" for key in ("reward", "cost"))]
        expected += [f"{float(row[key]):.3f}" for key in ("violations", "regret")]
        expected += [f"{float(row['regret_low']):.3f} to {float(row['regret_high']):.3f}", row["seeds"], row["runs"]]
        assert cells == expected


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.9, 1.0, 1.1, 2.0])),
        min_size=1,
    )
)
def test_of_all_runs_at_once_the_same_checkpoints_are_chosen(rows: list[tuple[str, float, float]]) -> None:
    means = pd.DataFrame(rows, columns=["row", "reward", "cost"]).assign(step=range(len(rows)))
    chosen = best_by_roll_outs(means, ["row"])
    one_by_one = [group.iloc[PEEKS.choose(group)] for _, group in means.groupby("row")]
    pd.testing.assert_frame_equal(chosen, pd.concat(one_by_one))
