"""What the documentation shows works."""

from __future__ import annotations

import argparse
import itertools
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import torch
import yaml
from click.testing import CliRunner
from conftest import install, load

from algorithms import BUILTINS
from harness import __version__, registry
from harness.algorithm import Replica
from harness.archive import open_results
from harness.cli import main
from harness.config import ConfigFile
from harness.contract import Contract
from harness.exchange.exporting import COLUMNS
from harness.exchange.table import NAMES
from harness.forecast import update_flops
from harness.launchers.slurm import Cluster
from harness.planning import make_plan
from harness.report.leaderboard import make_leaderboard, overall_table
from harness.report.studies import find_study
from harness.resources import agent_of, experiments, task_of, trained_parameters
from harness.suite import Data, Evaluation, Suite, SuiteFile, read_suite
from harness.tasks import all_tasks, find_task, select_tasks

ROOT = Path(__file__).parent.parent


def block(page: str, language: str, containing: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    return next(text for text in blocks if containing in text)


def test_the_plugin_of_the_manual_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("my_clone")
    monkeypatch.setitem(sys.modules, "my_clone", module)
    exec(compile(block("docs/plugins.md", "python", "class MyClone"), "my_clone.py", "exec"), module.__dict__)
    task, config = find_task("BallRun"), module.MyCloneHyperparameters()
    algorithm = module.MyClone(config, task, [Replica(0), Replica(1)])
    observations = torch.randn(2, 64, task.observation_size)
    batch = {"observations": observations, "actions": torch.tanh(observations[..., : task.action_size])}
    batch["costs_to_go"] = torch.zeros(2, 64)
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


def test_the_plugin_of_the_manual_is_what_new_writes() -> None:
    """If not: python docs/write_plugin.py."""
    script = ROOT / "docs" / "write_plugin.py"
    result = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, "up to date"), result.stderr


def test_the_settings_of_a_cluster_in_the_manual_are_the_example() -> None:
    path = ROOT / "docs" / "examples" / "slurm.yaml"
    assert path.read_text().partition("\n")[2] == block("docs/running.md", "yaml", "workers: 4")
    assert ConfigFile(path, Cluster).check().time == 720


def test_what_algorithms_take_is_counted_anew() -> None:
    """If not: paste what 'lspc-bench resources dsrl --task AntRun' prints on an idle machine."""
    page = (ROOT / "docs" / "resources.md").read_text()
    table = page.partition("<!-- resources -->")[2].partition("<!-- end -->")[0]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    counts = {line[0]: (line[1], line[2], line[4]) for line in lines[2:]}
    plan, task = make_plan(read_suite("dsrl", ["seeds=1"])), find_task("AntRun")
    for planned in experiments(plan, task):
        config = planned.cell.config
        parameters = trained_parameters(agent_of(planned.cell, task)[0])
        flops = update_flops(registry.load(planned.cell.algorithm), config, task)
        for row in planned.rows.values():
            assert counts.pop(row) == (str(config.batch_size), str(parameters), f"{flops / 1e9:.3g}"), row
    assert not counts


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

ELSEWHERE = {"docs/tutorial.md": "tests/test_tutorial.py follows it"}
"""Pages whose commands another test runs, and which."""

SMALL = {
    "run": "--workers 0 --set steps=4 --set seeds=1 --set cost_limits=[20]",
    "work": "--workers 0",
    "submit": "--script",
    "render": "--every 100",
}
"""Behind what a page says, so that it is short."""


def commands_of(page: str) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    lines = [line for text in blocks for line in text.splitlines() if line.startswith("lspc-bench ")]
    return [line.partition("#")[0].strip() for line in lines]


def commands() -> list[str]:
    """Those of the pages that are not followed."""
    pages = {str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")} - {*FOLLOWED, *ELSEWHERE}
    return sorted({line for page in pages for line in commands_of(page)})


def takes_long(arguments: list[str]) -> bool:
    """Whether it would download or collect, or wants a cluster; then its words are looked at, and no more."""
    if arguments[0] == "submit" and "--ray" in arguments:
        return bool(main.commands["submit"].make_context("submit", arguments[1:]).params["ray"])
    if arguments[:2] not in (["data", "download"], ["data", "collect"]):
        return False
    data = main.commands["data"]
    assert isinstance(data, click.Group)
    parameters = data.commands[arguments[1]].make_context(arguments[1], arguments[2:]).params
    assert parameters.get("suite") or select_tasks(parameters["patterns"])  # the suite's tasks are its own
    return True


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the package that the manual makes is installed."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    yield site
    sys.modules.pop("my_clone", None)
    registry.plugins.cache_clear()
    registry._import.cache_clear()


def test_a_reader_may_follow_the_manual(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command in one folder, behind what 'make demo' does; long ones are made short."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "docs" / "examples", tmp_path / "docs" / "examples")
    (demo,) = re.findall(r"\$\(BIN\)/(lspc-bench run demo) --devices cpu:2( .*)", (ROOT / "Makefile").read_text())
    lines = [
        f"{''.join(demo)} --set tasks=[BallRun] --set evaluation.final=1",
        *itertools.chain(*map(commands_of, FOLLOWED)),
    ]
    for line in lines:
        arguments = shlex.split(line)[1:]
        if takes_long(arguments):
            continue
        options = SMALL.get(arguments[0], "")
        if "my-clone/suite.yaml" in arguments:
            options += " --set evaluation.final=1"
        if "--cell" in arguments:  # its hash is of the suite as it stands
            options = "--dry-run"
        result = CliRunner().invoke(main, [*arguments, *shlex.split(options)])
        assert result.exit_code == 0, f"{line}: {result.output}"
        if arguments[0] == "new":  # the next line is pip's, which tests/test_scaffold.py runs
            install(tmp_path / arguments[1], site)
            registry.plugins.cache_clear()
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
    if arguments[0] == "resources":  # would train for minutes
        parameters = main.commands["resources"].make_context("resources", arguments[1:]).params
        assert task_of(make_plan(read_suite(parameters["suite"])), parameters["name"])
        return
    if takes_long(arguments):
        return
    if arguments[0] == "run" and "--dry-run" not in arguments:
        arguments.append("--dry-run")
    result = CliRunner().invoke(main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    absent = (
        "no results folder",
        "no such file",
        "no such folder",
        " is missing: ",
    )
    assert result.exit_code == 0 or any(reason in result.output for reason in absent), result.output


PAGES = ["README.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))]
NOT_RUN = {
    "source .venv/bin/activate": "an environment of its own",
    "python3.11 -m venv .venv && . .venv/bin/activate": "an environment of its own",
    "python3.13 -m venv .venv && . .venv/bin/activate": "likewise",
    "python docs/write_tasks.py": "writes into the checkout; a test above runs it with --check",
    "python docs/write_evidence.py": "writes into the checkout; tests/test_evidence.py runs it",
    "pip install 'lspc-bench[simulators,onnx]'": "would change this environment; test_extras.py has it",
    "pip install .": "named as an example; the checkout itself",
    "pip install -e my-clone": "tests/test_scaffold.py installs what 'lspc-bench new' writes",
}
"""Lines of shell that no test below runs, and why."""
NO_PYTHON = {"docs/exchange.md": "a test of its own runs it, beside results"}
"""Pages whose Python is not run, and why."""


def python_of(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)


def shell_of(page: str) -> list[str]:
    """Its commands other than ``lspc-bench``, in blocks of shell and in lines of text."""
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`((?:python|make|pip) [^`]+)`", text)
    found = itertools.chain(*([line] if line in NOT_RUN else line.split(" && ") for line in lines))
    return [line for line in found if line and not line.startswith("lspc-bench ")]


@pytest.mark.parametrize("page", [page for page in PAGES if python_of(page) and page not in NO_PYTHON])
def test_the_python_of_the_manual_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's blocks behind one another, in a fresh folder."""
    monkeypatch.chdir(tmp_path)
    module = ModuleType(Path(page).stem)
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where pydantic looks for the types of its fields
    for number, code in enumerate(python_of(page)):
        exec(compile(code, f"{page}, block {number}", "exec"), module.__dict__)


class ParsedError(Exception):
    """The arguments were understood; what comes behind is not run."""


@pytest.mark.parametrize("line", sorted({line for page in PAGES for line in shell_of(page)} - NOT_RUN.keys()))
def test_the_shell_of_the_manual_is_understood(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts understand their arguments, make has its targets, and what pip is to read is there."""
    program, *arguments = shlex.split(line)
    if program == "make":
        result = subprocess.run([program, "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
    elif program == "pip":
        named = [after for before, after in itertools.pairwise(arguments) if before in ("-c", "-r")]
        extras = re.findall(r"^lspc-bench\[(\w+)\]$", arguments[-1])
        assert named or "--no-deps" in arguments or extras
        assert (
            set(extras)
            <= tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
        )
        assert [name for name in named if not (ROOT / name).is_file()] == []
    else:
        assert program == "python"
        parse = argparse.ArgumentParser.parse_args

        def parsed(*given: Any) -> None:
            parse(*given)
            raise ParsedError

        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
        monkeypatch.setattr(sys, "argv", arguments)
        monkeypatch.setattr(sys, "path", [str((ROOT / arguments[0]).parent), *sys.path])
        with pytest.raises(ParsedError):
            runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")


def test_what_is_not_run_is_in_the_manual() -> None:
    lines = {line for page in PAGES for line in shell_of(page)}
    assert NOT_RUN.keys() <= lines
    assert NO_PYTHON.keys() <= {page for page in PAGES if python_of(page)}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text()):
        assert ((ROOT / page).parent / target).exists(), target


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= citation.keys()
    assert citation["version"] == __version__
    page = block("docs/citing.md", "bibtex", "@software")
    assert f"version = {{{__version__}}}" in page
    assert f"title   = {{{citation['title']}}}" in page


def test_the_notebook_of_the_manual_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "runs").symlink_to(ROOT / "results" / "evidence")
    found: dict[str, Any] = {}
    exec(block("docs/exchange.md", "python", "load_results"), found)
    (row,) = found["best"].to_dict("records")
    assert (row["policy"], round(row["normalized_reward"], 3)) == ("bc-safe", 0.171)  # as README has it
    assert set(found["by_limit"].index.get_level_values("cost_limit")) == {5, 10, 20, 40}
    assert found["failed"].empty


def test_every_column_of_an_import_is_in_the_manual() -> None:
    page = (ROOT / "docs" / "exchange.md").read_text()
    for name, others in NAMES.items():
        (line,) = re.findall(rf"^\| `{name}`.*$", page, flags=re.MULTILINE)
        assert line.rpartition(" | ")[2] == ", ".join(f"`{other}`" for other in others) + " |"
    assert [name for name in COLUMNS if f"`{name}`" not in page] == []


def test_the_table_of_dead_cost_values_is_the_measured_one() -> None:
    """If not: paste what benchmarks/cost_value.py prints for results/cost_value.json."""
    rows = json.loads((ROOT / "results" / "cost_value.json").read_text())
    page = (ROOT / "docs" / "algorithms" / "lspc.md").read_text()
    table = load(ROOT / "benchmarks" / "cost_value.py").table(rows)
    assert table in page.partition("<!-- cost value -->")[2].partition("<!-- end -->")[0]


def test_the_table_of_readme_is_the_evidences() -> None:
    """If not: paste what docs/write_evidence.py writes under "Leaderboard" of docs/evidence.md."""
    results = open_results(ROOT / "results" / "evidence")
    (plan,) = results.plans()
    table = overall_table(make_leaderboard(results, plan))
    assert table in (ROOT / "README.md").read_text().partition("<!-- evidence -->")[2].partition("<!-- end -->")[0]
