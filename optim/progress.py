"""Progress of a training for people: a bar where stderr is a terminal, and a log line for each interval."""

import logging
import statistics
import sys
import time
from collections import deque
from typing import Any

from errors import duration

logger = logging.getLogger(__name__)


class _NoBar:
    """A bar that nobody sees."""

    def set_postfix_str(self, text: str, refresh: bool = True) -> None: ...

    def update(self) -> None: ...

    def close(self) -> None: ...


class SpikeWatch:
    """Warns once of each spike in gradient norms.

    It begins above 5 times the median and twice the maximum of the 16 to 100 steps before, and ends below 5
    times the median: norms fall fast in a young run, and scatter where batches are small.
    """

    def __init__(self) -> None:
        self._norms: deque[float] = deque(maxlen=100)
        self._in_spike = False

    def add(self, step: int, norm: float) -> None:
        if len(self._norms) >= 16:
            median = statistics.median(self._norms)
            begins = not self._in_spike and norm > max(5.0 * median, 2.0 * max(self._norms))
            self._in_spike = begins or (self._in_spike and norm > 5.0 * median)
            if begins:
                logger.warning(
                    f"a gradient spike: the norm at step {step} is {norm:.2f}, {norm / median:.0f} times the "
                    f"median of the {len(self._norms)} steps before"
                )
        self._norms.append(norm)


class Progress:
    """The bar (`bar`, updated by the training loop) and the lines of the intervals."""

    def __init__(self, iterations: int, step: int, is_main: bool = True) -> None:
        """step: updates made before. is_main: whether this is rank 0, which alone shows a bar."""
        self._iterations = iterations
        self._first_step, self._started = step, time.perf_counter()
        self._said = False  # how much time is left
        self.bar: Any = _NoBar()
        if is_main and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=iterations, initial=step, desc="training", unit="step", dynamic_ncols=True)

    def warmed_up(self, step: int) -> None:
        """Measure the pace from here: the first step of a process allocates and compiles."""
        self._first_step, self._started = step, time.perf_counter()

    def estimate(self, step: int) -> None:
        """Log the time left, unless a line has said it."""
        if not self._said:
            left = duration(self._seconds_left(step))
            logger.info(f"step {step}/{self._iterations}  about {left} left, without evaluations")

    def log(self, metrics: dict[str, Any]) -> None:
        """Log an interval's line of metrics.jsonl."""
        self._said = True
        parts = [f"step {metrics['step']}/{self._iterations}", f"loss {metrics['train_loss']:.4f}"]
        if "val_loss" in metrics:
            parts.append(f"val {metrics['val_loss']:.4f} (perplexity {metrics['val_perplexity']:.2f})")
        parts.append(f"lr {metrics['lr']:.2e}")
        if metrics["grad_norm"] is not None:
            parts.append(f"grad {metrics['grad_norm']:.2f}")
        left = duration(self._seconds_left(metrics["step"]))
        parts += [f"{metrics['tokens_per_second']:,.0f} tok/s", f"{left} left"]
        logger.info("  ".join(parts))
        if metrics.get("sample"):
            logger.info(f"  sample: {metrics['sample']!r}")

    def close(self) -> None:
        self.bar.close()

    def _seconds_left(self, step: int) -> float:
        """At the pace of this process, evaluations and saves included."""
        seconds_per_step = (time.perf_counter() - self._started) / max(step - self._first_step, 1)
        return seconds_per_step * (self._iterations - step)
