"""What a long preparation has finished, so that a killed one goes on from there.

A file of JSON lines, each forced to disk when it is written; its first line says what is being prepared.
While one process has it open, others wait.
"""

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from errors import Failure, UsageError

NAME = "journal.jsonl"


class Removed(Exception):
    """The process that had the journal has finished what this one waited to do, or it was deleted."""


class Journal:
    """The journal in `folder`, begun anew or taken up again. lines: what it holds, without the first one.

    Waits while another process is at work there. Raises Removed when that one has finished, UsageError when
    another preparation has been begun there.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], say: Callable[[str], None] = print) -> None:
        self.folder = folder
        self._file = _opened(folder)
        try:
            _lock(self._file, f"another process is preparing {folder.parent}: waiting for it", say)
            removed = not _is_at(self._file, folder / NAME)
        except OSError as error:
            self._file.close()
            raise Failure(
                f"cannot lock {folder / NAME}: {error.strerror}; choose a --data_dir that has locks"
            ) from error
        first, *self.lines = self._read() or [None]
        if first is None and not removed:
            self.append(identity)
            self.lines.clear()
        elif first is not None and first != json.loads(json.dumps(identity)):
            self._file.close()
            differing = ", ".join(sorted(key for key in identity if first.get(key) != identity[key]))
            raise UsageError(
                f"{folder} holds the beginning of another preparation (of another {differing}): finish that "
                "one, or delete the folder to begin anew"
            )
        if removed:
            self._file.close()
            raise Removed

    def _read(self) -> list[dict[str, Any]]:
        """The whole lines; one that was being written when the power went is cut off."""
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._file.truncate(len(whole))
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise Failure(f"{self.folder / NAME} is damaged; delete {self.folder} to begin anew") from error

    def append(self, line: dict[str, Any]) -> None:
        """Add a line; it is on disk when this returns."""
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.lines.append(line)

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        """All that belongs to the preparation, which is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.close()


def _opened(folder: Path) -> BinaryIO:
    """Raises Failure where it cannot be."""
    for attempt in (1, 2):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return open(folder / NAME, "a+b")
        except FileNotFoundError:  # another process has just finished, and removed the folder
            if attempt == 2:
                raise Failure(f"{folder} disappears as soon as it is made") from None
        except OSError as error:
            raise Failure(f"cannot write {folder}: {error.strerror}; choose another --data_dir") from error


def _lock(file: BinaryIO, waiting: str, say: Callable[[str], None]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(waiting)
        sys.stdout.flush()  # it may be long, and a job's output is a file
        fcntl.flock(file, fcntl.LOCK_EX)


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
