"""Timing that a busy machine disturbs least: works in turn, medians, ratios within one run."""

import statistics
import time
from collections.abc import Callable


def compare(works: list[Callable[[], object]], repeats: int, warm_up: bool = True) -> list[float]:
    """Median seconds of each, run in turn; warm_up: after one run that does not count."""
    seconds: list[list[float]] = [[] for _ in works]
    for round_ in range(repeats + warm_up):
        for work, times in zip(works, seconds, strict=True):
            started = time.perf_counter()
            work()
            if round_ or not warm_up:
                times.append(time.perf_counter() - started)
    return [statistics.median(times) for times in seconds]
