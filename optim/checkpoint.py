"""Checkpoints of a run: `ckpt_<step>` while it goes on, `ckpt` at its end; which there are, which to take.

One file (.pt), or the folder that sharded training writes (.dcp). Both hold tensors and plain data only:
loading one runs no code. `python -m optim.checkpoint list|verify|convert` looks at them from outside.
"""

import contextlib
import logging
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

from errors import Failure, UsageError
from files import TEMPORARY_SUFFIX
from optim import checkpoint_file
from optim.lock import FILE_NAME as LOCK
from optim.run_folder import FILE, FOLDER, in_folder, is_final, name_of, step_of

logger = logging.getLogger(__name__)


def write(
    path: Path,
    content: dict[str, Any],
    staging: Path | None = None,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Write a checkpoint in the format that its name ends in: beside its place, forced to disk, then renamed.

    staging: a folder on this machine to write it to first. group: the processes that write a folder together,
    all of which call this. Raises Failure.
    """
    if path.suffix == FILE:
        checkpoint_file.write(path, content, staging)
    else:
        _folders().write(path, content, staging, group)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint, ours or another's, as plain data and whole tensors on the CPU.

    Raises Failure when it is damaged, or holds anything besides tensors and plain data.
    """
    if not path.exists():
        raise UsageError(f"{path}: there is no such checkpoint")
    return _folders().read(path) if path.is_dir() else checkpoint_file.read(path)


def _folders():
    from optim import checkpoint_folder  # for torch takes a second to import what it needs

    return checkpoint_folder


def find(path: Path) -> Path:
    """The checkpoint that a path or a run's folder stands for. Raises UsageError when there is none."""
    if path.is_file() or (path.is_dir() and path.suffix == FOLDER):
        return path
    if not path.exists():
        raise UsageError(f"{path}: there is no such file or folder")
    found = in_folder(path)
    if not found:
        raise UsageError(f"{path} holds no checkpoint (ckpt.pt or ckpt_<step>.pt, or .dcp)")
    return found[0]


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
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
            logger.warning(f"{error}; trying the checkpoint before it")
            continue
        # A run that is being extended has later ckpt_<step>.pt beside its ckpt.pt.
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


def keep_final(path: Path, step: int) -> None:
    """Before a finished run is extended: its checkpoint, of `step`, becomes ckpt_<step>, to be kept."""
    path.replace(path.with_name(name_of(step, path.suffix)))


def remove_leftovers(folder: Path) -> None:
    """Delete what saves that were killed half-way have left beside the checkpoints."""
    for path in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        if not path.name.startswith(LOCK):  # of a process that tries to take this folder just now
            delete(path)


def remove_intermediary(folder: Path) -> None:
    """Delete the ckpt_<step> of a finished run."""
    for path in in_folder(folder):
        if not is_final(path):
            delete(path)


def keep_some(newest: Path, last: int, every: int | None) -> None:
    """Delete checkpoints older than `newest`, but for the last ones, itself included, and those at multiples
    of `every` steps. What has more steps is of another line, or damaged: that is left to people."""
    step = step_of(newest)
    older = [path for path in in_folder(newest.parent) if not is_final(path) and step_of(path) < step]
    for path in older[last - 1 :]:
        if every is None or step_of(path) % every:
            delete(path)


def set_aside(start: Path, step: int) -> None:
    """Before a run goes back to `start`, of `step`: later ones lose the names they would be taken by."""
    for path in in_folder(start.parent):
        if path != start and (is_final(path) or step_of(path) > step):
            aside = path.with_name(f"{path.name}.set-aside")
            number = 1
            while aside.exists():
                number += 1
                aside = path.with_name(f"{path.name}.set-aside-{number}")
            path.rename(aside)
            logger.info(f"note: {path.name} is of more steps than {start.name}: it is now {aside.name}")


def delete(path: Path) -> None:
    """A checkpoint or what is left of one; a folder loses its name first, so that none seems whole."""
    with contextlib.suppress(OSError):
        if path.is_dir():
            if path.suffix != TEMPORARY_SUFFIX:
                path = path.rename(path.with_name(path.name + TEMPORARY_SUFFIX))
            shutil.rmtree(path)
        else:
            path.unlink()


if __name__ == "__main__":
    from errors import run_script
    from optim.checkpoint_commands import main

    run_script(main)
