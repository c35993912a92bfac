"""The C library's memory between the steps of a training on a CPU.

Each step allocates and frees the same tensors. By default glibc gives blocks that large back to the system at once, and
the next step waits while the system clears the same pages anew, page by page. Here freed blocks are kept instead.
"""

from __future__ import annotations

import ctypes
import os

SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")
"""Variables by which a user says something else."""
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
"""Numbers of the parameters in glibc's malloc.h."""
KEPT, LARGEST, GROWTH = 2**31 - 1, 2**30, 2**26
"""Bytes at the heap's end that stay (the largest number that mallopt takes); up to which a block lies in the heap;
that are asked of the system beyond what is needed."""


def keep_freed_memory() -> bool:
    """Have this process keep what it frees, for the rest of its life; whether it does.

    Nothing happens where the C library is not glibc, or where the environment has settings of its own.
    """
    if any(name in os.environ for name in SETTINGS):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - other C libraries have no such function
        mallopt = library.mallopt
    except (TypeError, OSError, AttributeError):  # Windows; no dynamic C library; another one
        return False
    return all(mallopt(*one) == 1 for one in ((MMAP_THRESHOLD, LARGEST), (TRIM_THRESHOLD, KEPT), (TOP_PAD, GROWTH)))
