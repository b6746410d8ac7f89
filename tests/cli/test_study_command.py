"""``lspc-bench study`` as a user types it: each study end to end, small, on the data that ships."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from harness.cli import main
from harness.executors.local import LocalExecutor
from harness.report.questions import QUESTIONS
from harness.report.studies import STUDIES
from harness.store import Store

TINY = {"batch_size": 8, "hidden_sizes": [8], "latent_dim": 2}
ALGORITHMS: dict[str, dict[str, object]] = {
    "tradeoff": {
        "lspc": {"hyperparameters": TINY},
        "warm": {"algorithm": "lspc", "hyperparameters": TINY, "grid": {"beta_c": [1.0]}},
        "bc": {"hyperparameters": {"mode": "safe", "batch_size": 8, "hidden_sizes": [8]}},
    }
}
BC = {"bc": {"hyperparameters": {"batch_size": 8, "hidden_sizes": [8]}}}


def call(*arguments: object) -> Result:
    """The command line in this process."""
    return CliRunner().invoke(main, ["study", *(str(argument) for argument in arguments)])


def settings(name: str) -> list[str]:
    """What makes a study tiny: other algorithms, one task, two steps. What is swept in the data stays."""
    chosen = {
        "algorithms": ALGORITHMS.get(name, BC),
        **{"data.source": "demo", "tasks": ["BallRun"], "seeds": 2, "steps": 2},
        "evaluation": {"final": 1, "every": 1, "episodes": 1} if name == "selection" else {"final": 1},
    }
    return [option for key, value in chosen.items() for option in ("--set", f"{key}={json.dumps(value)}")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results and figures of the study limits."""
    folder = tmp_path_factory.mktemp("limits")
    result = call("limits", "--results", folder / "runs", "--output", folder, "--workers", 0, *settings("limits"))
    assert result.exit_code == 0, result.output
    return folder


@pytest.mark.parametrize("name", [name for name, study in STUDIES.items() if study.suites])
def test_a_study_runs_its_suites_and_draws(name: str, tmp_path: Path) -> None:
    arguments = (name, "--results", tmp_path / "runs", "--output", tmp_path, "--workers", 0, *settings(name))
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    suites = STUDIES[name].suites
    assert {plan.suite for plan in Store(tmp_path / "runs").plans()} == set(suites)
    assert result.stdout.splitlines()[-2:] == [f"Wrote {tmp_path}/{name}.{kind}." for kind in ("csv", "png")]
    table = pd.read_csv(tmp_path / f"{name}.csv")
    assert len(table)
    assert set(table["data"]) == {"demo data, not DSRL"}
    again = call(*arguments)
    assert again.exit_code == 0
    for suite in suites:
        assert f"{suite}: 0 done, 0 failed, " in again.stdout


def test_without_a_name_the_studies_are_listed() -> None:
    result = call()
    assert result.exit_code == 0
    lines = result.stdout.splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(STUDIES)
    for name, line in zip(STUDIES, lines, strict=True):
        assert QUESTIONS[name] in line


def test_drawing_alone_runs_nothing_and_says_what_is_missing(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "runs", tmp_path / "runs")
    store = Store(tmp_path / "runs")
    store.forget(store.plans()[0].cells[0].cell)
    result = call("limits", "--results", tmp_path / "runs", "--output", tmp_path, "--draw-only")
    assert result.exit_code == 0
    assert "1 of the study's 2 cells have no results and are left out." in result.stderr
    assert set(pd.read_csv(tmp_path / "limits.csv")["seeds"]) == {1}
    store.forget(store.plans()[0].cells[1].cell)
    nothing = call("limits", "--results", tmp_path / "runs", "--output", tmp_path, "--draw-only")
    assert nothing.exit_code == 2
    assert "none of the study's 2 cells is done" in nothing.output
    absent = call("limits", "--results", tmp_path / "nowhere", "--draw-only")
    assert absent.exit_code == 2
    assert "no results folder" in absent.output


def test_a_figure_is_drawn_again_from_its_table_alone(finished: Path, tmp_path: Path) -> None:
    result = call("limits", "--from", finished / "limits.csv", "--output", tmp_path / "again")
    assert result.exit_code == 0, result.output
    for kind in ("csv", "png"):
        assert (tmp_path / "again" / f"limits.{kind}").read_bytes() == (finished / f"limits.{kind}").read_bytes()
    both = call("limits", "--from", finished / "limits.csv", "--draw-only")
    assert both.exit_code == 2
    wrong = call("scaling", "--from", finished / "limits.csv", "--output", tmp_path)
    assert wrong.exit_code == 2
    assert "no table of the study 'scaling'" in wrong.output


def test_what_failed_is_left_out_of_the_figure_and_of_the_exit_status(plugins: Path, tmp_path: Path) -> None:
    """One of two seeds diverges: the other one is drawn, and the status says so."""
    toy = {"toy": {"hyperparameters": {"failure": "nan", "failing_seed": 1, "failing_step": 1}}}
    options = [*settings("limits"), "--set", f"algorithms={json.dumps(toy)}"]
    result = call("limits", "--results", tmp_path / "runs", "--output", tmp_path, "--workers", 0, *options)
    assert result.exit_code == 1, result.output
    assert "1 of the study's 2 cells have no results" in result.stderr
    assert (tmp_path / "limits.png").exists()


def test_an_interrupt_says_what_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: LocalExecutor, jobs: object, over: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalExecutor, "run", interrupted)
    result = call("noise", "--results", tmp_path / "runs", "--output", tmp_path, *settings("noise"))
    assert result.exit_code == 130
    said = shlex.join(["--results", str(tmp_path / "runs"), "--output", str(tmp_path), *map(str, settings("noise"))])
    assert f"cells are done. 'lspc-bench study noise {said}' resumes it." in result.stderr
    assert [plan.suite for plan in Store(tmp_path / "runs").plans()] == ["study-noise"]
    assert not (tmp_path / "noise.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["limit"], "no such study: 'limit'. Did you mean 'limits'? Known: tradeoff, "),
        (["limits", "--set", "data.grid.shaer=[1]"], "the data's grid has no 'shaer'. Did you mean 'share'?"),
        (["limits", "--set", "stepss=3"], "unknown key 'stepss'. Did you mean 'steps'?"),
        (["scaling", "--set", "size=[3]"], "--set size=[3]: no such setting. Did you mean 'sizes'?"),
        (["scaling", "--set", "sizes=[0]"], "--set: sizes.0: Input should be greater than or equal to 1"),
        (["scaling", "--set", "algorithms=[bcc]"], "unknown algorithm 'bcc'"),
        (["scaling", "--draw-only"], "give its table with --from"),
    ],
)
def test_wrong_input_is_refused_before_anything_starts(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = call(*arguments, "--output", tmp_path / "out", "--results", tmp_path / "runs")
    assert result.exit_code == 2
    assert message in result.output
    assert list(tmp_path.iterdir()) == []


def test_scaling_measures_training_and_acting(tmp_path: Path) -> None:
    small = {"sizes": [4, 512], "algorithms": ["bc", "lspc"], "batch_size": 4, "rounds": 3, "updates": 1, "actions": 2}
    options = [option for key, value in small.items() for option in ("--set", f"{key}={json.dumps(value)}")]
    result = call("scaling", "--output", tmp_path, *options)
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "scaling.csv")
    found = {(row.method, row.observation_size, row.metric) for row in table.itertuples()}
    assert found == {
        (method, size, metric)
        for size in (4, 512)
        for method, metric in (
            *(("bc", "update_ms"), ("bc-all", "act_ms")),
            *(("lspc", "update_ms"), ("lspc-s", "act_ms"), ("lspc-o", "act_ms")),
        )
    }
    assert (table["median"] > 0).all()
    assert (table["low"] <= table["median"]).all()
    assert (table["median"] <= table["high"]).all()
    assert set(table["batch_size"]) == {4}
    again = call("scaling", "--from", tmp_path / "scaling.csv", "--output", tmp_path / "again")
    assert again.exit_code == 0
    assert (tmp_path / "again" / "scaling.png").read_bytes() == (tmp_path / "scaling.png").read_bytes()
