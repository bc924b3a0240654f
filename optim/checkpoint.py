"""Checkpoints on disk: `ckpt_<step>.pt` while a run goes on, `ckpt.pt` at its end.

A checkpoint holds tensors and plain data only, and is read with weights_only: loading one runs no code.
"""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from errors import Failure, UsageError
from files import TEMPORARY_SUFFIX, write_atomically

FINAL_NAME = "ckpt.pt"
_STEP = re.compile(r"ckpt_(\d+)\.pt")


def step_name(step: int) -> str:
    return f"ckpt_{step}.pt"


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint: beside its place, forced to disk, then renamed."""
    write_atomically(path, lambda file: torch.save(content, file))


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint, ours or another's, as plain data.

    Raises Failure when the file is damaged, or holds anything besides tensors and plain data.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: there is no such checkpoint") from error
    except Exception as error:  # torch reports damage in a dozen ways, and never says what to do
        if "weights_only" in str(error) or "Unsupported" in str(error):
            reason = "holds more than tensors and plain data; nothing of it was run, and it is not read"
        else:
            reason = "is damaged or no checkpoint"
        raise Failure(f"{path} {reason} ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise Failure(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def in_folder(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder, the most advanced first: the final one, then by step."""
    steps = {
        path: int(match[1]) for path in folder.glob("ckpt_*.pt") if (match := _STEP.fullmatch(path.name))
    }
    numbered = sorted(steps, key=steps.__getitem__, reverse=True)
    return [path for path in (folder / FINAL_NAME,) if path.is_file()] + numbered


def find(path: Path) -> Path:
    """The checkpoint that a file or a run's folder stands for. Raises UsageError when there is none."""
    if path.is_file():
        return path
    if not path.exists():
        raise UsageError(f"{path}: there is no such file or folder")
    found = in_folder(path)
    if not found:
        raise UsageError(f"{path} holds no checkpoint (ckpt.pt or ckpt_<step>.pt)")
    return found[0]


def newest(folder: Path, report: Callable[[str], None] = print) -> tuple[Path, dict[str, Any]] | None:
    """The readable checkpoint with the most steps and its content; None where there is no checkpoint.

    One that cannot be read is named, left in place and passed over. Raises Failure when none can be read:
    starting afresh would lose the run without a word.
    """
    found = in_folder(folder)
    best = None
    for path in found:
        try:
            content = load(path)
        except Failure as error:
            report(f"warning: {error}; trying the checkpoint before it")
            continue
        # A run that is being extended has later ckpt_<step>.pt beside its ckpt.pt.
        if best is None or content.get("step", 0) > best[1].get("step", 0):
            best = (path, content)
        if path.name != FINAL_NAME:
            break
    if found and best is None:
        raise Failure(
            f"none of the {len(found)} checkpoints in {folder} can be read; move them away to start afresh, "
            "or give another --exp_name"
        )
    return best


def keep_final(folder: Path, step: int) -> None:
    """Before a finished run is extended: its ckpt.pt, of `step`, becomes ckpt_<step>.pt, to be kept."""
    (folder / FINAL_NAME).replace(folder / step_name(step))


def remove_leftovers(folder: Path) -> None:
    """Delete what saves that were killed half-way have left beside the checkpoints."""
    for path in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        with contextlib.suppress(OSError):
            path.unlink()


def remove_intermediary(folder: Path) -> None:
    """Delete the ckpt_<step>.pt of a finished run, keeping ckpt.pt."""
    for path in in_folder(folder):
        if path.name != FINAL_NAME:
            path.unlink()
