"""Memory of a process: at its start and at its peak."""

import ctypes
import os
import resource
import sys
from pathlib import Path

MIB = 2**20
POPULATE_READ = 22  # of madvise, in <linux/mman.h> since 5.14


def peak_mib() -> float:
    """The peak memory of this process so far (ru_maxrss counts KiB, on macOS bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024


def after_imports_mib() -> float:
    """Memory of this process, which was forked after all imports, with the pages of its libraries.

    A forked process does not inherit the pages of files (the code of libraries): they count when they are
    first touched, tens of MiB that look like memory of the measurement. So all are touched now, which takes a
    quarter of a second, but CUDA's (gigabytes; there the device's memory counts). Where the kernel cannot do
    that, at least as many pages count as the parent holds.
    """
    pids = ["self"]
    try:
        for line in Path("/proc/self/maps").read_text().splitlines():
            bounds, rights, *_, path = line.split(maxsplit=5) if "/" in line else (line, "", "")
            if rights.startswith("r") and path.startswith("/") and not ("cuda" in path or "/nvidia/" in path):
                begin, end = (int(bound, 16) for bound in bounds.split("-"))
                populate = ctypes.CDLL(None).madvise
                if populate(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), POPULATE_READ):
                    pids.append(str(os.getppid()))
                    break
        pages = max(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    except OSError:  # not Linux: the peak so far, which at the start is the same
        return peak_mib()
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB
