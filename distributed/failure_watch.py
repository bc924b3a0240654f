"""One process fails: all end, in seconds, with its message and no other.

The processes that are left wait in a collective that never ends; so a thread of each looks at torchrun's
store, where the one that fails leaves its message.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable

import torch.distributed as dist

_FAILED, _LOOK_EVERY = "failed", 0.5  # seconds
_GRACE = 2.0  # seconds for the main thread to end by itself, which closes files
_TO_SAVE = 60.0  # and to do so behind a checkpoint


class Alarm:
    """store: of torchrun. Its thread ends this process where another one has failed."""

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        self._rank, self._size = rank, size
        self._store = dist.PrefixStore("alarm", store)
        self._watched = dist.PrefixStore("alarm", store.clone())  # a client of its own: calls block others
        self._closed = threading.Event()
        self._beats = 0
        self.busy: Callable[[], bool] = lambda: False  # whether a checkpoint is being written
        threading.Thread(target=self._watch, daemon=True).start()

    def sound(self, message: str) -> bool:
        """Tell the others that this process fails. Whether it is the first: only that one has a say."""
        with contextlib.suppress(RuntimeError):  # the store has gone: so has everybody
            first = self._store.compare_set(_FAILED, "", f"{self._rank} {message}")
            return first.decode().split(" ")[0] == str(self._rank)
        return True

    def another_failed(self, seconds: float) -> bool:
        """Whether another process fails, or has failed, within so many seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(RuntimeError):
                if self._store.check([_FAILED]):
                    return True
            time.sleep(0.1)
        return False

    def alive(self) -> None:
        """A sign of life, of the main thread: so that it can be said who kept the others waiting."""
        self._beats += 1

    def silent(self) -> list[int]:
        """The processes that have come least far: those that the others wait for."""
        beats: list[int] = []
        with contextlib.suppress(RuntimeError):
            for rank in range(self._size):
                key = f"beats/{rank}"
                beats.append(int(self._store.get(key)) if self._store.check([key]) else 0)
        return [rank for rank, count in enumerate(beats) if count == min(beats)]

    def close(self) -> None:
        self._closed.set()

    def _watch(self) -> None:
        told = 0
        while not self._closed.wait(_LOOK_EVERY):
            try:
                if told != self._beats:
                    told = self._beats
                    self._watched.set(f"beats/{self._rank}", str(told))
                failed = self._watched.check([_FAILED])
            except RuntimeError:
                # torchrun was killed, by a signal that it does not hand on. All processes notice: they stop
                # as if it had been SIGTERM, with time to save.
                if not self._closed.is_set():
                    os.kill(os.getpid(), signal.SIGTERM)
                    self._end(_TO_SAVE)
                return
            if failed and self._watched.get(_FAILED).decode().split(" ")[0] != str(self._rank):
                self._end(_GRACE)
                return

    def _end(self, seconds: float) -> None:
        """End the process, unless it does so itself; a checkpoint that is being written is finished."""
        if not self._closed.wait(seconds):
            while self.busy():
                time.sleep(0.1)
            os._exit(1)
