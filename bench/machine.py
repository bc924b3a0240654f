"""What a result was measured on: machine, versions, commit."""

import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from provenance import git_commit


def describe(device: str, threads: int | None, command: str) -> dict[str, Any]:
    """device: `cpu` or `cuda...`, as chosen. threads: asked for; None: torch's default."""
    import torch

    found = {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads or torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "device": device,
        "gpu": None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "commit": git_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
    }
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(torch.device(device))
    return found


def cpu_name() -> str:
    """As the system calls it; `cpu` where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "cpu"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "cpu"


def file_name(machine: dict[str, Any]) -> str:
    """<machine>-<short commit>.json."""
    words = re.sub(r"\((R|TM)\)|\bCPU\b|\bProcessor\b|@.*", " ", machine["gpu"] or machine["cpu"])
    name = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") or "machine"
    commit = machine["commit"] or "unknown"
    dirty = "-dirty" if commit.endswith("-dirty") else ""
    cores = "" if machine["gpu"] else f"-{machine['cores']}cores"
    return f"{name}{cores}-{commit.removesuffix('-dirty')[:8]}{dirty}.json"
