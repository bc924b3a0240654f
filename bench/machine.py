"""What a result was measured on: machine, versions, commit."""

import os
import platform
import re
from datetime import UTC, datetime
from typing import Any

from bench.plan import Plan
from provenance import cores, git_commit, processor


def describe(plan: Plan, command: str) -> dict[str, Any]:
    """And of how thorough the plan is."""
    import torch

    device, threads = plan.device, plan.threads

    found = {
        "cpu": processor(),
        "cores": cores(),
        "threads": threads or torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "device": device,
        "gpu": None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "commit": git_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "effort": plan.effort,
        "command": command,
    }
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(torch.device(device))
    return found


def file_name(machine: dict[str, Any]) -> str:
    """<machine>-<short commit>.json."""
    words = re.sub(r"\((R|TM)\)|\bCPU\b|\bProcessor\b|@.*", " ", machine["gpu"] or machine["cpu"])
    name = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") or "machine"
    commit = machine["commit"] or "unknown"
    dirty = "-dirty" if commit.endswith("-dirty") else ""
    cores = "" if machine["gpu"] else f"-{machine['cores']}cores"
    return f"{name}{cores}-{commit.removesuffix('-dirty')[:8]}{dirty}.json"
