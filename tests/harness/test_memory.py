"""Freed memory is used again: the system need not clear it page by page; and the most that was in use."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from harness import memory

FAULTS = """
import resource, sys
import numpy as np
from harness.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for turn in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(25_000_000, dtype=np.float32)  # 100 MB, given back at once
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_a_large_array_costs_hardly_a_page_fault_the_second_time() -> None:
    faults = [
        int(subprocess.run([sys.executable, "-c", FAULTS, word], capture_output=True, text=True, check=True).stdout)
        for word in ("leave", "keep")
    ]
    pages = 100_000_000 // 2**21  # were they as large as pages come
    assert faults[0] >= pages
    assert faults[1] < pages / 4


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not memory.keep_freed_memory()


PEAK = """
from pathlib import Path
from types import SimpleNamespace
from harness import memory
device, size = SimpleNamespace(type="cpu"), 200_000_000
memory.forget_peak(device)
before = memory.peak(device)
taken = bytearray(b"1") * size
del taken
grown = memory.peak(device)
assert grown - before > 0.9 * size, (before, grown)
if Path("/proc/self/clear_refs").exists():
    memory.forget_peak(device)
    assert memory.peak(device) < grown - 0.5 * size
"""


def test_the_most_memory_is_that_since_it_was_forgotten() -> None:
    """Or, where the system does not forget, the most so far."""
    subprocess.run([sys.executable, "-c", PEAK], check=True)
