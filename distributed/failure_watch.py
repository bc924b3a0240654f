"""When one rank fails, is killed or hangs, the others exit.

They may be waiting in a call that never returns: with NCCL, for a number from a GPU whose kernels wait for
that rank. So each rank has a thread that polls torchrun's store, where the first rank to fail leaves its
error, and where all ranks count the heartbeats of their main threads and their own polls.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

import torch.distributed as dist

from errors import Failure

_FAILED, _POLL_SECONDS = "failed", 0.5
_GRACE_SECONDS = 2.0  # for the main thread to exit by itself, which closes files
_SAVE_SECONDS = 60.0  # for it to save a checkpoint first
_SILENT_POLLS = 10  # after which a rank that polls no more is dead, where a signal tells this one to end


class FailureWatch:
    """Reports this rank's failure to the others, and ends this process when another rank has failed."""

    def __init__(self, store: dist.Store, rank: int, size: int, timeout_minutes: float) -> None:
        """store: torchrun's. timeout_minutes: how long a rank waits for another."""
        self._rank, self._size, self._timeout_minutes = rank, size, timeout_minutes
        # A client of its own: a blocking call on one client blocks its other callers.
        self._store = dist.PrefixStore("failures", store.clone())
        self._closed = threading.Event()
        self._beats, self._waiting = 0, False
        # Python's handlers of signals run in the main thread, and not while that waits in C.
        self._signals, written = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        self.busy: Callable[[], bool] = lambda: False  # whether a checkpoint is being written
        threading.Thread(target=self._watch, daemon=True).start()

    def report_failure(self, message: str) -> bool:
        """Tell the other ranks that this one fails; whether it is the first, which alone prints its error."""
        with contextlib.suppress(RuntimeError):  # without a store, all other processes have gone too
            first = self._store.compare_set(_FAILED, "", f"{self._rank} {message}")
            return first.decode().split(" ")[0] == str(self._rank)
        return True

    def another_failed(self, seconds: float) -> bool:
        """Whether another rank reports a failure within `seconds`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(RuntimeError):
                if self._store.check([_FAILED]):
                    return True
            time.sleep(0.1)
        return False

    def heartbeat(self) -> None:
        """Count one more sign of progress of this rank's main thread."""
        self._beats += 1

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """The context of a call that waits for other ranks and never raises: the process ends after the
        timeout, or when another rank has been killed."""
        self.heartbeat()
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False
            self.heartbeat()

    def lost(self, reason: str) -> Failure:
        """The error of a rank that gives up waiting. It names the ranks with the fewest heartbeats, which are
        those that the others wait for.

        reason: how this rank noticed.
        """
        beats = [count for count, _ in self._progress()]
        ranks = ", ".join(str(rank) for rank, count in enumerate(beats) if count == min(beats)) or "unknown"
        minutes = f"{self._timeout_minutes:g} minutes"
        return Failure(
            f"the processes have lost one another: one was killed, or made no progress for {minutes} "
            f"(--distributed_timeout); least progress: rank {ranks} ({reason})"
        )

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        os.close(signal.set_wakeup_fd(-1))

    def _progress(self) -> list[tuple[int, int]]:
        """The heartbeats and polls of each rank; empty without a store."""
        counts: list[tuple[int, int]] = []
        with contextlib.suppress(RuntimeError):
            for rank in range(self._size):
                key = f"beats/{rank}"
                text = self._store.get(key).decode() if self._store.check([key]) else "0 0"
                beats, polls = map(int, text.split())
                counts.append((beats, polls))
            return counts
        return []

    def _watch(self) -> None:
        beats = polls = still = 0  # time is counted in polls: a machine may sleep, with all its ranks
        signalled = False
        before: list[tuple[int, int]] = []
        while not self._closed.wait(_POLL_SECONDS):
            polls += 1
            still = still + 1 if self._waiting and beats == self._beats else 0
            beats = self._beats
            try:
                self._store.set(f"beats/{self._rank}", f"{beats} {polls}")
                failed = self._store.check([_FAILED])
            except RuntimeError:
                # torchrun was killed by a signal that it does not forward. All ranks notice, and stop as on
                # SIGTERM, with time to save.
                if not self._closed.is_set():
                    os.kill(os.getpid(), signal.SIGTERM)
                    self._exit_after(_SAVE_SECONDS)
                return
            if failed and self._store.get(_FAILED).decode().split(" ")[0] != str(self._rank):
                self._exit_after(_GRACE_SECONDS)
                return
            # A collective that raises does so first.
            if still * _POLL_SECONDS > 60 * self._timeout_minutes + _GRACE_SECONDS:
                self._give_up(f"rank {self._rank} still waits")
            # When a process is killed, torchrun sends the others SIGTERM, and half a minute later SIGKILL.
            signalled = signalled or self._signal_came()
            if signalled and still % _SILENT_POLLS == 1:
                earlier, before = before if still > 1 else [], self._progress()
                silent = [
                    str(rank)
                    for rank, pair in enumerate(zip(earlier, before, strict=False))
                    if pair[0] == pair[1]
                ]
                if silent:
                    self._give_up(f"rank {', '.join(silent)} has stopped")

    def _signal_came(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            return bool(os.read(self._signals, 1))
        return False

    def _give_up(self, reason: str) -> None:
        """End the process, whose main thread cannot; a checkpoint under way gets time to be completed."""
        error = self.lost(reason)
        if self.report_failure(str(error)):
            print(f"error: rank {self._rank}: {error}", file=sys.stderr, flush=True)
        end = time.monotonic() + _SAVE_SECONDS
        while self.busy() and time.monotonic() < end:
            time.sleep(0.1)
        os._exit(error.exit_code)

    def _exit_after(self, seconds: float) -> None:
        """End the process, unless it exits by itself in time; a checkpoint under way is completed first."""
        if not self._closed.wait(seconds):
            while self.busy():
                time.sleep(0.1)
            os._exit(1)
