"""Plugins of other packages: found by name, loaded when asked for, and never able to take the tool down."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from harness import registry
from harness.errors import UserError
from harness.registry import GROUP, load

ORIGIN = "package lspc-bench-test-plugins 1.2.3"


def offer(site: Path, distribution: str, points: str) -> None:
    """Install a package that offers nothing but entry points."""
    folder = site / f"{distribution}-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[{GROUP}]\n{points}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugins: Path) -> Path:
    """A folder of packages beside the test plugins."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def refusal(name: str) -> str:
    with pytest.raises(UserError) as caught:
        load(name)
    return str(caught.value)


def test_the_package_of_test_plugins_is_one_that_installs(plugins: Path) -> None:
    project = Path(__file__).parent.parent / "plugins" / "lspc_bench_test_plugins"
    content = tomllib.loads((project / "pyproject.toml").read_text())
    assert set(content["tool"]["hatch"]["build"]["include"]) == {path.name for path in plugins.glob("*.py")}


def test_a_plugin_is_found_by_its_name(plugins: Path) -> None:
    toy = load("toy")
    assert toy.__module__ == "lspc_bench_test_plugins"
    assert toy is load("toy")
    assert registry.plugins()["toy"].origin == ORIGIN
    assert load("toy-single").max_replicas == 1


def test_without_the_package_there_are_the_built_ins_alone() -> None:
    baselines = {"bc", "bcq-lag", "bear-lag", "cpq", "coptidice", "cdt"}
    newer, adapters = {"lspc", "caps", "ccac", "fisor", "trac"}, {f"osrl-{name}" for name in baselines}
    assert set(registry.plugins()) == newer | baselines | adapters
    assert {plugin.origin for plugin in registry.plugins().values()} == {"built-in"}


def test_nothing_is_imported_before_it_is_asked_for(plugins: Path) -> None:
    code = (
        "import sys; from harness import registry; registry.plugins(); "
        "print({'torch', 'numpy', 'algorithms.bc', 'lspc_bench_test_plugins'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


@pytest.mark.parametrize(
    ("name", "target", "part"),
    [
        ("broken-import", "lspc_bench_broken_plugin:Anything", "fails to import: ModuleNotFoundError: No module named"),
        ("no-attribute", "lspc_bench_test_plugins:Missing", "fails to import: AttributeError: "),
        ("no-algorithm", "lspc_bench_test_plugins:Linear", "is no subclass of harness.algorithm.Algorithm"),
        ("abstract", "lspc_bench_test_plugins:Unfinished", "does not implement columns"),
    ],
)
def test_a_broken_plugin_is_named_with_its_origin(plugins: Path, name: str, target: str, part: str) -> None:
    assert refusal(name).startswith(f"the algorithm {name!r} ({target}, {ORIGIN}) {part}")


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ("raise SystemExit('go away')", "fails to import: SystemExit: go away"),
        ("1 / 0", "fails to import: ZeroDivisionError: division by zero"),
        ("def f(:", "fails to import: SyntaxError: "),
        ("Thing = 3", "is no subclass of harness.algorithm.Algorithm"),
        (
            "from lspc_bench_test_plugins import Toy\nclass Thing(Toy):\n    Hyperparameters = dict",
            "has no Hyperparameters, a subclass of harness.algorithm.Hyperparameters",
        ),
    ],
)
def test_whatever_a_module_does_is_only_refused(
    site: Path, monkeypatch: pytest.MonkeyPatch, body: str, part: str
) -> None:
    (site / "lspc_bench_odd.py").write_text(body)
    monkeypatch.delitem(sys.modules, "lspc_bench_odd", raising=False)
    offer(site, "odd", "odd = lspc_bench_odd:Thing")
    assert f"the algorithm 'odd' (lspc_bench_odd:Thing, package odd 1.0) {part}" in refusal("odd")


def test_a_built_in_keeps_its_name_and_the_collision_is_listed(plugins: Path) -> None:
    assert load("bc").__module__ == "algorithms.bc"
    colliding = registry.plugins()[f"bc ({ORIGIN})"]
    assert colliding.problem == "the name 'bc' is taken by algorithms.bc:BC (built-in)"


def test_a_bad_name_is_listed_with_its_reason_and_cannot_be_used(plugins: Path) -> None:
    bad = registry.plugins()[f"Bad_Name ({ORIGIN})"]
    assert bad.problem == "its name is not of lower-case letters, digits and single dashes"
    assert "unknown algorithm 'Bad_Name'" in refusal("Bad_Name")
    assert "cannot be used" in refusal(f"Bad_Name ({ORIGIN})")


def test_a_name_that_two_packages_offer_belongs_to_nobody(site: Path) -> None:
    offer(site, "first", "twice = lspc_bench_test_plugins:Toy")
    offer(site, "second", "twice = lspc_bench_test_plugins:ToySingle")
    found = refusal("twice")
    assert "'twice' is offered by lspc_bench_test_plugins:ToySingle (package second 1.0) too" in found
    assert "of package first 1.0" in found
    listed = registry.plugins()["twice (package second 1.0)"]
    assert listed.problem == "the name 'twice' is taken by lspc_bench_test_plugins:Toy (package first 1.0)"


def test_an_unknown_name_has_its_nearest(plugins: Path) -> None:
    assert refusal("toi") == "unknown algorithm 'toi'. Did you mean 'toy'? 'lspc-bench algorithms' lists them."
    assert refusal("LSPC").startswith("unknown algorithm 'LSPC'. Did you mean 'lspc'?")
    assert "Did you mean" not in refusal("something-else")


@pytest.mark.parametrize("content", [b"this is no entry point", b"\xff\xfe"])
def test_a_package_that_cannot_be_read_is_listed_and_takes_nothing_down(
    site: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """Not even torch, which looks for entry points of its own when it is imported."""
    offer(site, "malformed", "")
    path = site / "malformed-1.0.dist-info" / "entry_points.txt"
    path.write_bytes(path.read_bytes() + content + b"\n")
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=":")
    code = "from harness.cli import main; main(['algorithms'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = {line.split("  ")[0]: line for line in done.stdout.splitlines()}
    assert "what it offers cannot be read" in lines["(package malformed 1.0)"]
    assert "BROKEN" in lines["(package malformed 1.0)"]
    assert "BROKEN" not in lines["lspc"]
    assert "BROKEN" not in lines["toy"]


def test_a_broken_package_without_algorithms_is_passed_over(site: Path) -> None:
    offer(site, "elsewhere", "")
    (site / "elsewhere-1.0.dist-info" / "entry_points.txt").write_text("[console_scripts]\nnothing here\n")
    registry.plugins.cache_clear()
    assert not [name for name in registry.plugins() if "elsewhere" in name]
