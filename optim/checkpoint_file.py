"""Checkpoints in one file: torch's zip archive. All checksums are compared before it is read."""

import contextlib
import hashlib
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import torch

from errors import Failure
from files import copy_atomically, require_regular, write_atomically

_MOST_VALUES, _DEEPEST = 1_000_000, 32  # of nested dicts and lists; a run's has some thousand, and 3


def write(path: Path, content: dict[str, Any], staging: Path | None = None) -> None:
    """Write `content` (nested dicts of tensors and plain data) atomically and durably.

    Args:
        staging: a folder on a local disk to write to first. torch writes many small pieces, at which cluster
            file systems are slow; the copy is written in a few large ones.

    Raises Failure.
    """
    if staging is None:
        write_atomically(path, lambda file: _save(content, file))
        return
    staged = staging / staging_name(path)
    try:
        write_atomically(staged, lambda file: _save(content, file), durable=False)
        copy_atomically(staged, path)
    finally:
        with contextlib.suppress(OSError):  # it may not exist
            staged.unlink()


def _save(content: dict[str, Any], file: BinaryIO) -> None:
    try:
        torch.save(content, file)
    except RuntimeError as error:
        # After a failed write, torch reports that its writer cannot be closed, and hides the cause.
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def staging_name(path: Path) -> str:
    """A checkpoint's name in a staging folder, unique to its path and the same on all ranks."""
    return f"{hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:16]}-{path.name}"


def read(path: Path) -> dict[str, Any]:
    """The content, tensors on the CPU. Raises Failure for damage, and for anything but tensors and data."""
    try:
        check(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        _require_plain(content, path.stat().st_size)
    except Failure:
        raise
    except _Unfit as error:
        raise Failure(f"{path} is no checkpoint: {error}") from None
    except Exception as error:  # torch reports damage in a dozen ways, without a remedy
        if "weights_only" in str(error) or "Unsupported" in str(error):
            reason = "holds more than tensors and plain data; nothing of it was run, and it is not read"
        else:
            reason = "is damaged or no checkpoint"
        raise Failure(f"{path} {reason} ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise Failure(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def check(path: Path) -> None:
    """Raises Failure for anything but a regular file, for an archive that torch would not write (compressed,
    with overlapping records), and when a checksum (CRC-32 of every record) does not match."""
    try:
        require_regular(path)
        if not zipfile.is_zipfile(path):
            return  # an old format, or no checkpoint: torch.load tells
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            compressed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
            twice = len(records) != len({record.filename for record in records})
            if compressed or twice or sum(record.file_size for record in records) > path.stat().st_size:
                raise Failure(f"{path} is no checkpoint: torch does not write such archives")
            damaged = archive.testzip()
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise Failure(f"{path} is damaged or no checkpoint ({type(error).__name__})") from error
    if damaged is not None:
        raise Failure(f"{path} is damaged: the checksum of {damaged} does not match")


class _Unfit(Exception):
    """The content of a file is not that of a checkpoint."""


def _require_plain(content: Any, size: int) -> None:
    """Raises _Unfit for content that would take unbounded time or memory, now or when it is copied.

    Args:
        size: bytes of the file, which its tensors cannot exceed, unless they are views of one another.
    """
    seen: set[tuple] = set()
    stack, left = [(content, 0)], _MOST_VALUES
    while stack:
        value, depth = stack.pop()
        left -= 1
        if left < 0 or depth > _DEEPEST:
            raise _Unfit(f"it holds more than {_MOST_VALUES:,} values, or is nested too deeply")
        if isinstance(value, torch.Tensor):
            if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
                raise _Unfit("a tensor in it is sparse, quantized or without values")
            view = (value.data_ptr(), value.shape, value.stride(), value.dtype)
            if view not in seen:
                seen.add(view)
                size -= value.nbytes
            if size < 0:
                raise _Unfit("its tensors are larger than the file")
        elif isinstance(value, dict):
            stack += [(part, depth + 1) for part in value.values()]
        elif isinstance(value, (list, tuple, set)):
            stack += [(part, depth + 1) for part in value]
