"""The journal of an unfinished preparation: JSON lines, each on disk before the work goes on.

Its first line identifies the preparation. Only one process at a time has it open: others wait. A killed
preparation resumes from it.
"""

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from errors import Failure, UsageError

logger = logging.getLogger(__name__)

JOURNAL = "journal.jsonl"


class JournalRemoved(Exception):
    """While this process waited for the journal, another one finished the preparation or deleted it."""


class Journal:
    """The journal of `folder`, new or resumed. lines: its content without the first line.

    Waits while another process works there.

    Args:
        unchanged: takes the lines of finished pieces, and whether the identity is the journal's; returns the
            lines up to the first piece that has changed, to resume there. It may return None: then the
            identity alone counts.

    Raises:
        JournalRemoved: that other process has finished.
        UsageError: the journal is that of another preparation.
        Failure: it cannot be opened, locked or parsed.
    """

    def __init__(
        self,
        folder: Path,
        identity: dict[str, Any],
        unchanged: Callable[[list[dict[str, Any]], bool], list[dict[str, Any]] | None] = lambda *_: None,
    ) -> None:
        self.folder = folder
        self._file = _open_journal(folder)
        try:
            self._lock()
            removed = not _is_at(self._file, folder / JOURNAL)
        except OSError as error:
            self._file.close()
            raise Failure(
                f"cannot lock {folder / JOURNAL}: {error.strerror}; choose a --data_dir with file locks"
            ) from error
        lines = self._read()
        first, self.lines = (lines[0] if lines else None), lines[1:]
        if first is None and not removed:
            self.append(identity)
            self.lines.clear()
        elif first is not None:
            try:
                self._resume(first, json.loads(json.dumps(identity)), unchanged)
            except Failure:
                self._file.close()
                raise
        if removed:
            self._file.close()
            raise JournalRemoved

    def _resume(self, first: dict[str, Any], identity: dict[str, Any], unchanged: Callable[..., Any]) -> None:
        """Keep the lines of a journal that begins with `first`, as far as they hold."""
        same = first == identity
        finished = [line for line in self.lines if "piece" in line]
        kept = unchanged(finished, same) if first.get("tokenizer") == identity.get("tokenizer") else None
        if kept is None and same:
            return
        if kept is None:
            differing = ", ".join(sorted(key for key in identity if first.get(key) != identity[key]))
            raise UsageError(
                f"{self.folder} holds an unfinished preparation of another {differing}: finish that one, or "
                "delete the folder to start over"
            )
        if same and len(kept) == len(finished):
            self.lines[: len(kept)] = kept
            return
        if any("assembled" in line for line in self.lines):
            kept = []  # some of the parts have been deleted
        logger.info(f"the source has changed: {len(kept)} of {len(finished)} finished files are kept")
        self._file.truncate(0)
        self._write([identity, *kept])
        self.lines = kept

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info(f"another process is preparing {self.folder.parent}: waiting for it")
            fcntl.flock(self._file, fcntl.LOCK_EX)

    def _read(self) -> list[dict[str, Any]]:
        """All complete lines; a line that a power cut left incomplete is cut off."""
        self._file.seek(0)
        content = self._file.read()
        complete = content[: content.rfind(b"\n") + 1]
        self._file.truncate(len(complete))
        try:
            return [json.loads(line) for line in complete.splitlines()]
        except ValueError as error:
            raise Failure(
                f"{self.folder / JOURNAL} is damaged; delete {self.folder} to start over"
            ) from error

    def append(self, line: dict[str, Any]) -> None:
        """Add a line; it is on disk when this returns."""
        self._write([line])
        self.lines.append(line)

    def _write(self, lines: list[dict[str, Any]]) -> None:
        self._file.write(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        sync(self._file)

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        """Delete the journal and all parts: the preparation is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.close()


def _open_journal(folder: Path) -> BinaryIO:
    for _ in range(2):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return open(folder / JOURNAL, "a+b")
        except FileNotFoundError:
            continue  # another process has just finished and removed the folder
        except OSError as error:
            raise Failure(f"cannot write {folder}: {error.strerror}; choose another --data_dir") from error
    raise Failure(f"{folder} disappears as soon as it is made")


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def sync(file: BinaryIO) -> None:
    """Flush a file and force its content to disk."""
    file.flush()
    os.fsync(file.fileno())
