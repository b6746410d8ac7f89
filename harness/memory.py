"""The process's memory: what the C library does with what is given back, and the most that was in use."""

from __future__ import annotations

import ctypes
import resource
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h
_PROCESS = Path("/proc/self")


def keep_freed_memory() -> bool:
    """Let glibc keep what the process frees, for its next tensor, instead of handing it back to the system.

    Otherwise every large tensor of every update is mapped anew, and the system clears it page by page.

    Returns:
        Whether the C library knows the setting; without it all works as before, slower.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))


def forget_peak(device: torch.device) -> None:
    """Let :func:`peak` count from now on, where the system can."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            (_PROCESS / "clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """The most memory since :func:`forget_peak`, bytes: tensors on a GPU; with the CPU all that this process held.

    Where the system cannot forget, or tell, it is the most that the process has held so far.
    """
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError):
        for line in (_PROCESS / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
