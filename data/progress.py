"""How far a preparation is: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

from data.encoding import Encoded

EVERY_SECONDS = 30.0  # between lines of a log


class Progress:
    """Of a source of `size` bytes (None is not known): MB/s of text, tokens, time left."""

    def __init__(self, size: int | None, say: Callable[[str], None]) -> None:
        self._size, self._say = size, say
        self._started = self._said = time.perf_counter()
        self._first: int | None = None
        self._read = self._text = self._tokens = 0
        self._bar = tqdm(
            total=size, desc="tokenising", unit="B", unit_scale=True, disable=not sys.stderr.isatty()
        )

    def update(self, read: int, encoded: Encoded) -> None:
        """read: bytes of the source so far, of which `encoded` is the latest block."""
        tokens, text = encoded.sizes.sum(axis=0).tolist()
        if self._first is None:
            self._first = read  # what an earlier run did is none of this one's speed
        self._tokens += tokens
        self._text += text
        self._bar.set_postfix_str(f"{self._speed():.1f} MB/s of text, {self._tokens:,} tokens", refresh=False)
        self._bar.update(read - self._read)
        self._read = read
        if self._bar.disable and time.perf_counter() - self._said > EVERY_SECONDS:
            self._said = time.perf_counter()
            self._say(self._line())

    def close(self) -> None:
        self._bar.close()
        if self._bar.disable and self._tokens:
            self._say(self._line())

    def _speed(self) -> float:
        return self._text / 1e6 / (time.perf_counter() - self._started)

    def _line(self) -> str:
        parts = [f"{self._speed():.1f} MB/s of text", f"{self._tokens:,} tokens"]
        done = self._read - self._first
        if self._size and done:
            left = (time.perf_counter() - self._started) / done * (self._size - self._read)
            parts = [f"{self._read / self._size:.1%}", *parts, f"{clock(left)} left"]
        return "tokenising: " + ", ".join(parts)


def clock(seconds: float) -> str:
    """Like 2h05m, or 3m07s."""
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
