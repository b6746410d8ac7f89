"""This project's packages are found whatever else is called so, and safety-gymnasium can be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.imports import HOME, claim, hidden


def python(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder whose packages come before all others."""
    path = os.pathsep.join([str(folder), str(HOME), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", text], cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    (tmp_path / "algorithms").mkdir()
    (tmp_path / "algorithms" / "__init__.py").write_text("")
    return tmp_path


def test_a_project_with_a_package_of_the_same_name_beside_it(theirs: Path) -> None:
    done = python(theirs, "import harness, algorithms; print(algorithms.__file__)")
    assert (done.stdout.strip(), done.stderr) == (str(HOME / "algorithms" / "__init__.py"), "")


def test_theirs_imported_first_is_named(theirs: Path) -> None:
    done = python(theirs, "import algorithms, harness")
    assert done.returncode == 1
    assert f"needs its own package 'algorithms', but that of {theirs / 'algorithms'} was imported before" in done.stderr


def test_claiming_leaves_the_path_as_it_was() -> None:
    before = list(sys.path)
    claim("algorithms")
    assert sys.path == before


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (ImportError("x", name="algorithms.mine"), " (the package 'algorithms' is lspc-bench's here: rename yours)"),
        (ModuleNotFoundError("x", name="harness"), " (the package 'harness' is lspc-bench's here: rename yours)"),
        (ImportError("x", name="numpy"), ""),
        (ImportError("x"), ""),
        (ValueError("algorithms"), ""),
        (None, ""),
    ],
)
def test_what_is_hidden_is_said(error: BaseException | None, hint: str) -> None:
    assert hidden(error) == hint


def test_safety_gymnasium_is_imported_by_whoever_wants_it(tmp_path: Path) -> None:
    pytest.importorskip("safety_gymnasium")
    done = python(
        tmp_path, "import harness, safety_gymnasium; from safety_gymnasium.assets.color import COLOR; print(COLOR)"
    )
    assert done.returncode == 0, done.stderr
    assert "pygame" not in done.stdout
