"""Timing that a busy machine disturbs least: works in turn, medians with quartiles, ratios within one run."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

QUARTILES_FROM = 4  # runs


class Spread(NamedTuple):
    """The median of some runs, and the quartiles around it (of fewer than QUARTILES_FROM: the extremes)."""

    median: float
    low: float
    high: float
    runs: int


def spread(values: Sequence[float]) -> Spread:
    """Raises ValueError where there are none."""
    if not values:
        raise ValueError("no runs to take a median of")
    if len(values) < QUARTILES_FROM:
        return Spread(statistics.median(values), min(values), max(values), len(values))
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high, len(values))


def scaled(value: Spread, factor: float) -> Spread:
    """In another unit: seconds times 1000 are milliseconds."""
    return Spread(value.median * factor, value.low * factor, value.high * factor, value.runs)


def rate(amount: float, seconds: Sequence[float]) -> Spread:
    """`amount` per second: tokens, bytes, floating point operations."""
    return spread([amount / one for one in seconds])


def ratio(seconds: Sequence[float], reference: Sequence[float]) -> Spread:
    """How many times `seconds` each round's `reference` took: above 1, the reference is slower.

    Of the two runs of a round, which stood next to each other in time, so that a slow minute of the machine
    falls on both. Raises ValueError for different numbers of rounds.
    """
    return spread([other / one for one, other in zip(seconds, reference, strict=True)])


def in_turn(
    works: Sequence[Callable[[], object]],
    repeats: int,
    warm_up: int = 1,
    wait: Callable[[], object] = lambda: None,
) -> list[list[float]]:
    """Seconds of each work in each round; the rounds of the warm-up do not count.

    wait: until the device has done what it was told to do.
    """
    seconds: list[list[float]] = [[] for _ in works]
    for round_ in range(warm_up + repeats):
        for work, times in zip(works, seconds, strict=True):
            wait()
            started = time.perf_counter()
            work()
            wait()
            if round_ >= warm_up:
                times.append(time.perf_counter() - started)
    return seconds
