"""summary.json: what a finished run was and came to."""

import datetime
import platform
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy
import torch

from files import write_json
from optim.metrics import curves, read_metrics
from provenance import git_commit, machine


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
            "git_commit": git_commit(),
            "machine": machine(),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
    )


def versions() -> dict[str, str]:
    """Of what a run's numbers depend on."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": numpy.__version__}
