"""Folders as OSRL's scripts leave them, made with its own logger."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from harness.errors import UserError
from harness.exchange.importing import import_episodes
from harness.exchange.osrl import read_runs
from harness.exchange.table import Episodes
from harness.report.leaderboard import make_leaderboard, to_markdown
from harness.store import Store
from harness.tasks import all_tasks

EVALUATION = {"eval/Cost": 12.5, "eval/Reward": 300.25, "eval/Length": 300.0}


def run(folder: Path, evaluations: dict[str, float] | None = None, steps: int = 10, **settings: Any) -> Path:
    """Write a run, with an evaluation every five updates."""
    from fsrl.utils.logger.base_logger import BaseLogger

    class Logger(BaseLogger):  # type: ignore[misc, unused-ignore]
        """What OSRL's other loggers add goes to a service, or to files of TensorBoard."""

    config: dict[str, Any] = {
        "prefix": "BCQL",
        "suffix": "",
        "task": "OfflineCarCircle-v0",
        "seed": 0,
        "cost_limit": 10,
        "update_steps": 10,
        "eval_episodes": 20,
        "betas": (0.9, 0.999),
    } | settings
    logger = Logger(str(folder.parent), True, folder.name)
    logger.save_config(config, verbose=False)
    for step in range(steps):
        logger.store(tab="loss", actor=1.0)
        if (step + 1) % 5 == 0:
            for key, value in (EVALUATION if evaluations is None else evaluations).items():
                logger.store(**{key: value})
            logger.write(step, display=False)
    logger.output_file.close()
    return folder


def read(root: Path) -> Episodes:
    return read_runs(root, all_tasks().values())


def test_a_runs_means_are_read(tmp_path: Path) -> None:
    run(tmp_path / "a")
    run(tmp_path / "b", seed=1)
    table = read(tmp_path)
    assert table.problems == []
    assert any("P(safe) and tail cannot be told" in note for note in table.notes)
    first = table.rows.iloc[0].to_dict()
    assert (first["task"], first["policy"], first["seed"], first["cost_limit"]) == (
        "OfflineCarCircle-v0",
        "BCQL",
        0,
        10,
    )
    assert (first["episode_return"], first["cost"], first["length"], first["episodes"]) == (300.25, 12.5, 300, 20)
    assert table.rows["step"].tolist() == [5, 10, 5, 10]  # updates done; the logger counts from 0


def test_its_leaderboard_has_no_figures_of_single_episodes(tmp_path: Path) -> None:
    run(tmp_path / "runs" / "a")
    store = Store(tmp_path / "results")
    plan = import_episodes(store, "theirs", read(tmp_path / "runs")).plan
    text = to_markdown([make_leaderboard(store, plan)])
    (line,) = [line for line in text.splitlines() if "| BCQL [imported] |" in line][:1]
    cells = [cell.strip() for cell in line.split("|")][1:-1]
    assert cells[:2] == ["1", "BCQL [imported]"]
    assert cells[4:7] == ["no", "-", "-"]


def test_cdt_is_told_a_limit_with_each_target(tmp_path: Path) -> None:
    targets = {"cost/c_12_r_450": 9.0, "ret/c_12_r_450": 400.0, "length/c_12_r_450": 300.0}
    targets |= {"cost/c_20_r_500": 19.0, "ret/c_20_r_500": 450.0, "length/c_20_r_500": 300.0}
    run(tmp_path / "a", targets, prefix="CDT", target_returns=((450.0, 12.5), (500.0, 20)))
    table = read(tmp_path)
    last = table.rows[table.rows["step"] == 10]
    assert dict(zip(last["cost_limit"], last["cost"], strict=True)) == {12.5: 9.0, 20.0: 19.0}


def test_two_targets_of_one_cost_are_not_one_policy(tmp_path: Path) -> None:
    targets = {f"{what}/c_10_r_{reward}": 9.0 for what in ("cost", "ret", "length") for reward in (1, 2)}
    run(tmp_path / "a", targets, prefix="CDT")
    with pytest.raises(UserError, match="cost 10 was told with more than one return"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("settings", "policy", "limit"),
    [
        ({"prefix": "BC", "bc_mode": "all"}, "BC-all", None),
        ({"prefix": "BC", "bc_mode": "safe", "cost_limit": 20}, "BC-safe", 20),
        ({"suffix": "wide"}, "BCQL-wide", 10),
    ],
)
def test_whose_run_it_is(tmp_path: Path, settings: dict[str, Any], policy: str, limit: float | None) -> None:
    run(tmp_path / "a", **settings)
    row = read(tmp_path).rows.iloc[0]
    assert row["policy"] == policy
    assert math.isnan(row["cost_limit"]) if limit is None else row["cost_limit"] == limit


def test_a_run_that_was_stopped_counts_as_failed(tmp_path: Path) -> None:
    run(tmp_path / "runs" / "a")
    stopped = run(tmp_path / "runs" / "b", seed=1, steps=5)
    with (stopped / "progress.txt").open("a") as file:
        file.write("9\t1.0\t3")  # cut off
    table = read(tmp_path / "runs")
    assert any("b/progress.txt: its last line was not written to the end" in note for note in table.notes)
    store = Store(tmp_path / "results")
    done = import_episodes(store, "theirs", table)
    assert done.unfinished == 1
    assert [store.status(one.cell).brief for one in done.plan.cells] == ["", "it ends at step 5 of 10"]


def test_a_run_that_is_there_twice_is_named(tmp_path: Path) -> None:
    run(tmp_path / "a")
    run(tmp_path / "b")
    assert read(tmp_path).problems[0] == (
        "b/progress.txt and a/progress.txt are both BCQL on OfflineCarCircle-v0, seed 0, limit 10: leave one out"
    )


def test_what_cannot_be_read_is_named_with_its_file(tmp_path: Path) -> None:
    run(tmp_path / "good")
    run(tmp_path / "normalised", {"eval/normalized_reward": 0.5, "eval/normalized_cost": 0.5}, seed=1)
    run(tmp_path / "unknown", seed=2, task="OfflineNowhere-v0")
    (run(tmp_path / "alone", seed=3) / "config.yaml").unlink()
    (run(tmp_path / "empty", seed=4) / "progress.txt").write_text("")
    (run(tmp_path / "odd", seed=5) / "config.yaml").write_text("[1, 2")
    run(tmp_path / "nan", EVALUATION | {"eval/Cost": math.nan}, seed=6)
    text = "\n".join(read(tmp_path).problems)
    for said in (
        "normalised/progress.txt: needs the columns Steps, eval/Reward, eval/Cost, eval/Length (raw, not normalised)",
        "unknown/progress.txt, line 2 (and 1 more): unknown task 'OfflineNowhere-v0'.",
        "alone/config.yaml: it is not there",
        "empty/progress.txt: no evaluation in it",
        "odd/config.yaml: not valid YAML",
        "nan/progress.txt, line 2: the cost is not a number: 'nan'",
    ):
        assert said in text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"seed": [1]}, "seed is to be int, not [1]"),
        ({"seed": True}, "seed is to be int, not True"),
        ({"task": {"a": 1}}, "task is to be str"),
        ({"cost_limit": "ten"}, "cost_limit is to be int or float, not 'ten'"),
        ({"target_returns": 5}, "target_returns is to be list, not 5"),
        ({"eval_episodes": None}, "it does not say eval_episodes"),
        ({"seed": -1}, "the seed is below 0: '-1'"),
        ({"cost_limit": math.inf}, "the cost limit is not finite: 'inf'"),
        ({"eval_episodes": 0}, "episodes is below 1: '0'"),
        ({"prefix": "B\x1bC"}, "letters that can be printed"),
    ],
)
def test_settings_that_cannot_be_are_named(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    run(tmp_path / "good", seed=9)
    run(tmp_path / "odd", **settings)
    problems = read(tmp_path).problems
    assert any("odd/" in line and said in line for line in problems), problems


def test_steps_that_cannot_be_are_named(tmp_path: Path) -> None:
    path = run(tmp_path / "a") / "progress.txt"
    path.write_text(path.read_text().replace("\n9\t", f"\n{'9' * 5000}\t"))
    (problem,) = read(tmp_path).problems
    assert problem.startswith("a/progress.txt, line 3: the step is")


def test_no_code_in_a_configuration_is_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    folder = run(tmp_path / "runs" / "a")
    path = folder / "config.yaml"
    attack = f"!!python/object/apply:os.system ['touch {marker}']"
    path.write_text(path.read_text() + f"evil: {attack}\n")
    assert read(tmp_path / "runs").problems == []
    assert not marker.exists()
    with pytest.raises(yaml.YAMLError):  # what a plain SafeLoader makes of tuples
        yaml.safe_load(path.read_text())


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run of OSRL's scripts in it"):
        read(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        read(tmp_path / "none")


def test_only_whole_frames_come_out(tmp_path: Path) -> None:
    run(tmp_path / "a")
    assert isinstance(read(tmp_path).rows, pd.DataFrame)
    assert read(tmp_path).rows[["episode_return", "cost", "length", "step", "last"]].notna().all(axis=None)
