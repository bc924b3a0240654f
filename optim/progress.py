"""What a person sees of a run: a bar on a terminal, plain lines elsewhere."""

import logging
import sys
import time

from tqdm import tqdm

from config.training import TrainConfig
from data.progress import clock

logger = logging.getLogger(__name__)


class Progress:
    """Loss, tokens per second, time left: log lines, and a bar on stderr where that is a terminal."""

    def __init__(self, config: TrainConfig, step: int, shown: bool = True) -> None:
        """shown: False in a process that is not the first."""
        self._config = config
        self._start = (step, time.perf_counter())
        self._bar = tqdm(
            total=config.iterations,
            initial=step,
            desc="training",
            unit="step",
            dynamic_ncols=True,
            disable=not shown or not sys.stderr.isatty(),
        )

    def step(self, loss: float, seconds: float) -> None:
        """One update was made: its loss, and how long it took."""
        self._bar.set_postfix_str(
            f"loss {loss:.4f}, {self._config.tokens_per_step / seconds:,.0f} tok/s", refresh=False
        )
        self._bar.update()

    def metrics(self, line: dict) -> None:
        """The line that went into metrics.jsonl."""
        parts = [f"step {line['step']}/{self._config.iterations}", f"loss {line['train_loss']:.4f}"]
        if "val_loss" in line:
            parts.append(f"val {line['val_loss']:.4f} (perplexity {line['val_perplexity']:.2f})")
        parts.append(f"lr {line['lr']:.2e}")
        if line["grad_norm"] is not None:
            parts.append(f"grad {line['grad_norm']:.2f}")
        parts += [f"{line['tokens_per_second']:,.0f} tok/s", f"{clock(self._left(line['step']))} left"]
        logger.info("  ".join(parts))
        if line.get("sample"):
            logger.info(f"  sample: {line['sample']!r}")

    def close(self) -> None:
        self._bar.close()

    def _left(self, step: int) -> float:
        """Seconds to go, at the pace of this process, evaluations and saves included."""
        first, since = self._start
        return (time.perf_counter() - since) / max(step - first, 1) * (self._config.iterations - step)
