"""lspc-bench: a benchmark harness for offline safe reinforcement learning."""

from harness.imports import prepare

__version__ = "0.1.0"

prepare()
