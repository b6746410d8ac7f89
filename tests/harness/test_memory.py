"""Freed memory is used again: the system need not clear it page by page."""

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
