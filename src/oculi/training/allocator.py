"""Training on a CPU keeps the memory that it frees.

Each step frees what the next asks for again. glibc gives large blocks back to the system at once, and
the system then clears every page anew: a fifth of a small step's time (docs/log.md).
"""

from __future__ import annotations

import ctypes
import os

# malloc.h; the numbers are part of glibc's interface.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_MOST = 2**31 - 1  # mallopt takes an int
_STEP = 2**28  # bytes that the heap grows by


def keep_freed_memory() -> bool:
    """Let glibc reuse what was freed, for the rest of the process; what a user has set stays.

    Returns:
        Whether it does: not without glibc, nor where ``MALLOC_*`` or ``GLIBC_TUNABLES`` is set.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return False
    # No block gets a mapping of its own, which would be unmapped with it.
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _MOST), (_TOP_PAD, _STEP))
    done = [mallopt(*setting) for setting in settings]  # all of them, whatever one answers
    return all(one == 1 for one in done)
