"""Training on a CPU keeps the memory that it frees.

Each step frees what the next asks for again. glibc gives large blocks back to the system at once, and
the system then clears every page anew: a fifth of a small step's time (docs/log.md). Steps differ in
size, so what is kept has holes that no later block fits into; now and then all that is unused goes back.

What lives on in that heap cuts it into pieces, and a large block is looked for in them one by one.
oneDNN makes a kernel for each new shape of a product and keeps a thousand, twice: with few of them a
step stays as fast as the first ones were (docs/log.md).
"""

from __future__ import annotations

import ctypes
import os
from itertools import count

# malloc.h; the numbers are part of glibc's interface.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_MOST = 2**31 - 1  # mallopt takes an int
_STEP = 2**28  # bytes that the heap grows by
EVERY = 100  # steps: the pages that go back have to be cleared again
# How many kernels oneDNN keeps, and PyTorch's layer above it; read as the first product is made.
_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "128"}

_kept = False
_calls = count(1)


def keep_freed_memory() -> bool:
    """Let glibc reuse what was freed, for the rest of the process; what a user has set stays.

    Returns:
        Whether it does: not without glibc, nor where ``MALLOC_*`` or ``GLIBC_TUNABLES`` is set.
    """
    global _kept
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return False
    # No block gets a mapping of its own, which would be unmapped with it.
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _MOST), (_TOP_PAD, _STEP))
    done = [mallopt(*setting) for setting in settings]  # all of them, whatever one answers
    _kept = all(one == 1 for one in done)
    if _kept:
        for name, number in _KERNELS.items():
            os.environ.setdefault(name, number)
    return _kept


def give_back_unused() -> None:
    """Called before every step: each ``EVERY`` times, what no tensor uses goes back to the system."""
    if _kept and next(_calls) % EVERY == 0:
        ctypes.CDLL(None).malloc_trim(0)
