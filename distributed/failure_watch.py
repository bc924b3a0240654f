"""When one rank fails, the others exit within seconds.

They may be waiting in a collective that never ends. So each rank has a thread that polls torchrun's store,
where the first rank to fail leaves its error.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable

import torch.distributed as dist

_FAILED, _POLL_SECONDS = "failed", 0.5
_GRACE_SECONDS = 2.0  # for the main thread to exit by itself, which closes files
_SAVE_SECONDS = 60.0  # for it to save a checkpoint first


class FailureWatch:
    """Reports this rank's failure to the others, and ends this process when another rank has failed."""

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        """store: torchrun's."""
        self._rank, self._size = rank, size
        self._store = dist.PrefixStore("failures", store)
        # A client of its own for the thread: a blocking call on one client blocks its other callers.
        self._watched = dist.PrefixStore("failures", store.clone())
        self._closed = threading.Event()
        self._beats = 0
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

    def slowest_ranks(self) -> list[int]:
        """The ranks with the fewest heartbeats: the ones that the others wait for."""
        beats: list[int] = []
        with contextlib.suppress(RuntimeError):
            for rank in range(self._size):
                key = f"beats/{rank}"
                beats.append(int(self._store.get(key)) if self._store.check([key]) else 0)
        return [rank for rank, count in enumerate(beats) if count == min(beats)]

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    def _watch(self) -> None:
        published = 0
        while not self._closed.wait(_POLL_SECONDS):
            try:
                if published != self._beats:
                    published = self._beats
                    self._watched.set(f"beats/{self._rank}", str(published))
                failed = self._watched.check([_FAILED])
            except RuntimeError:
                # torchrun was killed by a signal that it does not forward. All ranks notice, and stop as on
                # SIGTERM, with time to save.
                if not self._closed.is_set():
                    os.kill(os.getpid(), signal.SIGTERM)
                    self._exit_after(_SAVE_SECONDS)
                return
            if failed and self._watched.get(_FAILED).decode().split(" ")[0] != str(self._rank):
                self._exit_after(_GRACE_SECONDS)
                return

    def _exit_after(self, seconds: float) -> None:
        """End the process, unless it exits by itself in time; a checkpoint under way is completed first."""
        if not self._closed.wait(seconds):
            while self.busy():
                time.sleep(0.1)
            os._exit(1)
