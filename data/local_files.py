"""Local files of documents: the ones that `files:<pattern>` names, and whether they have changed since."""

import contextlib
import glob
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.sources import FORMATS, FileSource, Join, SourceFile
from data.token_files import META, SPLITS, reading
from errors import Failure, UsageError
from files import FILES_PREFIX, file_sha256, read_json, write_json

logger = logging.getLogger(__name__)

_LARGE = 1 << 30  # bytes: reading them takes seconds
RECORD = "files.json"  # next to the token files: an entry of `_describe` for each file they were made of


class Matches(NamedTuple):
    """What `files:<pattern>,...` names.

    paths: each file once, sorted by the names as typed. repeated: further names of these files. missing:
    patterns without a match, and links whose target is gone.
    """

    paths: list[Path]
    repeated: list[Path]
    missing: list[str]


def match(dataset: str, besides: Path | None = None) -> Matches:
    """The files that `files:<pattern>,<pattern>...` names. besides: a folder whose files are left out.

    A pattern is a file, a folder (all documents or shards in it, at any depth), or has wildcards, where **
    matches any folders. Brackets and commas of paths that exist are no wildcards.
    """
    parts, found, missing = dataset.removeprefix(FILES_PREFIX).split(","), set[str](), []
    while parts:
        # A comma may be part of a path: the shortest text that names something is a pattern.
        sizes = [len(parts)] if os.path.lexists(",".join(parts)) else range(1, len(parts) + 1)
        matches = ((size, paths) for size in sizes if (paths := _expand(",".join(parts[:size]))))
        size, paths = next(matches, (1, []))
        if not paths and parts[0].strip():
            missing.append(parts[0].strip())
        found.update(paths)
        parts = parts[size:]
    paths = [Path(path).absolute() for path in sorted(found)]
    paths = [path for path in paths if besides is None or besides.absolute() not in path.parents]
    missing += [str(path) for path in paths if not path.is_file()]
    return Matches(*distinct([path for path in paths if path.is_file()]), missing)


def distinct(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """The paths of different files, each file's first one; and all others."""
    first: dict[tuple[int, int], Path] = {}
    for path in paths:
        with reading(path):
            stat = path.stat()
        first.setdefault((stat.st_dev, stat.st_ino), path)
    kept = set(first.values())
    return list(first.values()), [path for path in paths if path not in kept]


def _expand(pattern: str) -> list[str]:
    """The paths that one pattern matches."""
    if not os.path.lexists(pattern):
        pattern = os.path.expanduser(pattern.strip())
    if os.path.isdir(pattern):
        return [str(path) for path in documents(Path(pattern))]
    if os.path.lexists(pattern):
        return [pattern]
    parts = pattern.split("/")
    sizes = (size for size in range(len(parts) - 1, 0, -1) if os.path.isdir("/".join([*parts[:size], ""])))
    size = next(sizes, 0)
    folder = glob.escape("".join(f"{part}/" for part in parts[:size]))  # as it is, since it exists
    rest = "/".join(parts[size:])
    found = glob.glob(folder + rest, recursive=True) or glob.glob(
        folder + rest.replace("[", "[[]"), recursive=True
    )
    return [path for path in found if not os.path.isdir(path)]


def documents(folder: Path) -> list[Path]:
    """Documents and shards in a folder and the folders in it, of links too; none if there is no such folder.

    Hidden ones are left out. Raises Failure for a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise Failure(f"cannot read {error.filename}: {error.strerror}")

    found, seen = [], set()
    for here, folders, names in os.walk(folder, onerror=refuse, followlinks=True) if folder.exists() else ():
        stat = os.stat(here)
        known = (stat.st_dev, stat.st_ino) in seen  # a link may lead back
        seen.add((stat.st_dev, stat.st_ino))
        folders[:] = [] if known else sorted(name for name in folders if not name.startswith("."))
        found += [Path(here, name) for name in names if not known and _is_document(name)]
    return found


def _is_document(name: str) -> bool:
    shard = name.endswith(".bin") and any(f"_{split}_" in name for split in SPLITS)
    return (shard or name.endswith(FORMATS)) and not name.startswith(".")


def folder_files(paths: list[Path], split: str | None = None) -> list[SourceFile]:
    """The files at these paths. Raises UsageError for a missing file or an unknown format.

    The format is that of the name as given; a link without an ending has that of its target.
    """
    found = []
    for path in paths:
        names = (path.name, path.resolve().name)
        form = next((form for name in names for form in FORMATS if name.endswith(form)), None)
        if form is None:
            raise UsageError(f"{path}: its name must end in one of {', '.join(FORMATS)}")
        if not path.is_file():
            raise UsageError(f"{path} is no file")
        found.append(SourceFile(str(path), path, path.stat().st_size, form, split=split))
    return found


class LocalFiles(FileSource):
    """Local files, told apart by their content: a preparation resumes after the unchanged ones."""

    def __init__(self, files: list[SourceFile], column: str = "text", join: Join | None = None) -> None:
        super().__init__(files, column, join)
        self._stats = {file: _stat(file.path) for file in files}

    def state(self, file: SourceFile) -> dict[str, Any]:
        entry = _describe(file)
        if entry["stat"][:2] != self._stats[file][:2]:
            raise Failure(f"{file.name} was changed while it was read; run the same command again")
        return entry

    def unchanged(self, finished: list[dict[str, Any]], same: bool) -> list[dict[str, Any]]:
        kept = []
        for file, line in zip(self._files, finished, strict=False):
            entry = line.get("state")  # None in a journal of an earlier version
            if (entry is None and ("damaged" in line or not same)) or (entry and "sha256" not in entry):
                break  # the latter after a stream of the hub, whose files have been brought since
            now = _describe(file, entry)
            if entry is not None and (line["split"], entry["sha256"]) != (file.split, now["sha256"]):
                break
            kept.append({**line, "state": now})
        return kept


def _stat(path: Path) -> list[int]:
    """What changes whenever a file does: size, times of modification and of change in ns, inode."""
    with reading(path):
        found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _describe(file: SourceFile, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """A file's name, stat and checksum. known: its earlier entry, whose checksum holds if the stat does."""
    stat = _stat(file.path)
    if known is not None and known["stat"] == stat:
        checksum = known["sha256"]
    else:
        if known is not None and stat[0] > _LARGE:
            logger.info(f"{file.name} was touched: comparing it with the one that was prepared ...")
        with reading(file.path):
            checksum = file_sha256(file.path)
    return {"name": file.key or file.name, "stat": stat, "sha256": checksum}


def copies(entries: list[dict[str, Any]]) -> list[str]:
    """Names of files with the content of an earlier one."""
    first = {entry["sha256"]: entry["name"] for entry in reversed(entries)}
    return [entry["name"] for entry in entries if first[entry["sha256"]] != entry["name"]]


class Changes(NamedTuple):
    """How files differ from those that were prepared: names of files."""

    changed: Sequence[str] = ()
    gone: Sequence[str] = ()
    added: Sequence[str] = ()

    def __str__(self) -> str:
        named = {"changed": self.changed, "gone": self.gone, "new": self.added}
        return "; ".join(f"{what}: {listed(names)}" for what, names in named.items() if names)


def listed(names: Sequence[Any]) -> str:
    """The first three of the names."""
    return ", ".join(map(str, names[:3])) + (", ..." if len(names) > 3 else "")


def changes(files: list[SourceFile], folder: Path) -> Changes | None:
    """How the files differ from those of the token files in `folder`; None without a record of them.

    Raises Failure for a damaged record, or a file that cannot be read.
    """
    path = folder / RECORD
    try:
        with reading(path):
            before = read_json(path) if path.exists() else None
        if before is None:
            return None
        known = {entry["name"]: entry for entry in before}
        now = [_describe(file, known.get(file.key or file.name)) for file in files]
        same = [entry["sha256"] for entry in before] == [entry["sha256"] for entry in now]
    except (ValueError, KeyError, TypeError) as error:
        raise Failure(f"{path} is damaged ({error}); delete {folder} to prepare the corpus again") from error
    if same:
        if now != before:  # touched, or copied: checked once
            with contextlib.suppress(Failure):  # the folder may be read-only
                write_json(path, now)
        return Changes()
    new = {entry["name"]: entry["sha256"] for entry in now}
    return Changes(
        changed=[name for name, entry in known.items() if new.get(name, entry["sha256"]) != entry["sha256"]],
        gone=[name for name in known if name not in new],
        added=[name for name in new if name not in known],
    )


def record_older(files: list[SourceFile], folder: Path) -> None:
    """Record the files that an earlier version prepared, if no file has changed since."""
    with contextlib.suppress(Failure):  # the folder may be read-only
        prepared = _stat(folder / META)[1]
        if all(max(_stat(file.path)[1:3]) < prepared for file in files):
            write_json(folder / RECORD, [_describe(file) for file in files])
