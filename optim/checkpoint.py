"""Checkpoints of a run: `ckpt_<step>` during training, `ckpt` at its end; names, loading, selection, removal.

Two formats hold the same tensors and plain data: one file (.pt), and the folder that FSDP writes (.dcp).
Loading runs no code from them. This module does not import torch, as job scripts use it on login nodes.
`checkpoints.py` is the command.
"""

import contextlib
import logging
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errors import Failure, UsageError
from files import TEMPORARY_SUFFIX, read_json

if TYPE_CHECKING:
    import torch.distributed as dist

logger = logging.getLogger(__name__)

_NAME = re.compile(r"ckpt(?:_(\d+))?\.(?:pt|dcp)")
# Of a checkpoint of this project, besides its tensors.
_TYPES = dict.fromkeys(("model", "optimizer", "scaler", "interval", "tied", "args", "tokenizer"), dict)
_TYPES |= {"step": int, "schedule_iterations": int, "seconds": float}
FILE, FOLDER = ".pt", ".dcp"  # the suffixes of the two formats


def name_of(step: int | None, suffix: str = FILE) -> str:
    """ckpt_<step><suffix>; for None, the final checkpoint's name."""
    return f"ckpt{'' if step is None else f'_{step}'}{suffix}"


def step_of(path: Path) -> int | None:
    """The step in a checkpoint's name; None for a final one."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match and match[1] else None


def is_final(path: Path) -> bool:
    """Whether a checkpoint's name is that of the end of a run."""
    return path.stem == "ckpt"


def in_folder(folder: Path) -> list[Path]:
    """The checkpoints in a run's folder: the final ones, then the others from the latest step backwards."""
    found = [path for path in sorted(folder.glob("ckpt*")) if _NAME.fullmatch(path.name)]
    steps = {path: step for path in found if (step := step_of(path)) is not None}
    return [path for path in found if path not in steps] + sorted(steps, key=steps.__getitem__, reverse=True)


def where_to_resume(folder: Path) -> str:
    """A sentence about a run that has been interrupted."""
    saved = in_folder(folder)
    kept = f"{saved[0].name} is the last checkpoint" if saved else "no checkpoint had been saved yet"
    return f"{kept}; the same command resumes from there"


def covered_by_summary(folder: Path, iterations: int) -> bool:
    """Whether the run in `folder` has finished with at least `iterations` iterations.

    Raises UsageError for a summary.json that is not a run's.
    """
    path = folder / "summary.json"
    if not path.exists():
        return False
    try:
        return read_json(path)["iterations"] >= iterations
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is not the summary of a run of this project; move it away, or give another --exp_name"
        ) from error


def write(
    path: Path,
    content: dict[str, Any],
    staging: Path | None = None,
    group: "dist.ProcessGroup | None" = None,
) -> None:
    """Write a checkpoint atomically and durably, in the format of its suffix.

    Args:
        content: nested dicts of tensors and plain data.
        staging: a folder on a local disk to write to first.
        group: the ranks that write a folder together; all of them call this.

    Raises Failure.
    """
    if path.suffix == FILE:
        from optim import checkpoint_file

        checkpoint_file.write(path, content, staging)
    else:
        from optim import checkpoint_folder  # torch.distributed.checkpoint takes a second to import

        checkpoint_folder.write(path, content, staging, group)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint, ours or the released code's: plain data and full tensors on the CPU.

    Raises UsageError when there is none, Failure when it is damaged or holds anything else.
    """
    if not path.exists():
        raise UsageError(f"{path}: there is no such checkpoint")
    if path.is_dir():
        from optim import checkpoint_folder

        content = checkpoint_folder.read(path)
    else:
        from optim import checkpoint_file

        content = checkpoint_file.read(path)
    if "format" in content:
        _require_types(path, content)
    return content


def _require_types(path: Path, content: dict[str, Any]) -> None:
    for name, kind in _TYPES.items():
        value = content.get(name, kind())
        if not (isinstance(value, dict) if kind is dict else isinstance(value, (int, kind)) and value >= 0):
            raise Failure(f"{path} is damaged or no checkpoint: its {name} is a {type(value).__name__}")


def find(path: Path) -> Path:
    """The checkpoint at `path`, or the most advanced one in the run's folder `path`. Raises UsageError."""
    if path.is_file() or (path.is_dir() and path.suffix == FOLDER):
        return path
    if not path.exists():
        raise UsageError(f"{path}: there is no such file or folder")
    found = in_folder(path)
    if not found:
        raise UsageError(f"{path} holds no checkpoint (ckpt.pt or ckpt_<step>.pt, or .dcp)")
    return found[0]


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The readable checkpoint with the most steps, and its content; None if the folder has none.

    Damaged ones are skipped with a warning and left in place. Raises Failure when none can be read, as a
    fresh start would silently lose the run.
    """
    found = in_folder(folder)
    best = None
    for path in found:
        try:
            content = load(path)
        except Failure as error:
            logger.warning(f"{error}; trying the checkpoint before it")
            continue
        # A run that is being extended has its old final checkpoint and later ckpt_<step> ones.
        if best is None or content.get("step", 0) > best[1].get("step", 0):
            best = (path, content)
        if not is_final(path):
            break
    if found and best is None:
        raise Failure(
            f"none of the {len(found)} checkpoints in {folder} can be read; move them away to start afresh, "
            "or give another --exp_name"
        )
    return best


def rename_final(path: Path, step: int) -> None:
    """Rename a finished run's checkpoint to ckpt_<step>, so that extending the run does not overwrite it."""
    path.replace(path.with_name(name_of(step, path.suffix)))


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of saves that were killed."""
    for path in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        delete(path)


def remove_intermediary(folder: Path) -> None:
    """Delete the ckpt_<step> of a finished run."""
    for path in in_folder(folder):
        if not is_final(path):
            delete(path)


def remove_old(newest: Path, keep_last: int, keep_every: int | None) -> None:
    """Delete checkpoints before `newest`, except the `keep_last` latest and multiples of `keep_every`.

    Checkpoints of later steps stay: they are damaged, or belong to another line of training.
    """
    step = step_of(newest)
    older = [path for path in in_folder(newest.parent) if not is_final(path) and step_of(path) < step]
    for path in older[keep_last - 1 :]:
        if keep_every is None or step_of(path) % keep_every:
            delete(path)


def set_aside(start: Path, step: int) -> None:
    """Before a run resumes from `start`: newer checkpoints are renamed so that auto-resume ignores them."""
    for path in in_folder(start.parent):
        if path != start and (is_final(path) or step_of(path) > step):
            aside = path.with_name(f"{path.name}.set-aside")
            number = 1
            while aside.exists():
                number += 1
                aside = path.with_name(f"{path.name}.set-aside-{number}")
            path.rename(aside)
            logger.info(f"note: {path.name} has more steps than {start.name} and is renamed to {aside.name}")


def delete(path: Path) -> None:
    """Delete a checkpoint or its leftovers; a folder is renamed first, so that none is read half-deleted."""
    with contextlib.suppress(OSError):
        if path.is_dir():
            if path.suffix != TEMPORARY_SUFFIX:
                path = path.rename(path.with_name(path.name + TEMPORARY_SUFFIX))
            shutil.rmtree(path)
        else:
            path.unlink()


if __name__ == "__main__":  # `python -m optim.checkpoint` is an alias of checkpoints.py
    import runpy

    runpy.run_module("checkpoints", run_name="__main__", alter_sys=True)
