"""One process fails: all end, in seconds, with its message and no other.

The processes that are left wait in a collective that never ends; so a thread of each looks at torchrun's
store, where the one that fails leaves its message.
"""

import contextlib
import os
import threading
import time

import torch.distributed as dist

_FAILED, _LOOK_EVERY = "failed", 0.5  # seconds
_TELL_EVERY = 1.0  # seconds between signs of life
_GRACE = 2.0  # seconds for the main thread to end by itself, which closes files


class Alarm:
    """store: of torchrun. Its thread ends this process where another one has failed."""

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        self._rank, self._size = rank, size
        self._store = dist.PrefixStore("alarm", store)
        self._watched = dist.PrefixStore("alarm", store.clone())  # a client of its own: calls block others
        self._closed = threading.Event()
        self._beats, self._told = 0, 0.0
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
        now = time.monotonic()
        if now - self._told > _TELL_EVERY:
            self._told = now
            with contextlib.suppress(RuntimeError):
                self._store.set(f"beats/{self._rank}", str(self._beats))

    def silent(self) -> list[int]:
        """The processes that have come least far: those that the others wait for."""
        beats = []
        for rank in range(self._size):
            key = f"beats/{rank}"
            beats.append(int(self._store.get(key)) if self._store.check([key]) else 0)
        return [rank for rank, count in enumerate(beats) if count == min(beats)]

    def close(self) -> None:
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(_LOOK_EVERY):
            try:
                failed = self._watched.check([_FAILED])
            except RuntimeError:
                failed = False
                if not self._closed.wait(_GRACE):  # torchrun was killed: nobody would end this process
                    os._exit(1)
            if failed and self._watched.get(_FAILED).decode().split(" ")[0] != str(self._rank):
                if not self._closed.wait(_GRACE):
                    os._exit(1)
                return
