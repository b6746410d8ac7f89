"""``lspc-bench new``: what it writes, and what it refuses without writing anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import jinja2
import pytest
from click.testing import CliRunner, Result

from harness.cli import main
from harness.errors import UserError
from harness.registry import NAME
from harness.scaffold.project import MOST_LETTERS, Kind, files, module_of, require_name
from harness.suite import SuiteFile

KINDS = get_args(Kind)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["new", *map(str, arguments)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["a", "my-clone", "-".join(["wide"] * 6), "w" * MOST_LETTERS])
def test_every_name_is_written_as_ruff_wants_it(kind: Kind, name: str) -> None:
    done = call(name, "--kind", kind)
    assert done.exit_code == 0, done.output
    folder, module = Path(name), module_of(name)
    written = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    wanted = [".gitignore", "README.md", f"{module}.py", "pyproject.toml", "suite.yaml", f"tests/test_{module}.py"]
    assert written == sorted(wanted)
    assert done.stdout.split() == [str(folder / path) for path in files(name, kind)]
    assert f"pip install -e {name}\n  lspc-bench algorithms {name} --check" in done.stderr
    for command in (["check"], ["format", "--check"]):
        linted = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "."], cwd=folder, capture_output=True, text=True
        )
        assert linted.returncode == 0, linted.stdout


def test_its_suite_is_the_users_beside_lspc_and_bc() -> None:
    assert call("my-clone").exit_code == 0
    suite = SuiteFile(Path("my-clone/suite.yaml")).suite
    assert (list(suite.algorithms), suite.data.source) == (["my-clone", "lspc", "bc"], "demo")


def test_missing_folders_above_are_made() -> None:
    assert call("my-clone", "--output", "a/b/clone").exit_code == 0
    assert Path("a/b/clone/my_clone.py").is_file()
    assert call("my-clone", "--output", "c/../d/clone").exit_code == 0
    assert (Path("d/clone/my_clone.py").is_file(), sorted(path.name for path in Path().iterdir())) == (True, ["a", "d"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("My Clone", "'My Clone' is no name for an algorithm: up to 32 lower-case letters and digits, with single "),
        ("My Clone", "Try 'my-clone'."),
        ("my--clone", "Try 'my-clone'."),
        ("-clone", "No such option"),
        ("../clone", "Try 'clone'."),
        ("", "'' is no name"),
        ("c" * (MOST_LETTERS + 1), "is no name"),
        ("my_clone", "Try 'my-clone'."),
        ("3-clones", "no Python module can be called '3_clones' (it would begin with a digit)"),
        ("lambda", "no Python module can be called 'lambda' (it is a word of the language)"),
        ("lspc", "the name 'lspc' is taken by algorithms.lspc:LSPC (built-in)"),
        ("random", "there is a Python module 'random' already"),
        ("sys", "there is a Python module 'sys' already"),
        ("torch", "there is a Python module 'torch' already"),
        ("harness", "there is a Python module 'harness' already"),
        ("typing-extensions", "there is a Python module 'typing_extensions' already"),
        ("lspc-bench", "there is a Python module 'lspc_bench' already"),
        ("pandas-stubs", "a package 'pandas-stubs' is installed already"),
        ("policy", "its class Policy would hide another one"),
        ("exception", "its class Exception would hide another one"),
    ],
)
def test_what_is_no_name_or_taken_is_refused(name: str, message: str) -> None:
    done = call(name)
    assert done.exit_code == 2
    assert message in done.stderr.replace("\n", " ")
    assert list(Path().iterdir()) == []


@pytest.mark.usefixtures("plugins")
def test_a_name_that_another_package_offers_is_taken() -> None:
    done = call("toy-single")
    assert done.exit_code == 2
    assert "the name 'toy-single' is taken by lspc_bench_" in done.stderr


def test_a_suggestion_can_be_taken() -> None:
    for given in ("My Clone!", "Ärger", "--", "TD3 + BC", "x" * 50):
        with pytest.raises(UserError) as error:
            require_name(given, "")
        _, tried, rest = str(error.value).partition(" Try '")
        assert not tried or NAME.fullmatch(rest.removesuffix("'."))


@pytest.mark.parametrize("what", ["file", "folder", "link"])
def test_what_is_there_is_left_alone(what: str) -> None:
    place = Path("my-clone")
    {"file": place.touch, "folder": place.mkdir, "link": lambda: place.symlink_to("nowhere")}[what]()
    done = call("my-clone")
    assert done.exit_code == 2
    assert "'my-clone' exists already: choose another --output, or remove it" in done.stderr
    assert [path.name for path in Path().iterdir()] == ["my-clone"]
    assert not (what == "folder" and list(place.iterdir()))


def test_a_file_where_a_folder_is_to_be_is_refused() -> None:
    Path("file").touch()
    done = call("my-clone", "--output", "file/below")
    assert done.exit_code == 2
    assert "cannot write 'file/below': Not a directory" in done.stderr


@pytest.mark.parametrize(("error", "status"), [(OSError(28, "No space left on device"), 1), (KeyboardInterrupt(), 130)])
def test_an_error_halfway_leaves_nothing(error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = Path.write_text, []

    def fails(path: Path, *args: Any, **named: Any) -> int:
        if len(written) == 3:
            raise error
        written.append(path)
        return write(path, *args, **named)

    monkeypatch.setattr(Path, "write_text", fails)
    done = call("my-clone", "--output", "a/b")
    assert (done.exit_code, len(written)) == (status, 3)
    assert list(Path().iterdir()) == []


def test_a_template_that_lacks_a_value_is_not_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A mistake of ours must not become an empty word in somebody's package."""
    monkeypatch.setattr("harness.scaffold.project.TEMPLATES", tmp_path)
    for name in ("pyproject.toml", "transitions.py", "test.py", "suite.yaml", "README.md", "gitignore"):
        (tmp_path / f"{name}.j2").write_text("{{ nothing }}")
    with pytest.raises(jinja2.UndefinedError):
        files("my-clone", "transitions")
