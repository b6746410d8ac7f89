"""lspc-bench: a benchmark harness for offline safe reinforcement learning."""

from harness.imports import prepare
from harness.packages import survive_broken_packages

__version__ = "0.1.0"

prepare()
survive_broken_packages()
