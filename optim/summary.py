"""summary.json: what a finished run was and came to."""

import datetime
import platform
import subprocess
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy
import torch

from files import write_json
from optim.metrics import curves, read_metrics


def write_summary(folder: Path, args: Namespace, about: dict[str, Any]) -> None:
    """Flags, curves and final numbers, read from metrics.jsonl; and `about`."""
    lines = read_metrics(folder)
    write_json(
        folder / "summary.json",
        {
            "args": vars(args),
            **about,
            "average_depth": lines[-1].get("val_average_depth"),
            "final": lines[-1],
            **curves(lines),
            "versions": versions(),
            "git_commit": _git_commit(),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
    )


def versions() -> dict[str, str]:
    """Of what a run's numbers depend on."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": numpy.__version__}


def _git_commit() -> str | None:
    """The commit of this code, with -dirty behind it where files differ; None outside a repository."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
