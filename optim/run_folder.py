"""What lies in the folder of a run: its checkpoints by their names, and whether it has finished.

No torch here: job scripts ask on login nodes.
"""

import json
import re
from pathlib import Path

from errors import UsageError

_NAME = re.compile(r"ckpt(?:_(\d+))?\.(?:pt|dcp)")
FILE, FOLDER = ".pt", ".dcp"  # the two formats, by the endings of names


def name_of(step: int | None, suffix: str = FILE) -> str:
    """ckpt_<step><suffix>, or, for None, that of the end."""
    return f"ckpt{'' if step is None else f'_{step}'}{suffix}"


def in_folder(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder, the most advanced first: those of the end, then by step."""
    found = [(path, _NAME.fullmatch(path.name)) for path in sorted(folder.glob("ckpt*"))]
    final = [path for path, match in found if match and match[1] is None]
    return final + sorted((path for path, match in found if match and match[1]), key=step_of, reverse=True)


def step_of(path: Path) -> int | None:
    """The step in a checkpoint's name; None for that of the end."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match and match[1] else None


def is_final(path: Path) -> bool:
    """Whether it is that of a run's end, by its name."""
    return path.stem == "ckpt"


def covered_by_summary(folder: Path, iterations: int) -> bool:
    """Whether the run in `folder` has finished with at least that many iterations.

    Raises UsageError for a summary.json that is none.
    """
    path = folder / "summary.json"
    if not path.exists():
        return False
    try:
        return json.loads(path.read_text(encoding="utf-8"))["iterations"] >= iterations
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is not the summary of a run of this project; move it away, or give another --exp_name"
        ) from error
