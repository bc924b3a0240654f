"""Atomic and durable writes, checksums, and folder names of corpora."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from errors import Failure

TEMPORARY_SUFFIX = ".tmp"
_MOST_JSON = 1 << 28  # bytes; a larger file would fill the memory
FILES_PREFIX = "files:"  # of a --dataset that is a pattern of paths


def write_atomically(path: Path, write: Callable[[BinaryIO], Any], durable: bool = True) -> None:
    """Write a file atomically: `write` fills a temporary file next to `path`, which is then renamed.

    An old file at `path` stays until the new one is complete.

    Args:
        write: takes the open binary file.
        durable: force file and folder to disk, so that the write survives a power cut.

    Raises Failure, naming the path, when writing fails.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        raise Failure(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # it has been renamed, or its folder does not exist
            temporary.unlink()


@contextlib.contextmanager
def removed_if_empty(folder: Path) -> Iterator[None]:
    """After an error inside, remove the folder and its parents if they are new and empty."""
    new = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        yield
    except BaseException:
        for one in new:
            with contextlib.suppress(OSError):
                one.rmdir()
        raise


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON, atomically and durably. Raises Failure."""
    encoded = encode_json(content, indent=2)
    write_atomically(path, lambda file: file.write(encoded))


def encode_json(content: Any, **settings: Any) -> bytes:
    """JSON and a line feed in UTF-8. settings: arguments of `json.dumps`.

    Bytes of paths and flags that are no UTF-8, which Python keeps as lone surrogates, become JSON's \\uXXXX,
    and are read back as they were.
    """
    return (json.dumps(content, ensure_ascii=False, **settings) + "\n").encode(errors="backslashreplace")


def copy_atomically(source: Path, path: Path) -> None:
    """Copy a file to `path`, atomically and durably. Raises Failure."""
    try:
        file = open(source, "rb")  # noqa: SIM115  (closed by the block below)
    except OSError as error:
        raise Failure(f"cannot read {source}: {error.strerror or error}") from error
    with file:
        write_atomically(path, lambda target: shutil.copyfileobj(file, target, 1 << 24))


def require_regular(path: Path) -> None:
    """Raises OSError for pipes, sockets, devices and folders: reading one may never end."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises OSError where it cannot be read or is no regular file; ValueError where it is no JSON in UTF-8, is
    nested too deeply, or has more than 256 MiB.
    """
    require_regular(path)
    if path.stat().st_size > _MOST_JSON:
        raise ValueError(f"{path} is larger than {_MOST_JSON >> 20} MiB")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def why_unwritable(folder: Path) -> str | None:
    """Why no file could be written into a folder, which need not exist yet; None if one could.

    Nothing is left behind.
    """
    try:
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(bytes(4096))
    except OSError as error:
        return error.strerror or str(error)
    return None


def is_utf8(text: str) -> bool:
    """Whether a text from the command line or the file system was UTF-8 there: it has no lone surrogates."""
    return text == text.encode(errors="replace").decode()


@contextlib.contextmanager
def utf8_path(path: Path) -> Iterator[Path]:
    """A path in UTF-8 of the same file or folder, for libraries that take no other: the same, or a link."""
    if is_utf8(str(path)):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "link"
        link.symlink_to(path.absolute())
        yield link


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to disk: its files' names, not their content."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def folder_name(dataset: str) -> str:
    """A corpus' name as a folder name; of files:<pattern>, the pattern's last part and a hash of it all."""
    if not dataset.startswith(FILES_PREFIX):
        return dataset
    stem = re.sub(r"[^A-Za-z0-9]+", "-", dataset.rpartition("/")[2].removeprefix(FILES_PREFIX)).strip("-")
    digest = hashlib.sha256(dataset.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return "-".join(part for part in ("files", stem[:40], digest) if part)
