"""Checkpoints of FSDP: a folder of safetensors files, written by torch.distributed.checkpoint.

Each rank writes its shards; state.json, written last, holds the plain data, size and SHA-256 of every file,
and its own SHA-256. The folder is filled under a temporary name and renamed. torch's own metadata file is not
used: it is a pickle, which could run code; the headers of the safetensors files describe the shards.
"""

import contextlib
import hashlib
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
from safetensors import safe_open
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from errors import Failure
from files import (
    TEMPORARY_SUFFIX,
    copy_atomically,
    file_sha256,
    read_json,
    require_regular,
    sync_folder,
    utf8_path,
    write_json,
)
from optim.checkpoint_file import staging_name

STATE = "state.json"
_TENSORS = "*.safetensors"
_SHARDING = "DCP_SHARDING_INFO"  # in a header of torch's: where each tensor's shard begins, by dimension
_Shard = tuple[int, int, Any]  # first row of a tensor, number of rows, open file


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
        _on_all_ranks(group, True, lambda: _save_own(local, tensors, group))
        rank = 0 if group is None else dist.get_rank(group)
        # Each rank lists its own: on a network file system, rank 0 may not see them yet.
        own = _on_all_ranks(group, True, lambda: _describe_own(local, temporary, rank))
        files = {name: about for of_rank in own for name, about in of_rank.items()}
        _on_all_ranks(group, main, lambda: _complete(temporary, path, plain, files))
    finally:
        if staging is not None:
            shutil.rmtree(local, ignore_errors=True)


def read(path: Path) -> dict[str, Any]:
    """The content, with full tensors on the CPU, whatever number of ranks wrote it. Raises Failure."""
    state = check(path)
    try:
        with utf8_path(path) as readable:
            return _join(_read_tensors([readable / name for name in state["files"]]), state["state"])
    except Exception as error:
        raise Failure(f"{path} is damaged or no checkpoint ({type(error).__name__}: {error})") from error


def check(path: Path) -> dict[str, Any]:
    """The content of state.json.

    Raises Failure when it or a file is missing, when one has another size or checksum, and for shards that it
    does not list.
    """
    try:
        state = read_json(path / STATE)
        files = state["files"]
        # Checkpoints of before this checksum have none.
        if state.keys() - {"sha256"} != {"state", "files"} or (
            state.get("sha256", _digest(state)) != _digest(state)
        ):
            raise Failure(f"{path} is damaged: the checksum of {STATE} does not match")
        for name, about in files.items():
            if Path(name).name != name or (path / name).stat().st_size != about["size"]:
                raise Failure(f"{path} is damaged: {name} has another size")
            require_regular(path / name)
            if file_sha256(path / name) != about["sha256"]:
                raise Failure(f"{path} is damaged: the checksum of {name} does not match")
        unlisted = {file.name for file in path.glob(_TENSORS)} - files.keys()
        if unlisted:
            raise Failure(f"{path} is damaged: {min(unlisted)} is not of this checkpoint")
        return state
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failure(f"{path} is damaged or no checkpoint ({type(error).__name__}: {error})") from error


def _digest(state: dict[str, Any]) -> str:
    """SHA-256 of the data in state.json, as they are after reading."""
    return hashlib.sha256(json.dumps([state["state"], state["files"]]).encode()).hexdigest()


def _read_tensors(paths: list[Path]) -> dict[str, torch.Tensor]:
    """Full tensors by name, joined from the shards in these files. Raises ValueError where they have holes.

    torch's reader would allocate any declared size, and leave uninitialised what no shard holds.
    """
    with contextlib.ExitStack() as stack:
        shards: dict[str, list[_Shard]] = {}
        for path in paths:
            file = stack.enter_context(safe_open(path, "pt"))
            offsets = json.loads((file.metadata() or {}).get(_SHARDING, "{}"))
            for name in file.keys():  # noqa: SIM118  (the file is no dict)
                rows, *_ = file.get_slice(name).get_shape() or [1]
                first, *others = offsets.get(name, {}).get("saved_offsets") or [0]
                if any(others):
                    raise ValueError(f"{name} is split in a dimension that is not the first")
                shards.setdefault(name, []).append((first, rows, file))
        return {name: _join_shards(name, parts) for name, parts in shards.items()}


def _join_shards(name: str, parts: list[_Shard]) -> torch.Tensor:
    """The full tensor: FSDP's shards follow one another in the first dimension."""
    parts, end = sorted(parts, key=lambda part: part[:2]), 0
    for first, rows, _ in parts:
        if first != end:
            raise ValueError(f"a shard of {name} is missing, or there twice")
        end += rows
    tensors = [file.get_tensor(name) for _, _, file in parts]
    if len({tensor.dtype for tensor in tensors}) > 1:
        raise ValueError(f"the shards of {name} have several dtypes")
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


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


def _save_own(local: Path, tensors: dict[str, torch.Tensor], group: dist.ProcessGroup | None) -> None:
    writer = HuggingFaceStorageWriter(str(local), save_distributed=True)
    with _quiet():
        dcp.save(tensors, storage_writer=writer, process_group=group, no_dist=group is None)


def _describe_own(local: Path, temporary: Path, rank: int) -> dict[str, Any]:
    """Size and checksum of the rank's files by name; they are copied where `local` is a staging folder."""
    files = {}
    for file in local.glob(f"shard-{rank + 1:05d}-*"):
        files[file.name] = {"size": file.stat().st_size, "sha256": file_sha256(file)}
        if local != temporary:
            copy_atomically(file, temporary / file.name)
    return files


def _complete(temporary: Path, path: Path, plain: dict[str, Any], files: dict[str, Any]) -> None:
    """Write state.json and rename the folder; an old checkpoint of that name is deleted last."""
    state = {"state": plain, "files": files}
    write_json(temporary / STATE, state | {"sha256": _digest(state)})
    sync_folder(temporary)
    old = path.with_name(f"{path.name}.old{TEMPORARY_SUFFIX}")
    if path.exists():
        path.rename(old)
    os.rename(temporary, path)
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _on_all_ranks(group: dist.ProcessGroup | None, mine: bool, work: Callable[[], Any]) -> list[Any]:
    """Do `work` on the ranks where `mine`; returns its results by rank.

    Raises Failure on all ranks if it failed on one.
    """
    result = reason = None
    if mine:
        try:
            result = work()
        except (OSError, Failure, dcp.CheckpointException, RuntimeError) as error:
            reason = _reason(error)
    outcomes: list[Any] = [(result, reason)]
    if group is not None:
        outcomes = [None] * dist.get_world_size(group)
        dist.all_gather_object(outcomes, (result, reason), group)
    for _, found in outcomes:
        if found is not None:
            raise Failure(f"cannot write a checkpoint: {found}")
    return [result for result, _ in outcomes]


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
