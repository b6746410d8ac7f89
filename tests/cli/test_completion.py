"""What the shell offers behind TAB."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from harness.cli import main
from harness.report.studies import STUDIES
from harness.suite import builtin_suites

ROOT = Path(__file__).parent.parent.parent
EVIDENCE = str(ROOT / "results" / "evidence-small")
POLICIES = {"lspc-o [lspc]", "lspc-o [lspc-live]"}


def offered(*words: str) -> list[str]:
    """What may stand in the place of the last word."""
    *arguments, incomplete = words
    shell = ShellComplete(main, {}, "lspc-bench", "_LSPC_BENCH_COMPLETE")
    return [item.value for item in shell.get_completions(arguments, incomplete) if item.type == "plain"]


def test_suites() -> None:
    assert set(offered("run", "")) == builtin_suites().keys()
    assert offered("run", "dsrl-s") == ["dsrl-strict"]
    shell = ShellComplete(main, {}, "lspc-bench", "_LSPC_BENCH_COMPLETE")
    assert ("file", "my-su") in [(item.type, item.value) for item in shell.get_completions(["run"], "my-su")]


def test_algorithms_are_those_that_can_be_used() -> None:
    assert offered("algorithms", "bc") == ["bc", "bcq-lag"]
    assert "osrl-cdt" in offered("algorithms", "")


@pytest.mark.parametrize("command", [("tasks",), ("data", "describe")])
def test_tasks(command: tuple[str, ...]) -> None:
    assert offered(*command, "BallR") == ["BallRun"]
    assert "OfflineCarRun-v0" in offered(*command, "OfflineCar")
    assert "all" not in offered(*command, "")


@pytest.mark.parametrize("command", ["download", "check", "collect"])
def test_patterns_of_tasks(command: str) -> None:
    assert offered("data", command, "BallRun", "a") == ["all"]
    assert offered("data", command, "bul") == ["bullet"]


@pytest.mark.parametrize("command", ["render", "leaderboard", "policy"])
def test_policies_of_results(command: str) -> None:
    assert set(offered(command, EVIDENCE, "--policy", "lspc-o")) == POLICIES
    if command != "policy":
        assert offered(command, EVIDENCE, "--suite", "other", "--policy", "") == []
    assert offered(command, str(ROOT / "docs"), "--policy", "") == []
    assert offered(command, "--policy", "") == []


def test_suites_and_tasks_of_results(tmp_path: Path) -> None:
    assert offered("render", EVIDENCE, "--task", "Ball") == ["BallCircle", "BallRun"]
    for command in ("status", "leaderboard", "report", "figures", "render", "compare", "export", "archive", "track"):
        assert offered(command, EVIDENCE, "--suite", "") == ["evidence-small"]
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "mine.json").write_text('{"suite": "mine", "cells": []}')
    (tmp_path / "suites" / "damaged.json").write_text('{"suite": "dam')
    assert offered("work", str(tmp_path), "--suite", "") == ["mine"]
    assert offered("report", str(tmp_path), "--suite", "mine", "--suite", "m") == ["mine"]


def test_cells_of_results_with_what_they_are(tmp_path: Path) -> None:
    content = {"task": "OfflineBallRun-v0", "algorithm": "bc", "seed": 1, "cost_limit": 20.0}
    for name, text in {"ab12": json.dumps({"cell": content}), "ab34": '{"cell": {', "cd56": "[]"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "cell.json").write_text(text)
    (tmp_path / "ab78").mkdir()  # not finished
    assert offered("policy", str(tmp_path), "--cell", "") == ["ab12"]
    assert offered("policy", str(tmp_path), "--cell", "AB") == ["ab12"]
    assert offered("policy", str(tmp_path), "--cell", "*") == []
    assert offered("policy", "--cell", "") == []
    shell = ShellComplete(main, {}, "lspc-bench", "_LSPC_BENCH_COMPLETE")
    (cell,) = shell.get_completions(["policy", str(tmp_path), "--cell"], "ab")
    assert cell.help == "BallRun bc seed 1 limit 20"


def test_studies_and_trackers() -> None:
    assert offered("study", "sca") == ["scarcity", "scaling"]
    assert set(offered("study", "")) == STUDIES.keys()
    assert offered("suites", "dsrl-s") == ["dsrl-strict"]
    assert offered("run", "smoke", "--track", "") == ["wandb", "tensorboard", "csv"]
    assert offered("track", EVIDENCE, "--to", "c") == ["csv"]


def test_families_and_sources() -> None:
    assert offered("leaderboard", EVIDENCE, "--family", "") == ["bullet", "navigation", "velocity", "metadrive"]
    assert offered("leaderboard", EVIDENCE, "--with-published", "dsrl") == ["dsrl-table"]
    assert "lspc" in offered("compare", EVIDENCE, "--source", "")


CODE = """
import sys
sys.argv[0] = "lspc-bench"
from lspc_bench import main
try:
    main()
finally:
    print(*({"torch", "pandas", "numpy", "pydantic", "h5py", "rich", "yaml", "httpx"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("shell", "position", "expected"),
    [
        ("bash", "4", {"plain,cdt"}),
        ("zsh", "4", {"plain", "cdt", "_"}),
        ("fish", "cd", {"plain,cdt"}),
    ],
)
def test_a_shell_asks_and_nothing_heavy_is_imported(shell: str, position: str, expected: set[str]) -> None:
    words = ["lspc-bench", "render", EVIDENCE, "--policy", *(["cd"] if shell != "fish" else [])]
    environment = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": position}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**os.environ, **environment, "_LSPC_BENCH_COMPLETE": f"{shell}_complete"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout.split()) == expected  # and no module's name


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_what_bash_puts_into_the_line_is_one_word(tmp_path: Path) -> None:
    command = tmp_path / "lspc-bench"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(CODE)} "$@"\n')
    command.chmod(0o755)
    script = f"""
        eval "$(_LSPC_BENCH_COMPLETE=bash_source lspc-bench)"
        for typed in lspc-o "'lspc-o"; do
            COMP_WORDS=(lspc-bench render {shlex.quote(EVIDENCE)} --policy "$typed") COMP_CWORD=4 COMPREPLY=()
            _lspc_bench_completion lspc-bench
            printf '%s\\n' "${{COMPREPLY[@]}}"
        done
    """
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    *escaped, one, other = (line for line in done.stdout.splitlines() if line)
    assert {word for line in escaped for word in shlex.split(line)} == POLICIES
    assert {one, other} == POLICIES  # within quotes, as it is
