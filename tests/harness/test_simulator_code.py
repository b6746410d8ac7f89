"""Which code an environment consists of: every change to it is seen, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module, invalidate_caches
from importlib.metadata import version
from pathlib import Path

import gymnasium
import pytest

from harness.errors import UserError
from harness.simulators import code as module
from harness.simulators.code import describe

NAME = "lspc_bench_code"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with an environment, that imports another beside it."""
    folder = tmp_path / NAME
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "import gymnasium, json\nfrom lspc_bench_beside import X\nclass Mine(gymnasium.Env): pass\n"
    )
    (folder / "part.py").write_text("A = 1\n")
    (tmp_path / "lspc_bench_beside.py").write_text("X = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    invalidate_caches()
    yield folder
    for name in (NAME, "lspc_bench_beside"):
        sys.modules.pop(name, None)


def said() -> str:
    return describe(import_module(NAME).Mine(), [NAME])


def test_code_that_is_not_installed_is_known_by_its_content(package: Path) -> None:
    before = said()
    assert before.startswith("code ")
    assert len(before) == len("code ") + 16
    assert said() == before
    for path in (package / "__init__.py", package / "part.py", package.parent / "lspc_bench_beside.py"):
        old = path.read_text()
        path.write_text(f"{old}# changed\n")
        assert said() != before, path
        path.write_text(old)
    assert said() == before


def test_a_file_more_or_less_is_a_change(package: Path) -> None:
    before = said()
    (package / "more.py").write_text("")
    assert said() != before


def test_what_is_no_code_is_none(package: Path) -> None:
    before = said()
    (package / "notes.txt").write_text("")
    (package / ".hidden").mkdir()
    (package / ".hidden" / "one.py").write_text("")
    (package.parent / "lspc_bench_nobody_imports.py").write_text("")
    assert said() == before


def test_where_it_lies_does_not_matter(package: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = said()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for path in package.parent.iterdir():
        path.rename(elsewhere / path.name)
    for name in (NAME, "lspc_bench_beside"):
        del sys.modules[name]
    sys.path.insert(0, str(elsewhere))
    try:
        invalidate_caches()
        assert said() == before
    finally:
        sys.path.remove(str(elsewhere))


def test_installed_packages_are_known_by_their_version() -> None:
    environment = gymnasium.make("CartPole-v1")
    assert describe(environment, ["gymnasium"]) == f"gymnasium {version('gymnasium')}"


def test_too_many_files_and_ones_that_cannot_be_read_are_told(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package / "folder.py").mkdir()
    before = said()  # a folder is no file
    assert before.startswith("code ")
    (package / "gone.py").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"cannot read the environment's code, .*gone\.py': No such file"):
        said()
    monkeypatch.setattr(module, "MOST_FILES", 1)
    with pytest.raises(UserError, match="has more than 1 Python files"):
        said()
