"""What tests share."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import sys
import tomllib
from collections.abc import Callable, Generator, Iterator
from functools import partial
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

# Networks in tests are tiny: more threads only wait for each other. Before torch is imported; processes inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis.internal.conjecture import providers
from running import suite_file

from harness import evaluation, registry, simulators
from harness.errors import UserError
from harness.tasks import Task

for told in ("COLUMNS", "FORCE_COLOR"):  # by the terminal that the tests are started in
    os.environ.pop(told, None)

# How long a case takes is up to who else is at work. The same cases every time: what breaks a test is the change, not
# the draw, and not the constants of whatever modules other tests have imported. New ones: pytest --hypothesis-profile
# default
if hasattr(providers, "_get_local_constants"):
    providers._get_local_constants = lambda: providers._local_constants
settings.register_profile("shared machine", deadline=None, derandomize=True)
settings.load_profile("shared machine")

PLUGINS = Path(__file__).parent / "plugins" / "lspc_bench_test_plugins"
SuiteWriter = Callable[[str], Path]

SIMULATION = (
    "gymnasium",
    "bullet_safety_gym",
    "pybullet",
    "dsrl",
    "safety_gymnasium",
    "metadrive",
    "osrl",
    "fsrl",
    "oapackage",
)
"""What 'make test-current' does without: simulators, and OSRL's code, which needs them."""
ABSENT = tuple(package for package in SIMULATION if find_spec(package) is None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a test draws without a generator of its own is not up to what ran in this process before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    """Skip a test that asks for one of these where it is not installed, with the reason."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ABSENT:
            raise
        pytest.skip(str(error))
    except UserError as error:
        if not ("not installed" in str(error) and any(package in str(error) for package in ABSENT)):
            raise
        pytest.skip(str(error))


def install(project: Path, site: Path, name: str | None = None) -> None:
    """Put a package of modules into ``site`` as an installer would.

    By hand, from its pyproject.toml, because tests have no network to fetch a build backend from, and must not alter
    the environment they run in.
    """
    metadata = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    name = name or metadata["name"]
    folder = site / f"{name.replace('-', '_')}-{metadata['version']}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {metadata['version']}\n")
    lines = [
        line
        for group, points in metadata["entry-points"].items()
        for line in (f"[{group}]", *(f"{key} = {value}" for key, value in points.items()))
    ]
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for module in project.glob("*.py"):
        shutil.copy(module, site)


def load(path: Path) -> ModuleType:
    """A module by its path, of no package."""
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def _site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("site")
    install(PLUGINS, site)
    return site


@pytest.fixture
def plugins(_site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package of test plugins, installed for this process, its workers and its children; where it lies."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(_site)
    monkeypatch.setenv("PYTHONPATH", str(_site), prepend=os.pathsep)
    _clear_registry()
    yield _site
    for module in set(sys.modules) - before:
        if module.startswith("lspc_bench_"):
            del sys.modules[module]
    _clear_registry()


def _clear_registry() -> None:
    registry.plugins.cache_clear()
    registry._import.cache_clear()


class _Short:
    """An environment whose time is up after ten steps."""

    def __init__(self, environment: simulators.Environment) -> None:
        self._environment, self._steps = environment, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._environment, name)

    def reset(self, seed: int) -> Any:
        self._steps = 0
        return self._environment.reset(seed)

    def step(self, action: Any) -> Any:
        self._steps += 1
        *outcome, truncated = self._environment.step(action)
        return *outcome, truncated or self._steps == SHORT


SHORT = 10


@pytest.fixture
def short_episodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Episodes of :data:`SHORT` steps in this process: whole ones take most of a test's time, where their length is not
    what it asks about."""
    make = simulators.make

    def shortened(task: Task) -> Any:
        return _Short(make(task))

    evaluation._close_environments()
    monkeypatch.setattr(simulators, "make", shortened)
    yield
    evaluation._close_environments()


@pytest.fixture
def no_child_left() -> Iterator[None]:
    """End what a test that fails has started: the fork server waits for its last child, and so would the next test."""
    yield
    for child in multiprocessing.active_children():
        child.kill()
        child.join()


@pytest.fixture
def write_suite(tmp_path: Path) -> SuiteWriter:
    """Write a suite's text to ``suite.yaml`` and give its path."""

    return partial(suite_file, tmp_path)
