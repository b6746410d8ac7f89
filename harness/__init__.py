"""lspc-bench: a benchmark harness for offline safe reinforcement learning.

The names below are what a notebook needs; see :mod:`harness.notebook`. Each is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from harness.imports import prepare
from harness.packages import survive_broken_packages

if TYPE_CHECKING:
    from harness.notebook import LoadedResults, leaderboard, load_policy, load_results, plan_suite, run_suite
    from harness.options import Options
    from harness.policies import TrainedPolicy

__version__ = "0.1.0"
__all__ = [
    "LoadedResults",
    "Options",
    "TrainedPolicy",
    "__version__",
    "leaderboard",
    "load_policy",
    "load_results",
    "plan_suite",
    "run_suite",
]

_HOMES = {"Options": "harness.options", "TrainedPolicy": "harness.policies"}

prepare()
survive_broken_packages()


def __getattr__(name: str) -> Any:
    """What :data:`__all__` names (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOMES.get(name, "harness.notebook")), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
