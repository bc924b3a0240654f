"""When a run stops before its last iteration: signals, a time limit, a number of steps."""

import logging
import signal
import time
from types import FrameType

from distributed import Processes

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
_MINUTE = 60.0
_TIME_LIMIT = 1000  # in place of a signal's number


class Stop:
    """A context in which SIGTERM, SIGUSR1 and SIGINT stop the run, on all ranks after the same step.

    max_steps: optimiser steps of this process; `first_step` is set when training begins. reason: why the run
    stops; None while it does not.
    """

    def __init__(
        self, processes: Processes, max_minutes: float | None, began: float, max_steps: int | None = None
    ) -> None:
        """began: the time.monotonic() from which max_minutes count. None: no limit."""
        self.first_step = 0
        self.reason: str | None = None
        self._processes, self._max_steps = processes, max_steps
        self._end = None if max_minutes is None else began + max_minutes * _MINUTE
        self._signal = 0  # the latest
        self._handlers: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Stop":
        self._handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def requested(self, step: int | None = None) -> bool:
        """Whether the run stops, at `step` or now. All ranks ask at the same places."""
        if self.reason is None and step is not None and step - self.first_step == self._max_steps:
            self.reason = f"--max_steps_this_run {self._max_steps}"
        if self.reason is None:
            late = self._end is not None and time.monotonic() > self._end
            number = self._processes.max(self._signal or (_TIME_LIMIT if late else 0))
            if number:
                self.reason = "time limit" if number == _TIME_LIMIT else signal.Signals(number).name
        return self.reason is not None

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            logger.info("stopping after this micro-batch; Ctrl-C again ends at once, and saves nothing")
        self._signal = number
