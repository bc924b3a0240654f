"""Features of this machine: what its processor multiplies, and how much memory is free."""

from functools import cache
from pathlib import Path

import torch


@cache
def cpu_multiplies_bfloat16() -> bool:
    """Whether it has AMX or AVX512-BF16. Without, bfloat16 is emulated, slower than float32."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a device: of its GPU, or of the main memory. None: not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_main_memory()


def free_main_memory(root: Path = Path("/")) -> int | None:
    """Bytes that the kernel calls available, at most those left within the limits of cgroups (Linux).

    Slurm and containers limit memory by cgroups. None on systems without /proc.

    Args:
        root: where proc and sys are.
    """
    found = [room for folder in _cgroups(root) if (room := _room(folder)) is not None]
    for line in _lines(root / "proc/meminfo"):
        name, value, *_ = line.split()
        if name == "MemAvailable:":
            found.append(1024 * int(value))
    return max(min(found), 0) if found else None


def _cgroups(root: Path) -> list[Path]:
    """This process' cgroups that may limit memory, with those around them: version 2, and 1 (memory/)."""
    folders = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            top = root / "sys/fs/cgroup" / controllers
            own = top / path.lstrip("/")
            # Within a container the path may be that of the host: then its own limits are at the top.
            folders += [own, *(above for above in own.parents if above.is_relative_to(top))]
    return folders


def _room(cgroup: Path) -> int | None:
    """Bytes left within its limit, files in the page cache not counted as used; None: it has no limit."""
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        numbers = [line for name in (limit, used) for line in _lines(cgroup / name)]
        if len(numbers) == 2 and all(number.isdecimal() for number in numbers):
            statistics = dict(line.split() for line in _lines(cgroup / "memory.stat"))
            return int(numbers[0]) - int(numbers[1]) + int(statistics.get(cached, 0))
    return None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
