"""Provenance of results: commit, uncommitted changes, machine."""

import os
import platform
import subprocess
from pathlib import Path


def git_commit() -> str | None:
    """The commit of this code, with the suffix -dirty if tracked files differ; None outside a repository."""
    described = _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    return None if described is None else described.strip()


def git_diff() -> str | None:
    """Uncommitted changes of tracked files, as a patch; None outside a repository."""
    return _git("diff", "HEAD")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.decode(errors="replace")


def machine() -> str:
    """The processor's name and the number of cores that this process may use."""
    return f"{processor()}, {cores()} cores"


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The processor's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"
