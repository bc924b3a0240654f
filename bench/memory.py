"""How much memory processes hold: this one's now and at its peak, and the shares of others."""

import ctypes
import os
import resource
import sys
from pathlib import Path

MIB = 2**20
POPULATE_READ = 22  # of madvise, in <linux/mman.h> since 5.14


def resident_mib(pid: int | None = None) -> float:
    """Memory of this process now, or of another; 0 of one that has gone."""
    try:
        pages = int(Path(f"/proc/{pid or 'self'}/statm").read_text().split()[1])
    except OSError:  # gone, or not Linux: what it took at most so far, which at the start is the same
        return peak_mib() if pid is None else 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def peak_mib() -> float:
    """The most memory of this process so far (ru_maxrss counts KiB, on macOS bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024


def proportional_mib(pid: int) -> float:
    """Memory of a process with shared pages parted among their holders; 0 where it has gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def after_imports_mib() -> float:
    """Memory of this process, forked from one with all imports, with the pages of its libraries in it.

    A forked process does not take over the pages of files (the code of libraries): they are counted when
    they are first touched, tens of MiB that look like those of the work. So all are touched before it, a
    quarter of a second; where the kernel cannot, at least as many are counted as the parent holds.
    """
    if not _touch_libraries():
        return max(resident_mib(), resident_mib(os.getppid()))
    return resident_mib()


def _touch_libraries() -> bool:
    """Whether every page of the mapped files is now there. Those of CUDA (gigabytes) are left out: there the
    device's memory is what counts."""
    try:
        mapped = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return False
    system = ctypes.CDLL(None)
    for line in mapped:
        bounds, rights, *_, path = line.split(maxsplit=5) if line.count("/") else (line, "", "")
        if not (rights.startswith("r") and path.startswith("/")) or "cuda" in path or "/nvidia/" in path:
            continue
        begin, end = (int(bound, 16) for bound in bounds.split("-"))
        if system.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), POPULATE_READ):
            return False
    return True
