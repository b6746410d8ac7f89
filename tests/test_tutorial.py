"""A reader who does what docs/tutorial.md says gets a leaderboard with an algorithm of their own."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import install

from harness import registry
from harness.cli import main
from harness.notebook import leaderboard

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "tutorial.md").read_text()
SMALL = {
    "run": "--workers 0 --device cpu --set tasks=[BallRun] --set seeds=1 --set steps=4 --set cost_limits=[20] "
    "--set evaluation={every: 2, episodes: 1, final: 1}",
    "render": "--every 100",
}
"""Behind what the page says, so that it is short."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The page's files, each named in its first line, and its package, installed."""
    site = tmp_path / "site"
    site.mkdir()
    for name, text in re.findall(r"```\w+\n# (\S+)\n(.*?)```", PAGE, flags=re.DOTALL):
        (tmp_path / name).write_text(text)
    install(tmp_path, site)
    monkeypatch.syspath_prepend(site)
    monkeypatch.chdir(tmp_path)
    registry.plugins.cache_clear()
    yield tmp_path
    sys.modules.pop("limit_clone", None)
    registry.plugins.cache_clear()
    registry._import.cache_clear()


def test_the_tutorial_can_be_followed(project: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    lines = ["lspc-bench run demo --results results/runs/demo", *"".join(blocks).splitlines()]
    for line in (line.partition("#")[0].strip() for line in lines):
        program, command, *rest = [*shlex.split(line), ""]
        if program == "lspc-bench":
            options = re.split(r" (?=--)", SMALL[command]) if command in SMALL else []
            small = [word for option in options for word in option.split(" ", 1)]
            result = CliRunner().invoke(main, [command, *filter(None, rest), *small])
            assert result.exit_code == 0, f"{line}: {result.output}"
    board = leaderboard(project / "results" / "runs" / "mine")
    rows = set(board["policy"])
    assert rows == {
        "bc-all",
        "bc-safe",
        "lspc-s",
        "lspc-o",
        "limit-clone [limit-clone temperature=0.1]",
        "limit-clone [limit-clone temperature=0.5]",
    }
    written = {path.name for path in project.glob("*.*")}
    assert written >= {"report.html", "mine.html", "mine.tex", "BallRun-bc-safe.gif"}
