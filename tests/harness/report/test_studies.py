"""Studies on made-up results: which rows make a curve, what its points are, and that figures show the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from running import suite_plan

from harness.errors import UserError
from harness.plan import Plan, PlannedCell
from harness.planning import make_plan
from harness.report import studies
from harness.report.studies import STUDIES, read_curves, read_limits, read_samples, read_tradeoff
from harness.statistics import interval, mean
from harness.store import Store
from harness.suite import read_suite

PAGES = Path(__file__).parents[3] / "docs" / "studies"
Values = Callable[[PlannedCell, str, float | None], tuple[float, float]]
Results = Callable[[str, Values], tuple[Store, Plan]]
BASE = "name: mine\ndata: {source: demo%s}\ntasks: [BallRun]\nseeds: 3\ncost_limits: %s\nsteps: 9\nalgorithms:\n%s"


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """A store with two episodes of every row: normalised reward, and cost, as ``values(cell, policy, told limit)``."""

    def make(text: str, values: Values) -> tuple[Store, Plan]:
        plan, store = suite_plan(tmp_path, text), Store(tmp_path)
        for planned in plan.cells:
            cell, task = planned.cell, planned.cell.definition
            span = task.max_episode_reward - task.min_episode_reward
            told: tuple[float, ...] = cell.evaluation_limits if cell.told_limit else (float("nan"),)
            rows = [
                {"step": 9, "policy": policy, "cost_limit": limit, "episode": episode, "seed": 0, "length": 9}
                | {"episode_return": task.min_episode_reward + reward * span, "cost": cost + (-1) ** episode}
                for policy in planned.rows
                for limit in told
                for reward, cost in [values(planned, policy, limit)]
                for episode in (0, 1)
            ]
            record = {"dataset": {"sha256": "", "trajectories": round(1000 * cell.data.filters.share)}}
            curve = pd.DataFrame({"step": [9]})
            store.write_results(cell, record, pd.DataFrame(rows), curve, {"p": {"w": torch.zeros(1)}}, {})
        return store, plan

    return make


def curves(table: pd.DataFrame, metric: str) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Value and mean of each point, by method and setting."""
    here = table[table["metric"] == metric]
    return {
        (str(method), str(setting)): list(zip(group["value"], group["mean"].round(6), strict=True))
        for (method, setting), group in here.groupby(["method", "setting"], sort=False)
    }


def test_rows_that_differ_in_one_setting_are_a_curve(results: Results) -> None:
    algorithms = """\
  lspc: {hyperparameters: {batch_size: 8}}
  both: {algorithm: lspc, hyperparameters: {batch_size: 8, max_latent: 2.0, vae_clamp: 2.0}}
  warm: {algorithm: lspc, hyperparameters: {batch_size: 8}, grid: {beta_c: [1.0, 8.0]}}
  kind: {algorithm: lspc, hyperparameters: {batch_size: 8, hidden_sizes: [7]}}
  bc: {grid: {mode: [all, safe]}}
"""

    def values(planned: PlannedCell, policy: str, limit: float | None) -> tuple[float, float]:
        cell = planned.cell
        if cell.algorithm == "bc":
            return 0.1, (cell.cost_limit or 50) / 2
        reward = 0.1 * cell.hyperparameters["beta_c"] + 0.01 * cell.hyperparameters["max_latent"]
        return reward + (0.5 if policy == "lspc-o" else 0) + 0.001 * cell.seed, 30

    store, plan = results(BASE % ("", "[10, 20]", algorithms), values)
    found = curves(read_tradeoff(store, [plan]), "reward")
    assert found == {
        (f"lspc-{policy}", setting): [(value, round(mean + more, 6)) for value, mean in points]
        for policy, more in (("s", 0.001), ("o", 0.501))  # the seeds' mean, 0.001
        for setting, points in {
            "vae_clamp max_latent": [(0.6, 0.206), (2.0, 0.22)],
            "beta_c": [(2.0, 0.206), (1.0, 0.106), (8.0, 0.806)],
        }.items()
    } | {
        ("lspc-s [kind]", ""): found["lspc-s [kind]", ""],  # not a number (of values)
        ("lspc-o [kind]", ""): found["lspc-o [kind]", ""],
        ("bc-all", ""): found["bc-all", ""],
        ("bc-safe", "limit"): [(10.0, 0.1), (20.0, 0.1)],
    }
    assert [len(found[method, ""]) for method in ("lspc-s [kind]", "bc-all")] == [1, 1]
    costs = curves(read_tradeoff(store, [plan]), "episode_cost")
    assert costs["bc-safe", "limit"] == [(10.0, 5.0), (20.0, 10.0)]
    # At both limits together: the cost is 30, or normalised 3 and 1.5; of two episodes neither is within 10 or 20.
    together = read_curves(store, [plan])
    assert curves(together, "cost")["lspc-o", "beta_c"] == [(2.0, 2.25), (1.0, 2.25), (8.0, 2.25)]
    assert curves(together, "violation")["bc-safe", ""][0][1] == 0
    assert set(together["data"]) == {"demo data, not DSRL"}
    assert set(together["seeds"]) == {3}


def test_intervals_are_those_of_the_mean_over_seeds(results: Results) -> None:
    rewards = (0.1, 0.7, 0.2)
    store, plan = results(BASE % ("", "[10]", "  bc:"), lambda planned, *_: (rewards[planned.cell.seed], 5.0))
    table = read_curves(store, [plan]).set_index("metric")
    low, high = interval(np.array(rewards)[:, None], mean)
    found = table.loc["reward", ["mean", "low", "high"]].to_numpy(dtype=float)
    np.testing.assert_allclose(found, (np.mean(rewards), low, high), rtol=1e-6)
    assert table.loc["cost", "low"] == table.loc["cost", "high"] == 0.5
    store, plan = results(BASE.replace("seeds: 3", "seeds: 1") % ("", "[10]", "  bc:"), lambda *_: (0.3, 5.0))
    table = read_curves(store, [plan])
    assert table[["low", "high"]].isna().all(axis=None)


def test_every_limit_is_a_point_where_limits_are_asked_for(results: Results) -> None:
    algorithms = "  bc: {grid: {mode: [all, multi-task]}}"
    told = {"bc-multi-task": lambda limit: limit / 2, "bc-all": lambda limit: 15.0}
    store, plan = results(BASE % ("", "[10, 20, 40]", algorithms), lambda _, policy, limit: (0.5, told[policy](limit)))
    table = read_limits(store, [plan])
    assert curves(table, "episode_cost") == {
        ("bc-all", "limit"): [(10.0, 15.0), (20.0, 15.0), (40.0, 15.0)],
        ("bc-multi-task", "limit"): [(10.0, 5.0), (20.0, 10.0), (40.0, 20.0)],
    }
    assert curves(table, "violation")["bc-all", "limit"] == [(10.0, 1.0), (20.0, 0.0), (40.0, 0.0)]


def test_a_seed_without_every_limit_is_left_out_of_means_over_them(results: Results) -> None:
    store, plan = results(
        BASE % ("", "[10, 20]", "  bc: {hyperparameters: {mode: safe}}"),
        lambda planned, *_: (planned.cell.seed / 10, 5.0),
    )
    store.forget(next(one.cell for one in plan.cells if (one.cell.seed, one.cell.cost_limit) == (2, 10)))
    together = read_curves(store, [plan])
    assert set(together["seeds"]) == {2}
    assert curves(together, "reward")["bc-safe", ""][0][1] == 0.05
    apart = read_tradeoff(store, [plan])
    assert curves(apart, "reward")["bc-safe", "limit"] == [(10.0, 0.05), (20.0, 0.1)]
    for planned in plan.cells:
        store.forget(planned.cell)
    assert read_curves(store, [plan]).empty


def test_samples_count_trajectories_and_know_their_gaps(results: Results) -> None:
    algorithms = "  bc:\n  lspc: {hyperparameters: {batch_size: 8}}"
    grid = ", grid: {share: [1.0, 0.1, 0.01]}"

    def values(planned: PlannedCell, policy: str, limit: float | None) -> tuple[float, float]:
        share = planned.cell.data.filters.share
        return {"bc-all": 0.8, "lspc-o": 0.6, "lspc-s": 0.2}[policy] * (0.5 + share / 2) + 0.01 * planned.cell.seed, 5.0

    store, plan = results(BASE % (grid, "[10]", algorithms), values)
    table = read_samples(store, [plan])
    assert set(table["setting"]) == {"trajectories"}
    best = 0.81
    assert curves(table, "gap")["lspc-o", "trajectories"] == [
        (1000.0, round(best - 0.61, 6)),
        (100.0, round(best - 0.34, 6)),
        (10.0, round(best - 0.313, 6)),
    ]
    assert curves(table, "gap_reference")["bc-all", "trajectories"][0] == (1000.0, 0.19)
    gaps = table[table["metric"].isin(["gap", "gap_reference"])]
    assert (gaps["low"] < gaps["mean"]).all()
    assert (gaps["mean"] < gaps["high"]).all()


# The suites that ship

SWEPT = {
    "scarcity": {"share", "safe_share", "density"},
    "noise": {"noise", "outliers"},
    "samples": {"share"},
    "tradeoff": {"vae_clamp max_latent", "beta_c", "cap_c", "cost_scale", "safety_threshold"},
    "limits": {"limit"},
}


@pytest.mark.parametrize("name", SWEPT)
def test_the_suites_of_a_study_vary_one_thing_at_a_time(name: str) -> None:
    settings: dict[tuple[str, str], set[str]] = {}
    judged: Any = {"tradeoff": "where known", "limits": "apart"}.get(name, "together")
    for suite in STUDIES[name].suites:
        plan = make_plan(read_suite(suite, ["data.source=demo"]))
        for setting, _, point in studies._curves(plan, judged):
            settings.setdefault((point.cell.task, point.method), set()).add(setting)
    for (_, method), found in settings.items():
        alone = {"lspc-s": {""}, "lspc-o": {""}, "bc-safe": {"limit"}, "cdt": {"limit"}} if name == "tradeoff" else {}
        assert found == alone.get(method, SWEPT[name]), method
    published = {"lspc-s", "lspc-o"} if name in ("tradeoff", "limits") else set()
    assert {method for _, method in settings} >= {"lspc-s [lspc-live]", "lspc-o [lspc-live]", *published}


def test_cells_that_studies_share_are_run_once() -> None:
    def cells(*suites: str) -> set[str]:
        plans = [make_plan(read_suite(suite, ["data.source=demo"])) for suite in suites]
        return {planned.cell.hash for plan in plans for planned in plan.cells if planned.cell.algorithm == "lspc"}

    assert cells("study-samples") == cells("study-scarcity")
    base = cells("study-limits")
    assert len(base) == 2 * 3  # both variants; trade-off starts there
    assert base < cells("study-tradeoff")
    whole = cells("study-scarcity")
    for suite in ("study-scarcity-safe", "study-density", "study-noise", "study-outliers"):
        assert len(whole & cells(suite)) == 3, suite  # of all the data, as it is


# Tables and figures


def made_up(name: str) -> pd.DataFrame:
    """A table of the study's kind."""
    if name == "scaling":
        place = {"machine": "abacus", "batch_size": 4}
        points = [
            {**place, "method": method, "observation_size": size, "metric": metric, "median": size / 7}
            | {"low": size / 8, "high": size / 6}
            for method in ("bc", "lspc")
            for size in (16, 64, 4096)
            for metric in ("update_ms", "act_ms")
        ]
        return pd.DataFrame(points)
    if name == "selection":
        points = [
            {"data": "made-up data", "suite": "s", "of": of, "policy": policy, "rule": rule, "reward": 0.3, "cost": 0.5}
            | {"violations": 0.25, "regret": regret, "regret_low": -0.1, "regret_high": 0.4, "seeds": 3, "runs": 6}
            for of in ("checkpoint", "policy")
            for policy in ("", "lspc-o")
            for rule, regret in (("last", 0.2), ("FQE", 0.1), ("best of evaluations", 0.0))
        ]
        return pd.DataFrame(points)
    generator = np.random.default_rng(0)
    sweeps = {"tradeoff": ["beta_c", "limit"], "samples": ["trajectories"]}.get(name, sorted(SWEPT[name]))
    lines = []
    for task in ("BallRun", "BallCircle"):
        for method in ("lspc-s", "lspc-o", "lspc-o [lspc-live]", "bc-safe"):
            for setting in sweeps:
                for value in (0.01, 0.1, 1.0):
                    for metric in ("reward", "cost", "episode_cost", "violation", "gap", "gap_reference"):
                        middle = generator.uniform()
                        lines.append(
                            {"data": "made-up data", "task": task, "method": method, "setting": setting, "value": value}
                            | {"metric": metric, "mean": middle, "low": middle - 0.1, "high": middle + 0.1, "seeds": 3}
                        )
    return pd.DataFrame(lines)


@pytest.mark.parametrize("name", STUDIES)
def test_a_table_read_again_is_the_same_and_draws_the_same(name: str, tmp_path: Path) -> None:
    paths = studies.write(STUDIES[name], made_up(name), tmp_path / "a")
    assert [path.name for path in paths] == [f"{name}.csv", f"{name}.png"]
    again = studies.write(STUDIES[name], studies.read_csv(paths[0]), tmp_path / "b")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]
    if name == "limits":  # other numbers are another picture
        changed = made_up(name).assign(mean=0.5)
        assert studies.write(STUDIES[name], changed, tmp_path / "c")[1].read_bytes() != paths[1].read_bytes()


@pytest.mark.parametrize("name", ["scarcity", "noise", "samples", "limits"])
def test_every_point_of_the_table_is_in_the_figure(name: str) -> None:
    table = made_up(name)
    figure = STUDIES[name].draw(table, "Title")
    drawn = {
        (round(x, 9), round(y, 9))
        for axes in figure.axes
        for line in axes.containers
        for x, y in zip(*line.lines[0].get_data(), strict=True)
    }
    shown = {
        "scarcity": ("reward", "cost"),
        "noise": ("reward", "cost"),
        "samples": ("gap", "gap_reference", "violation"),
        "limits": ("episode_cost", "violation", "reward"),
    }[name]
    here = table[table["metric"].isin(shown)]
    assert drawn == set(zip(here["value"].round(9), here["mean"].round(9), strict=True))
    assert figure.get_suptitle().startswith("Title\nTrained on made-up data;")


def test_the_trade_off_is_drawn_cost_against_reward_with_the_limits() -> None:
    table = made_up("tradeoff")
    figure = STUDIES["tradeoff"].draw(table, "Title")
    assert [axes.get_title() for axes in figure.axes] == ["BallRun: beta_c", "BallCircle: beta_c"]
    wide = table[table["task"] == "BallRun"].pivot(
        index=["method", "setting", "value"], columns="metric", values="mean"
    )
    axes = figure.axes[0]
    drawn = {point for line in axes.containers for point in zip(*line.lines[0].get_data(), strict=True)}
    assert drawn == set(zip(wide["episode_cost"], wide["reward"], strict=True))
    lines = {line.get_xdata()[0] for line in axes.get_lines() if len(set(line.get_xdata())) == 1}
    assert lines >= {10.0, 20.0, 40.0}


def test_a_table_of_another_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no table of the study 'limits': it has no data, task, setting, value, mean"):
        studies.write(STUDIES["limits"], made_up("scaling"), tmp_path)
    with pytest.raises(UserError, match=r"nowhere.csv: cannot read the study's table"):
        studies.read_csv(tmp_path / "nowhere.csv")


@pytest.mark.parametrize("name", STUDIES)
def test_the_committed_figures_are_drawn_from_the_committed_tables(name: str, tmp_path: Path) -> None:
    """If not: lspc-bench study NAME --from docs/studies/NAME.csv --output docs/studies."""
    page = (PAGES / f"{name}.md").read_text()
    assert f"lspc-bench study {name}" in page
    for suite in STUDIES[name].suites:
        assert suite in page
    table = PAGES / f"{name}.csv"
    if not table.exists():
        assert f"{name}.png" not in page
        return
    assert f"({name}.png)" in page
    assert studies.to_csv(studies.read_csv(table)) == table.read_text()
    assert studies.write(STUDIES[name], studies.read_csv(table), tmp_path)[1].stat().st_size > 10_000
