"""The C library's memory, kept by the process instead of being handed back and asked for again."""

import ctypes
import os
import platform

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_heap() -> bool:
    """Have freed memory stay for the next tensor of its size; returns whether that could be arranged.

    glibc maps each block of 32 MiB or more anew and unmaps it when it is freed, and the kernel clears its
    pages one by one when they are first touched: of a training step on a CPU that was a tenth. In exchange
    the process stays as large as it has once been. Only glibc has it (Linux); what MALLOC_* or
    GLIBC_TUNABLES in the environment say is left as it is.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
