"""One run in a folder: the second one is refused, and the lock of one that was killed is not in the way."""

import contextlib
import json
import logging
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from errors import Failure, UsageError
from files import write_json

logger = logging.getLogger(__name__)

FILE_NAME = "run.lock"
BEAT = 15.0  # seconds between signs of life
STALE = 4 * BEAT  # without one for so long, a process of another machine has ended


class RunLock:
    """Holds a run's folder. A thread renews the file's time; other machines see by its moving, whatever their
    clocks say, that this one is alive."""

    def __init__(self, folder: Path) -> None:
        """Take the folder, waiting up to a minute to see whether another machine still has it.

        Raises UsageError, naming host and process, where it does; Failure where it cannot be written.
        """
        self.path = folder / FILE_NAME
        self._mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
        if "SLURM_JOB_ID" in os.environ:
            self._mine["job"] = os.environ["SLURM_JOB_ID"]
        self._ended = threading.Event()
        self._take()
        self._beater = threading.Thread(target=self._beat, daemon=True)
        self._beater.start()

    def release(self) -> None:
        """Give the folder free, unless another run holds it by now."""
        self._ended.set()
        self._beater.join()
        if _read(self.path) == self._mine:
            with contextlib.suppress(OSError):
                self.path.unlink()
                self.path.parent.rmdir()  # if nothing came of the run

    def _take(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                if self._create():
                    return
                holder = _read(self.path)
                if holder is not None and self._alive(holder):
                    job = f", Slurm job {holder['job']}" if "job" in holder else ""
                    raise UsageError(
                        f"{self.path.parent} is in use by process {holder['pid']} on {holder['host']}{job}; "
                        f"end that run, or give another --exp_name"
                    )
                if holder is not None:
                    logger.info(
                        f"process {holder['pid']} on {holder['host']} has ended and left its lock behind"
                    )
                self._remove(holder)
        except OSError as error:
            raise Failure(f"cannot write {self.path}: {error.strerror or error}") from error

    def _create(self) -> bool:
        """Whether this process made the file: a link is made whole, by one of all who try."""
        beside = self.path.with_name(f"{FILE_NAME}.{socket.gethostname()}.{os.getpid()}.tmp")
        write_json(beside, self._mine)
        try:
            os.link(beside, self.path)
        except FileExistsError:
            return False
        finally:
            beside.unlink()
        return True

    def _remove(self, holder: dict[str, Any] | None) -> None:
        """Take a stale lock away; one that another process has put there meanwhile is put back."""
        moved = self.path.with_name(f"{FILE_NAME}.{os.getpid()}.stale.tmp")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path, moved)
            if _read(moved) != holder:
                with contextlib.suppress(FileExistsError):
                    os.link(moved, self.path)
            moved.unlink()

    def _alive(self, holder: dict[str, Any]) -> bool:
        if holder.get("host") == self._mine["host"]:
            return holder.get("started") is not None and _started(holder.get("pid", 0)) == holder["started"]
        logger.info(
            f"{self.path.parent} was in use by process {holder['pid']} on {holder['host']}; waiting up to "
            f"{STALE:.0f} s to see whether it still is"
        )
        seen, end = _modified(self.path), time.monotonic() + STALE
        while time.monotonic() < end:
            time.sleep(min(1.0, STALE / 10))
            if _modified(self.path) != seen:
                return True
        return False

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError):  # a file system may be away for a while
                if _read(self.path) == self._mine:
                    os.utime(self.path)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"host", "pid"} <= found.keys() else None


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _started(pid: int) -> str | None:
    """When a process of this machine began, by its kernel's count, so that no other one can have it; None
    where there is no such process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state == "Z" else f"{boot} {numbers[18]}"
    except OSError:
        pass
    if os.path.isdir("/proc"):
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return "running"
