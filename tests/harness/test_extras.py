"""How what is missing is installed."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from harness import extras

ROOT = Path(__file__).parent.parent.parent


def test_simulators_that_are_there_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda package: None)
    assert extras.install("onnx") == "pip install 'lspc-bench[onnx]'"
    monkeypatch.setattr(extras, "find_spec", lambda package: object())
    assert extras.install("onnx") == "pip install 'lspc-bench[simulators,onnx]'"
    assert extras.install(extras.SIMULATORS) == "pip install 'lspc-bench[simulators]'"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "numpy<2" in project["optional-dependencies"][extras.SIMULATORS]
