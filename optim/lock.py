"""A lock on the run's folder: a second process is refused, and the lock of a killed one is removed."""

import contextlib
import fcntl
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from errors import Failure, UsageError
from files import encode_json, read_json

logger = logging.getLogger(__name__)

FILE_NAME = "run.lock"
HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 4 * HEARTBEAT_SECONDS  # of a process that cannot be seen from here: it has ended
_WRITING_SECONDS = 2.0  # a lock without content: it is not being written, but damaged


class RunLock:
    """Holds a run's folder. A thread renews the lock file's time; other machines see it change, by any
    clock, and know that this process is alive."""

    def __init__(self, folder: Path, on_lost: Callable[[str], Any] = lambda sentence: None) -> None:
        """Lock the folder; waits up to a minute to see whether a process of another machine still holds it.

        Args:
            on_lost: called from the thread, with a sentence, when another process has taken the folder. It
                may after this one has stood still for a minute.

        Raises UsageError, naming host and process, if one holds it; Failure if the folder cannot be written.
        """
        self.path = folder / FILE_NAME
        self._mine = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "pid_namespace": _pid_namespace(),
        }
        if "SLURM_JOB_ID" in os.environ:
            self._mine["job"] = os.environ["SLURM_JOB_ID"]
        self._on_lost = on_lost
        self._ended = threading.Event()
        self._take()
        self._held_at = time.time()
        self._beater = threading.Thread(target=self._beat, daemon=True)
        self._beater.start()

    def require(self) -> None:
        """Raises Failure if another process has taken the folder. A lock that was deleted is made again."""
        for _ in range(2):
            holder = _read(self.path)
            if holder == self._mine:
                self._held_at = time.time()
                return
            if holder is not None:
                raise Failure(
                    f"{self.path.parent} was taken over by {_name(holder)}, while this run stood still; "
                    "this run ends and saves nothing more"
                )
            try:
                self.path.lstat()
                return  # it cannot be read for now
            except FileNotFoundError:
                pass
            except OSError:  # a network file system may be unavailable for a while
                return
            if time.time() - self._held_at > STALE_SECONDS:
                raise Failure(
                    f"{self.path} is gone, and another run may have used the folder while this one stood "
                    "still; this run ends and saves nothing more"
                )
            with contextlib.suppress(OSError):
                self._create()

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
            while not (self._create() and _read(self.path) == self._mine):
                holder = self._holder()
                if holder is not None and self._alive(holder):
                    raise UsageError(
                        f"{self.path.parent} is in use by {_name(holder)}; "
                        f"end that run, or give another --exp_name"
                    )
                if holder is not None:
                    logger.info(f"process {holder['pid']} on {holder['host']} has ended and left its lock")
                self._remove(holder)
        except OSError as error:
            raise Failure(f"cannot write {self.path}: {error.strerror or error}") from error

    def _create(self) -> bool:
        """Whether this process created the lock."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._alone():
            try:
                file = open(self.path, "xb")  # noqa: SIM115  (closed by the block below)
            except FileExistsError:
                return False
            try:
                with file:
                    file.write(encode_json(self._mine))
            except OSError:
                self.path.unlink()
                raise
        return True

    def _holder(self) -> dict[str, Any] | None:
        """The content of the lock, which is empty while it is written; None if it is gone or damaged."""
        end = time.monotonic() + _WRITING_SECONDS
        while (holder := _read(self.path)) is None and os.path.lexists(self.path) and time.monotonic() < end:
            time.sleep(0.1)
        return holder

    def _remove(self, holder: dict[str, Any] | None) -> None:
        """Remove a stale lock, unless another process has done so and locked the folder meanwhile."""
        with self._alone(), contextlib.suppress(FileNotFoundError):
            if _read(self.path) == holder:
                self.path.unlink()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One process of this machine at a time; of several machines where the file system locks folders.

        Elsewhere two may take a stale lock in the same moment, and one of them ends at its next heartbeat.
        """
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _alive(self, holder: dict[str, Any]) -> bool:
        started = holder.get("started")
        if started is not None and holder.get("host") == self._mine["host"]:
            if _started(holder["pid"]) == started:
                return True
            # Process ids have a meaning in their namespace (a container's), until the next boot.
            known = holder.get("pid_namespace") == self._mine["pid_namespace"]
            if known and str(started).split()[:1] == str(self._mine["started"]).split()[:1]:
                return False
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
            try:
                self.require()
                os.utime(self.path)
            except Failure as error:
                self._on_lost(str(error))
                return
            except OSError:  # a network file system may be unavailable for a while
                pass


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"host", "pid"} <= found.keys() else None


def _name(holder: dict[str, Any]) -> str:
    job = f", Slurm job {holder['job']}" if "job" in holder else ""
    return f"process {holder['pid']} on {holder['host']}{job}"


def _pid_namespace() -> str | None:
    """The namespace in which this process' id has a meaning; None where there are none."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


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
