"""Suites in tests: their files and plans, commands on them in this process, and what those leave."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from harness.cli import main
from harness.errors import UserError
from harness.inputs import require_inputs
from harness.plan import Plan
from harness.planning import make_plan
from harness.store import Store
from harness.suite import SuiteFile

REACH = """\
own_tasks:
  Reach:
    environment: lspc_bench_test_plugins:Reach-v0
    episode_length: 20
    cost_limits: [5]
    reference_returns: [-20, 0]
"""
"""A suite's part with an own task, whose environment is among the toys."""

# Forks of a server that has imported everything, and run nothing, start at once and share no thread or lock. There is
# one a process, whoever asks for it, so there is one list of what it imports.
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(
    [
        *("harness.executors.local", "pandas", "pyarrow.parquet", "torch._dynamo", "rliable.library"),
        *("bullet_safety_gym", "pytest"),
    ]
)


def suite_file(folder: Path, text: str) -> Path:
    """The file of a suite."""
    path = folder / "suite.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def suite_plan(folder: Path, text: str) -> Plan:
    """Of a suite, whose file is written."""
    return make_plan(SuiteFile(suite_file(folder, text)))


def require(file: SuiteFile) -> None:
    """Plan a suite, and refuse it if anything is missing that it needs."""
    with file.located():
        require_inputs(make_plan(file))


def refusal(make: Callable[[], object]) -> str:
    """What is said of a mistake."""
    with pytest.raises(UserError) as caught:
        make()
    return str(caught.value)


def plan_of(results: Path) -> Plan:
    """The only one in a results folder."""
    (found,) = Store(results).plans()
    return found


def call(*words: object) -> Result:
    """The command line in this process."""
    return CliRunner().invoke(main, [str(word) for word in words])


def run(suite: Path | str, results: Path, *options: object) -> Result:
    """``run`` in this process alone, on the CPU."""
    return call("run", suite, "--results", results, "--workers", 0, "--device", "cpu", *options)


def outcome(results: Path) -> dict[str, bytes]:
    """The leaderboard in three formats, and every cell's tables and weights: all that depends on no clock."""
    found = {}
    for name in ("markdown", "csv", "json"):
        table = call("leaderboard", results, "--format", name)
        assert table.exit_code == 0, table.output
        found[name] = table.stdout_bytes
    for pattern in ("*/*.parquet", "*/*.safetensors"):
        found |= {str(path.relative_to(results)): path.read_bytes() for path in sorted(results.glob(pattern))}
    return found


def left(results: Path) -> list[Path]:
    """What must not stay in a folder where nobody works."""
    return [path for name in ("jobs", "claims", "workers", "launched") for path in (results / name).glob("*")]


def die_at(owner: Any, name: str, count: int) -> None:
    """Have this process killed at the n-th call of a function."""
    original, calls = getattr(owner, name), itertools.count(1)

    def dying(*arguments: Any, **options: Any) -> Any:
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(owner, name, dying)


def until(happened: Callable[[], object], what: str, seconds: float = 300) -> None:
    """Wait until it has happened."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
