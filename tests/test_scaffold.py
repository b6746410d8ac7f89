"""What ``lspc-bench new`` writes, from the command to the leaderboard, in a fresh environment.

The environment is one of its own, into which pip installs; it sees the packages of the tests' environment, so that
nothing is downloaded.
"""

from __future__ import annotations

import csv
import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner

from harness.cli import main
from harness.imports import HOME
from harness.scaffold.project import Kind, module_of

pytestmark = pytest.mark.long

NAMES: Mapping[str, Kind] = {f"my-{kind}": kind for kind in get_args(Kind)}
SHORT = "--workers 0 --set tasks=[BallRun] --set seeds=1 --set cost_limits=[20] --set steps=4 --set evaluation.final=1"


class Fresh:
    """A fresh environment with the packages that were written, installed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.python = folder, folder / "env" / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
        packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "env")}))
        (packages / "outer.pth").write_text(f"{HOME}\n{sysconfig.get_path('purelib')}\n")
        for name, kind in NAMES.items():
            done = CliRunner().invoke(main, ["new", name, "--kind", kind, "--output", str(folder / name)])
            assert done.exit_code == 0, done.output
        options = ["--quiet", "--disable-pip-version-check", "--no-index", "--no-build-isolation"]
        projects = [word for name in NAMES for word in ("--editable", f"{folder / name}[dev]")]
        self("-m", "pip", "install", *options, *projects)

    def __call__(self, *arguments: object, folder: Path | None = None) -> str:
        """What Python prints there."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [self.python, *map(str, arguments)],
            cwd=folder or self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def command(self, lines: list[str], folder: Path) -> str:
        """What several ``lspc-bench`` commands print, in one process."""
        script = (
            "import sys\nfrom lspc_bench import main\n"
            "for line in sys.argv[1:]:\n    status = main.main(line.split(), standalone_mode=False)\n"
            "    assert not status, (line, status)\n"
        )
        return self("-c", script, *lines, folder=folder)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    return Fresh(tmp_path_factory.mktemp("fresh"))


def test_every_kind_passes_its_own_tests(fresh: Fresh) -> None:
    """The contract, as ``lspc-bench algorithms NAME --check`` has it, and that it learns."""
    told = fresh("-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"{name}/tests" for name in NAMES))
    assert f"{2 * len(NAMES)} passed" in told


def test_every_kind_is_typed_strictly(fresh: Fresh) -> None:
    """With each package's own settings, which differ in the files alone."""
    first = next(iter(NAMES))
    written = [path for name in NAMES for path in (f"{name}/{module_of(name)}.py", f"{name}/tests")]
    settings = (fresh.folder / first / "pyproject.toml").read_text().partition("[tool.mypy]")[2]
    for name in NAMES:
        own = (fresh.folder / name / "pyproject.toml").read_text().partition("[tool.mypy]")[2]
        assert own.replace(module_of(name), module_of(first)) == settings
    told = fresh("-m", "mypy", "--config-file", f"{first}/pyproject.toml", "--cache-dir", ".types", *written)
    assert told.startswith(f"Success: no issues found in {2 * len(NAMES)} source files")


def test_every_kind_is_ranked_in_its_suite(fresh: Fresh) -> None:
    """The README's last line of commands, made short."""
    for name in NAMES:
        (line,) = [
            line
            for line in (fresh.folder / name / "README.md").read_text().splitlines()
            if line.startswith("lspc-bench run")
        ]
        run, rank = line.split(" && ")
        lines = [run.removeprefix("lspc-bench ") + " " + SHORT, rank.removeprefix("lspc-bench ") + " --format csv"]
        assert all(shlex.split(one) == one.split() for one in lines)
        told = fresh.command(lines, fresh.folder / name)
        rows = list(csv.DictReader(told[told.index("suite,") :].splitlines()))
        assert {row["policy"] for row in rows} == {name, "lspc-s", "lspc-o", "bc-all", "bc-safe"}
        assert {row["runs"] == row["planned_runs"] for row in rows} == {True}
