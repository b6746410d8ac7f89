"""lspc-bench: a benchmark harness for offline safe reinforcement learning."""

__version__ = "0.1.0"

from harness.packages import survive_broken_packages

survive_broken_packages()
