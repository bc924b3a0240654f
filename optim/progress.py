"""Progress of a training for people: a bar where stderr is a terminal, and a log line for each interval."""

import logging
import sys
import time
from typing import Any

from errors import duration

logger = logging.getLogger(__name__)


class Progress:
    """The bar and the lines of the intervals.

    bar: updated by the training loop; None where nobody would see it.
    """

    def __init__(self, iterations: int, step: int, is_main: bool = True) -> None:
        """step: updates made before. is_main: whether this is rank 0, which alone shows a bar."""
        self._iterations = iterations
        self._first_step, self._started = step, time.perf_counter()
        self._said = False  # how much time is left
        self.bar: Any = None
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
        if self.bar is not None:
            self.bar.close()

    def _seconds_left(self, step: int) -> float:
        """At the pace of this process, evaluations and saves included."""
        seconds_per_step = (time.perf_counter() - self._started) / max(step - self._first_step, 1)
        return seconds_per_step * (self._iterations - step)
