"""Features of this machine: what its processors multiply, how fast, and how much memory is free."""

import re
from functools import cache
from pathlib import Path

import torch


@cache
def cpu_multiplies_bfloat16() -> bool:
    """Whether it has AMX or AVX512-BF16. Without, bfloat16 is emulated, slower than float32."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


# Peak bfloat16 rates of tensor cores, sums in float32, without sparsity, in TFLOP/s: NVIDIA's data sheets
# (those of L4, L40S, H100 and H200 give twice these, with sparsity), and its papers on GeForce. The first
# pattern in a card's name counts.
_PEAK_BF16_TFLOPS = (
    (r"B200", 2250.0),
    (r"(H100|H200) NVL", 835.0), (r"H100 PCIe", 756.0), (r"H100|H200|GH200", 989.4), (r"H800", 989.4),
    (r"A100|A800", 312.0), (r"A30", 165.0), (r"A40", 149.7), (r"A10", 125.0), (r"RTX A6000", 154.8),
    (r"L40S", 362.0), (r"L40", 181.0), (r"L4", 121.0), (r"RTX 4090", 165.2), (r"RTX 3090", 71.0),
)  # fmt: skip


def peak_bf16_flops(card: str) -> float | None:
    """Floating-point operations a second that a GPU can do at most in bfloat16: what MFU divides by.

    Args:
        card: its name, as torch.cuda.get_device_name gives it.

    None for cards that are not in the table, and for slices of a card (MIG).
    """
    if re.search(r"\bMIG\b", card):
        return None
    found = (tflops for name, tflops in _PEAK_BF16_TFLOPS if re.search(rf"\b({name})\b", card))
    return next((1e12 * tflops for tflops in found), None)


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
