"""Checkpoints of FSDP: a folder of safetensors files, written by torch.distributed.checkpoint.

Each rank writes its shards; state.json, written last, holds the plain data, and size and SHA-256 of every
file. The folder is filled under a temporary name and renamed. torch's own metadata file is not used: it is a
pickle, which could run code; the headers of the safetensors files describe the shards.
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
from files import TEMPORARY_SUFFIX, copy_atomically, file_sha256, sync_folder, utf8_path, write_json
from optim.checkpoint_file import staging_name

STATE = "state.json"
_TENSORS = "*.safetensors"


def write(path: Path, content: dict[str, Any], staging: Path | None, group: dist.ProcessGroup | None) -> None:
    """Write `content` (nested dicts of tensors, sharded or full, and plain data) atomically and durably.

    Args:
        staging: a folder on a local disk, see `checkpoint_file.write`.
        group: the ranks that write together, all of which call this; None: one process.

    Raises Failure on all ranks if one fails; a checkpoint that was at `path` before stays.
    """
    tensors, plain = _split(content)
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    main = group is None or dist.get_rank(group) == 0
    # Shared by the ranks of a machine: file names contain the rank.
    local = temporary if staging is None else staging / staging_name(path)
    try:
        _on_all_ranks(group, main, lambda: _make_empty(temporary))
        _on_all_ranks(group, True, lambda: local.mkdir(parents=True, exist_ok=True))
        writer = HuggingFaceStorageWriter(str(local), save_distributed=True)
        with _quiet():
            _on_all_ranks(
                group, True,
                lambda: dcp.save(tensors, storage_writer=writer, process_group=group, no_dist=group is None),
            )  # fmt: skip
        if staging is not None:
            rank = 0 if group is None else dist.get_rank(group)
            _on_all_ranks(group, True, lambda: _copy_own(local, temporary, rank))
        _on_all_ranks(group, main, lambda: _complete(temporary, path, plain))
    finally:
        if staging is not None:
            shutil.rmtree(local, ignore_errors=True)


def read(path: Path) -> dict[str, Any]:
    """The content, with full tensors on the CPU, whatever number of ranks wrote it. Raises Failure."""
    check(path)
    try:
        plain = json.loads((path / STATE).read_text(encoding="utf-8"))["state"]
        with _quiet(), utf8_path(path) as readable:
            described = HuggingFaceStorageReader(str(readable)).read_metadata().state_dict_metadata
            tensors = {
                name: torch.empty(about.size, dtype=about.properties.dtype)
                for name, about in described.items()
            }
            dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(readable)), no_dist=True)
        return _join(tensors, plain)
    except Exception as error:
        raise Failure(f"{path} is damaged or no checkpoint ({type(error).__name__}: {error})") from error


def check(path: Path) -> None:
    """Raises Failure when a file is missing, or its size or checksum does not match."""
    try:
        files = json.loads((path / STATE).read_text(encoding="utf-8"))["files"]
        for name, about in files.items():
            if Path(name).name != name or (path / name).stat().st_size != about["size"]:
                raise Failure(f"{path} is damaged: {name} has another size")
            if file_sha256(path / name) != about["sha256"]:
                raise Failure(f"{path} is damaged: the checksum of {name} does not match")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failure(f"{path} is damaged or no checkpoint ({type(error).__name__}: {error})") from error


def _split(content: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors by the path of their keys, plain data). A tied weight is stored under its first name."""
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


def _join(tensors: dict[str, torch.Tensor], plain: dict[str, Any]) -> dict[str, Any]:
    """Inverse of `_split`."""
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


def _make_empty(temporary: Path) -> None:
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)


def _copy_own(local: Path, temporary: Path, rank: int) -> None:
    for source in local.glob(f"shard-{rank + 1:05d}-*"):
        copy_atomically(source, temporary / source.name)


def _complete(temporary: Path, path: Path, plain: dict[str, Any]) -> None:
    """Write state.json and rename the folder; an old checkpoint of that name is deleted last."""
    files = {
        file.name: {"size": file.stat().st_size, "sha256": file_sha256(file)}
        for file in sorted(temporary.glob(_TENSORS))
    }
    write_json(temporary / STATE, {"state": plain, "files": files})
    sync_folder(temporary)
    old = path.with_name(f"{path.name}.old{TEMPORARY_SUFFIX}")
    if path.exists():
        path.rename(old)
    os.rename(temporary, path)
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _on_all_ranks(group: dist.ProcessGroup | None, mine: bool, work: Callable[[], Any]) -> None:
    """Do `work` on the ranks where `mine`; raises Failure on all ranks if it failed on one."""
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
    """The cause of an error, one line, also if torch has wrapped it."""
    if isinstance(error, dcp.CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, OSError):
        return f"{error.filename or ''}: {error.strerror or error}".removeprefix(": ")
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


class _quiet(warnings.catch_warnings):
    """Without torch's warning that torch.distributed is disabled."""

    def __enter__(self) -> Any:
        found = super().__enter__()
        warnings.filterwarnings("ignore", ".*torch.distributed is disabled.*")
        logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
        return found
