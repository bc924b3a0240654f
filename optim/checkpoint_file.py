"""A checkpoint in one file: torch's zip archive, whose checksums are compared before anything is believed."""

import contextlib
import hashlib
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import torch

from errors import Failure
from files import copy_atomically, write_atomically


def write(path: Path, content: dict[str, Any], staging: Path | None = None) -> None:
    """Write `content` (nested dicts of tensors and plain data) so that it appears whole or not at all.

    staging: a folder on this machine to write it to first: torch writes in many small pieces, which the file
    systems of clusters are slow at, and a copy in few large ones. Raises Failure.
    """
    if staging is None:
        write_atomically(path, lambda file: _save(content, file))
        return
    staged = staging / staging_name(path)
    try:
        write_atomically(staged, lambda file: _save(content, file), durable=False)
        copy_atomically(staged, path)
    finally:
        with contextlib.suppress(OSError):  # it may not even have come to be
            staged.unlink()


def _save(content: dict[str, Any], file: BinaryIO) -> None:
    try:
        torch.save(content, file)
    except RuntimeError as error:
        # Its writer cannot be closed where a write has failed, and says so instead of why.
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def staging_name(path: Path) -> str:
    """Of a checkpoint among those of all runs that use a machine: the same for all processes of a run."""
    return f"{hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]}-{path.name}"


def read(path: Path) -> dict[str, Any]:
    """The content, tensors on the CPU. Raises Failure for damage, and for more than tensors and data."""
    try:
        check(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Failure:
        raise
    except Exception as error:  # torch reports damage in a dozen ways, and never says what to do
        if "weights_only" in str(error) or "Unsupported" in str(error):
            reason = "holds more than tensors and plain data; nothing of it was run, and it is not read"
        else:
            reason = "is damaged or no checkpoint"
        raise Failure(f"{path} {reason} ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise Failure(f"{path} holds a {type(content).__name__}, not a checkpoint")
    return content


def check(path: Path) -> None:
    """Raises Failure where a checksum (CRC-32 of every record) is not that of what stands in the file."""
    if not zipfile.is_zipfile(path):
        return  # a checkpoint of old, or none: torch will say
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise Failure(f"{path} is damaged or no checkpoint ({type(error).__name__})") from error
    if damaged is not None:
        raise Failure(f"{path} is damaged: the checksum of {damaged} does not fit")
