"""When a run stops before its last iteration: signals, a time, a number of steps."""

import logging
import signal
import time
from types import FrameType

from distributed import Processes

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_MINUTE = 60.0
_TIME = 1000  # in place of a signal's number


class Stop:
    """A context in which signals ask for a stop; outside, they do what they do.

    All processes agree: `asked` is a question to all of them. reason: of the stop, once it was asked for.
    """

    def __init__(self, processes: Processes, max_time: float | None, began: float) -> None:
        """max_time: minutes from `began` (of time.monotonic) on; None: no limit."""
        self._processes = processes
        self._end = None if max_time is None else began + max_time * _MINUTE
        self._signal = 0  # the last one that came
        self._before: dict[signal.Signals, object] = {}
        self.reason: str | None = None

    def __enter__(self) -> "Stop":
        self._before = {number: signal.signal(number, self._came) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asked(self) -> bool:
        """Whether any process is to stop. All must ask, at the same places."""
        if self.reason is None:
            over = self._end is not None and time.monotonic() > self._end
            number = self._processes.max(self._signal or (_TIME if over else 0))
            if number:
                self.reason = "the time is over" if number == _TIME else signal.Signals(number).name
        return self.reason is not None

    def _came(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            logger.info("stopping behind this micro-batch; Ctrl-C again ends at once, and saves nothing")
        self._signal = number
