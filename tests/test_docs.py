"""What the documentation shows works."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest
import torch
from click.testing import CliRunner
from conftest import install

from algorithms import BUILTINS
from harness import registry
from harness.algorithm import Replica
from harness.archive import open_results
from harness.cli import main
from harness.contract import Contract
from harness.report.leaderboard import make_leaderboard, overall_table
from harness.report.studies import find_study
from harness.suite import Data, Evaluation, Suite, SuiteFile
from harness.tasks import all_tasks, find_task, select_tasks

ROOT = Path(__file__).parent.parent


def block(page: str, language: str, containing: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    return next(text for text in blocks if containing in text)


def test_the_plugin_of_the_manual_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("my_package")
    monkeypatch.setitem(sys.modules, "my_package", module)
    exec(compile(block("docs/plugins.md", "python", "class MyClone"), "my_package.py", "exec"), module.__dict__)
    task, config = find_task("BallRun"), module.MyHyperparameters()
    algorithm = module.MyClone(config, task, [Replica(0), Replica(1)])
    observations = torch.randn(2, 64, task.observation_size)
    batch = {"observations": observations, "actions": torch.tanh(observations[..., : task.action_size])}
    losses = [algorithm.update(batch, {})["loss"] for _ in range(200)]
    assert (losses[-1] < losses[0] / 2).all()
    policy = algorithm.policies(1)["my-clone"]
    policy.reset([0, 1, 2], None)
    assert policy.act(torch.zeros(3, task.observation_size)).shape == (3, task.action_size)


def test_the_suite_of_the_manual_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(block("docs/suites.md", "yaml", "my-study"))
    suite = SuiteFile(path).suite
    assert suite.algorithms["bc"].grid == {"mode": ["all", "safe"]}


def test_the_hyperparameters_of_the_manual_are_up_to_date() -> None:
    """If not: python docs/write_hyperparameters.py."""
    script = ROOT / "docs" / "write_hyperparameters.py"
    result = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, "all up to date"), result.stderr


def test_the_table_of_tasks_is_up_to_date() -> None:
    """If not: python docs/write_tasks.py, behind benchmarks/simulators.py where a simulator changed."""
    script = ROOT / "docs" / "write_tasks.py"
    result = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, "up to date"), result.stderr
    page = (ROOT / "docs" / "tasks.md").read_text()
    for task in all_tasks().values():
        assert f"| {task.name} " in page


def test_every_key_of_a_suite_is_in_the_manual() -> None:
    text = block("docs/suites.md", "yaml", "my-study")
    keys = [*Suite.model_fields, *Evaluation.model_fields, *Data.model_fields]
    assert [key for key in keys if not re.search(rf"^ *{key}:", text, flags=re.MULTILINE)] == []


def test_the_suite_of_an_own_task_in_the_manual_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(block("docs/data.md", "yaml", "Warehouse"))
    assert SuiteFile(path).suite.own_tasks["Warehouse"].cost_limits == [5, 10]


@pytest.mark.parametrize("name", [name for name in BUILTINS if not name.startswith("osrl-")])
def test_every_algorithm_has_a_page_with_every_metric(name: str) -> None:
    contract = Contract(name)
    page = (ROOT / "docs" / "algorithms" / f"{name}.md").read_text()
    metrics = page.partition("## Metrics")[2].partition("## ")[0]
    for metric in contract.run(0).update(0):
        assert f"`{metric}`" in metrics, metric
    measured = page.partition("## Diagnostics")[2].partition("## ")[0]
    rows = contract._diagnostics(contract.run(0), 0).rows(0, [0])
    for row in rows:
        assert f"`{row['policy']}/{row['metric']}`".replace("`/", "`") in measured, row
    for title in ("## Hyperparameters", "## Deviations from", "## How it is verified"):
        assert title in page


FOLLOWED = ("README.md", "docs/results.md", "docs/running.md", "docs/plugins.md")
"""Pages whose commands work behind one another, in this order. The others need DSRL's files, or hours."""

SMALL = {"run": "--workers 0 --set steps=4 --set seeds=1 --set cost_limits=[20]", "render": "--every 100"}
"""Behind what a page says, so that it is short."""


def commands_of(page: str) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    lines = [line for text in blocks for line in text.splitlines() if line.startswith("lspc-bench ")]
    return [line.partition("#")[0].strip() for line in lines]


def commands() -> list[str]:
    """Those of the pages that are not followed."""
    pages = {str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")} - {*FOLLOWED}
    return sorted({line for page in pages for line in commands_of(page)})


def takes_long(arguments: list[str]) -> bool:
    """Whether it would download or collect; then its words are looked at, and no more."""
    if arguments[:2] not in (["data", "download"], ["data", "collect"]):
        return False
    data = main.commands["data"]
    assert isinstance(data, click.Group)
    parameters = data.commands[arguments[1]].make_context(arguments[1], arguments[2:]).params
    assert parameters.get("suite") or select_tasks(parameters["patterns"])  # the suite's tasks are its own
    return True


@pytest.fixture
def my_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The manual's plugin, installed as it stands there."""
    project, site = tmp_path / "project", tmp_path / "site"
    project.mkdir()
    site.mkdir()
    (project / "my_package.py").write_text(block("docs/plugins.md", "python", "class MyClone"))
    announced = block("docs/plugins.md", "toml", "my-clone")
    (project / "pyproject.toml").write_text(f'[project]\nname = "my-package"\nversion = "1"\n{announced}')
    install(project, site)
    monkeypatch.syspath_prepend(site)
    registry.plugins.cache_clear()
    yield
    sys.modules.pop("my_package", None)
    registry.plugins.cache_clear()
    registry._import.cache_clear()


@pytest.mark.usefixtures("my_package")
def test_a_reader_may_follow_the_manual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command in one folder, behind what 'make demo' does; long ones are made short."""
    monkeypatch.chdir(tmp_path)
    (demo,) = re.findall(r"\$\(BIN\)/(lspc-bench run demo .*)", (ROOT / "Makefile").read_text())
    lines = [f"{demo} --set tasks=[BallRun] --set evaluation.final=1", *itertools.chain(*map(commands_of, FOLLOWED))]
    for line in lines:
        arguments = shlex.split(line)[1:]
        if takes_long(arguments):
            continue
        options = SMALL.get(arguments[0], "")
        if "--cell" in arguments:  # its hash is of the suite as it stands
            options = "--dry-run"
        result = CliRunner().invoke(main, [*arguments, *shlex.split(options)])
        assert result.exit_code == 0, f"{line}: {result.output}"
    assert {path.name for path in tmp_path.glob("*.*")} >= {"table.csv", "film.mp4", "BallRun-lspc-o.gif"}


@pytest.mark.parametrize("line", commands())
def test_the_commands_of_the_manual_exist(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every word of them is understood; files and results that the reader would have are not there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DSRL_DATASET_DIR", str(tmp_path))
    arguments = shlex.split(line)[1:]
    if arguments[0] == "study" and arguments[1:]:  # would run its suites, or measure
        assert find_study(main.commands["study"].make_context("study", arguments[1:]).params["name"])
        return
    if takes_long(arguments):
        return
    if arguments[0] == "run" and "--dry-run" not in arguments:
        arguments.append("--dry-run")
    result = CliRunner().invoke(main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    absent = (
        "no results folder",
        " is missing: ",
    )
    assert result.exit_code == 0 or any(reason in result.output for reason in absent), result.output


@pytest.mark.parametrize(
    "page", ["README.md", *(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text()):
        assert ((ROOT / page).parent / target).exists(), target


def test_the_table_of_dead_cost_values_is_the_measured_one() -> None:
    """If not: paste what benchmarks/cost_value.py prints for results/cost_value.json."""
    specification = importlib.util.spec_from_file_location("cost_value", ROOT / "benchmarks" / "cost_value.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    rows = json.loads((ROOT / "results" / "cost_value.json").read_text())
    page = (ROOT / "docs" / "algorithms" / "lspc.md").read_text()
    assert module.table(rows) in page.partition("<!-- cost value -->")[2].partition("<!-- end -->")[0]


def test_the_table_of_readme_is_the_evidences() -> None:
    """If not: paste what docs/write_evidence.py writes under "Leaderboard" of docs/evidence.md."""
    results = open_results(ROOT / "results" / "evidence-small")
    (plan,) = results.plans()
    table = overall_table(make_leaderboard(results, plan))
    assert table in (ROOT / "README.md").read_text().partition("<!-- evidence -->")[2].partition("<!-- end -->")[0]
