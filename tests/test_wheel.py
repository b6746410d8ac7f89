"""The wheel: everything that the packages read is in it. What it builds with is asked which files it takes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
builders = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
ELSEWHERE = {
    "suites": "harness/suites",
    "results/published": "harness/published",
    "results/throughput": "harness/throughput",
}
"""Folders of the checkout that lie inside a package in the wheel."""


def test_every_file_of_the_packages_is_in_the_wheel() -> None:
    builder = builders.WheelBuilder(str(ROOT))
    taken = {file.distribution_path for file in builder.recurse_included_files()}
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    wanted = {"lspc_bench.py", "harness/tasks_measured.json"}
    wanted |= {path for path in listed if path.startswith(("harness/", "algorithms/"))}
    for folder, place in ELSEWHERE.items():
        wanted |= {place + path.removeprefix(folder) for path in listed if path.startswith(f"{folder}/")}
    assert wanted - taken == set()
    for kind in (".j2", ".yaml", ".hdf5", ".csv", ".html", ".css", ".js", "/py.typed"):
        assert any(path.endswith(kind) for path in wanted), kind
