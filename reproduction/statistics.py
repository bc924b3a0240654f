"""Means over seeds and paired differences, each with the interval that belongs to it.

Losses in nats per token. Two questions, never mixed: would other seeds give the same (the spread over seeds),
and would other text (the spread over batches of the validation set, of the models that there are).
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Student's t, 97.5 %, by degrees of freedom; normal from ten on.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Mean:
    """value, and half of its 95 % interval; None with fewer than two numbers."""

    value: float
    margin: float | None
    count: int

    @property
    def standard_error(self) -> float | None:
        return None if self.margin is None else self.margin / _quantile(self.count)

    @property
    def sign(self) -> int:
        """-1 or 1 where the interval is on one side of zero, else 0."""
        if self.margin is None or abs(self.value) <= self.margin:
            return 0
        return 1 if self.value > 0 else -1


def mean(numbers: Sequence[float]) -> Mean:
    """With the interval of Student's t."""
    value = statistics.fmean(numbers)
    if len(numbers) < 2:
        return Mean(value, None, len(numbers))
    error = statistics.stdev(numbers) / math.sqrt(len(numbers))
    return Mean(value, _quantile(len(numbers)) * error, len(numbers))


@dataclass(frozen=True)
class Comparison:
    """Loss of one row minus that of another: over seeds (paired by seed), over batches (seeds averaged)."""

    over_seeds: Mean
    over_batches: Mean | None


def compare(one: Mapping[int, Sequence[float]], other: Mapping[int, Sequence[float]]) -> Comparison | None:
    """one, other: seed -> losses of the batches of the validation set. None where no seed has both.

    Batches are paired where both were evaluated in the same ones; otherwise there is no interval over them.
    """
    seeds = sorted(one.keys() & other.keys())
    if not seeds:
        return None
    over_seeds = mean([statistics.fmean(one[seed]) - statistics.fmean(other[seed]) for seed in seeds])
    if len({len(losses) for seed in seeds for losses in (one[seed], other[seed])}) > 1:
        return Comparison(over_seeds, None)
    by_batch = [
        statistics.fmean(one[seed][index] - other[seed][index] for seed in seeds)
        for index in range(len(one[seeds[0]]))
    ]
    return Comparison(over_seeds, mean(by_batch))


def _quantile(count: int) -> float:
    return T_975[count - 2] if count - 2 < len(T_975) else 1.96
