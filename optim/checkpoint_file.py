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
from files import copy_atomically, write_atomically


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
    except Failure:
        raise
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
    """Raises Failure when a checksum (CRC-32 of every record) does not match."""
    if not zipfile.is_zipfile(path):
        return  # an old format, or no checkpoint: torch.load tells
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise Failure(f"{path} is damaged or no checkpoint ({type(error).__name__})") from error
    if damaged is not None:
        raise Failure(f"{path} is damaged: the checksum of {damaged} does not match")
