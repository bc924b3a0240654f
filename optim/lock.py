"""A lock on the run's folder: a second process is refused, and the lock of a killed one is removed."""

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
HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 4 * HEARTBEAT_SECONDS  # of another machine: its process has ended


class RunLock:
    """Holds a run's folder. A thread renews the lock file's time; other machines see it change, by any
    clock, and know that this process is alive."""

    def __init__(self, folder: Path) -> None:
        """Lock the folder; waits up to a minute to see whether a process of another machine still holds it.

        Raises UsageError, naming host and process, if one does; Failure if the folder cannot be written.
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
        """Unlock the folder, unless another process holds it by now; an empty folder is removed."""
        self._ended.set()
        self._beater.join()
        if _read(self.path) == self._mine:
            with contextlib.suppress(OSError):
                self.path.unlink()
                self.path.parent.rmdir()  # if the run wrote nothing

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
                    logger.info(f"process {holder['pid']} on {holder['host']} has ended and left its lock")
                self._remove(holder)
        except OSError as error:
            raise Failure(f"cannot write {self.path}: {error.strerror or error}") from error

    def _create(self) -> bool:
        """Whether this process created the lock: linking is atomic, and one of several processes succeeds."""
        temporary = self.path.with_name(f"{FILE_NAME}.{socket.gethostname()}.{os.getpid()}.tmp")
        write_json(temporary, self._mine)
        try:
            os.link(temporary, self.path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        return True

    def _remove(self, holder: dict[str, Any] | None) -> None:
        """Remove a stale lock; one that another process has created meanwhile is put back."""
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
            f"{STALE_SECONDS:.0f} s to see whether it still is"
        )
        seen, end = _modified(self.path), time.monotonic() + STALE_SECONDS
        while time.monotonic() < end:
            time.sleep(min(1.0, STALE_SECONDS / 10))
            if _modified(self.path) != seen:
                return True
        return False

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):  # a network file system may be unavailable for a while
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
    """The start time of a process of this machine in kernel ticks and the boot's id, which tell reused ids
    apart; None if there is no such process."""
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
