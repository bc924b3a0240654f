"""Files that appear whole or not at all, and names that file systems take."""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from errors import Failure

TEMPORARY_SUFFIX = ".tmp"
FILES_PREFIX = "files:"  # of a --dataset that is a pattern of paths


def write_atomically(path: Path, write: Callable[[BinaryIO], Any], durable: bool = True) -> None:
    """Have `write` fill a file beside `path`, then put it in its place: whoever looks, looks at a whole file.

    The file and then its folder are forced to disk, so that this holds across a power cut too. What was at
    `path` stays there until the new file is complete. durable: False for what need not outlast a power cut.
    Raises Failure, naming the path, when writing fails.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            write(file)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(beside, path)
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        raise Failure(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # it is gone, or its folder never was
            beside.unlink()


def write_json(path: Path, content: Any) -> None:
    """Write readable JSON, atomically."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def copy_atomically(source: Path, path: Path) -> None:
    """Copy a file to `path`, where it appears whole. Raises Failure."""
    try:
        file = open(source, "rb")  # noqa: SIM115  (closed by the block below)
    except OSError as error:
        raise Failure(f"cannot read {source}: {error.strerror or error}") from error
    with file:
        write_atomically(path, lambda target: shutil.copyfileobj(file, target, 1 << 24))


def file_sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Force to disk which files a folder holds."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def folder_name(dataset: str) -> str:
    """The name of a corpus as that of a folder: of files:<pattern>, the last part and a hash of the whole."""
    if not dataset.startswith(FILES_PREFIX):
        return dataset
    stem = re.sub(r"[^A-Za-z0-9]+", "-", dataset.rpartition("/")[2].removeprefix(FILES_PREFIX)).strip("-")
    digest = hashlib.sha256(dataset.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return "-".join(part for part in ("files", stem[:40], digest) if part)
