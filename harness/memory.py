"""What the C library does with memory that is given back."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


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
