"""A checkpoint of sharded training: a folder of safetensors files, written by torch.distributed.checkpoint.

Each process writes its part; state.json, which comes last, holds the plain data, and size and SHA-256 of
every file. The folder is filled beside its place and renamed. torch's own metadata file is a pickle, which
would run code when it is read; the safetensors files say themselves what lies where.
"""

import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from errors import Failure
from files import TEMPORARY_SUFFIX, copy_atomically, file_sha256, sync_folder, write_json
from optim.checkpoint_file import staging_name

STATE = "state.json"
_TENSORS = "*.safetensors"


def write(path: Path, content: dict[str, Any], staging: Path | None, group: dist.ProcessGroup | None) -> None:
    """Write `content` (nested dicts; its tensors may be parts of ones that lie in several processes).

    All processes of the group call this; group None is one process. staging: see `checkpoint_file.write`.
    Raises Failure on all of them where one fails, and leaves what was at `path` before.
    """
    tensors, plain = _parted(content)
    beside = path.with_name(path.name + TEMPORARY_SUFFIX)
    main = group is None or dist.get_rank(group) == 0
    # Of one process for all, on each machine: the files of a folder have the names of their processes.
    local = beside if staging is None else staging / staging_name(path)
    try:
        _together(group, main, lambda: _emptied(beside))
        _together(group, True, lambda: local.mkdir(parents=True, exist_ok=True))
        writer = HuggingFaceStorageWriter(str(local), save_distributed=True)
        with _quiet():
            _together(
                group, True,
                lambda: dcp.save(tensors, storage_writer=writer, process_group=group, no_dist=group is None),
            )  # fmt: skip
        if staging is not None:
            rank = 0 if group is None else dist.get_rank(group)
            _together(group, True, lambda: _copy_own(local, beside, rank))
        _together(group, main, lambda: _complete(beside, path, plain))
    finally:
        if staging is not None:
            shutil.rmtree(local, ignore_errors=True)


def read(path: Path) -> dict[str, Any]:
    """The content, tensors whole and on the CPU, whatever number of processes wrote it. Raises Failure."""
    check(path)
    try:
        plain = json.loads((path / STATE).read_text(encoding="utf-8"))["state"]
        with _quiet():
            described = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
            tensors = {
                name: torch.empty(about.size, dtype=about.properties.dtype)
                for name, about in described.items()
            }
            dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
        return _joined(tensors, plain)
    except Exception as error:
        raise Failure(f"{path} is damaged or no checkpoint ({type(error).__name__}: {error})") from error


def check(path: Path) -> None:
    """Raises Failure where a file is missing, or not what it was when it was written."""
    try:
        files = json.loads((path / STATE).read_text(encoding="utf-8"))["files"]
        for name, about in files.items():
            if Path(name).name != name or (path / name).stat().st_size != about["size"]:
                raise Failure(f"{path} is damaged: {name} is not as long as it was")
            if file_sha256(path / name) != about["sha256"]:
                raise Failure(f"{path} is damaged: the checksum of {name} does not fit")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failure(f"{path} is damaged or no checkpoint ({type(error).__name__}: {error})") from error


def _parted(content: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors by the path of their keys, and the plain rest. A tied weight goes under one of its names."""
    tensors: dict[str, torch.Tensor] = {}
    tied = {f"model/{name}" for name in content["tied"]}

    def walk(folder: dict[Any, Any], path: str) -> dict[str, Any]:
        plain = {}
        for key, value in folder.items():
            name = f"{path}{key}"
            if isinstance(value, dict):
                plain[str(key)] = walk(value, f"{name}/")
            elif not isinstance(value, torch.Tensor):
                plain[str(key)] = value
            elif name not in tied:
                tensors[name] = value
        return plain

    plain = walk(content, "")
    return tensors, plain


def _joined(tensors: dict[str, torch.Tensor], plain: dict[str, Any]) -> dict[str, Any]:
    """The way back."""
    content = plain
    for name, tensor in tensors.items():
        *folders, last = name.split("/")
        place = content
        for key in folders:
            place = place.setdefault(key, {})
        place[last] = tensor
    for name, first in content["tied"].items():
        content["model"][name] = content["model"][first]
    content["optimizer"] = {int(index): slots for index, slots in content["optimizer"].items()}
    return content


def _emptied(beside: Path) -> None:
    if beside.exists():
        shutil.rmtree(beside)
    beside.mkdir(parents=True)


def _copy_own(local: Path, beside: Path, rank: int) -> None:
    for source in local.glob(f"shard-{rank + 1:05d}-*"):
        copy_atomically(source, beside / source.name)


def _complete(beside: Path, path: Path, plain: dict[str, Any]) -> None:
    """state.json, and the new name. What was there under it goes last."""
    files = {
        file.name: {"size": file.stat().st_size, "sha256": file_sha256(file)}
        for file in sorted(beside.glob(_TENSORS))
    }
    write_json(beside / STATE, {"state": plain, "files": files})
    sync_folder(beside)
    old = path.with_name(f"{path.name}.old{TEMPORARY_SUFFIX}")
    if path.exists():
        path.rename(old)
    os.rename(beside, path)
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _together(group: dist.ProcessGroup | None, mine: bool, work: Callable[[], Any]) -> None:
    """Do `work` where it is this process' to do; raise Failure on all processes where it failed on one."""
    reason = None
    if mine:
        try:
            work()
        except (OSError, Failure, dcp.CheckpointException, RuntimeError) as error:
            reason = _reason(error)
    reasons = [reason]
    if group is not None:
        reasons = [None] * dist.get_world_size(group)
        dist.all_gather_object(reasons, reason, group)
    for found in reasons:
        if found is not None:
            raise Failure(f"cannot write a checkpoint: {found}")


def _reason(error: BaseException) -> str:
    """Of one that torch wraps, what happened, in one line."""
    if isinstance(error, dcp.CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, OSError):
        return f"{error.filename or ''}: {error.strerror or error}".removeprefix(": ")
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


class _quiet(warnings.catch_warnings):
    """Without torch's remark that one process works alone."""

    def __enter__(self):
        found = super().__enter__()
        warnings.filterwarnings("ignore", ".*torch.distributed is disabled.*")
        logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
        return found
