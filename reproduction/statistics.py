"""Means over seeds and paired differences, each with the interval that belongs to it.

Losses in nats per token. Two questions, never mixed: would other seeds give the same (the spread over seeds),
and would other text (the spread over batches of the validation set, of the models that there are).
"""

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

# Student's t, 97.5 %, by degrees of freedom.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
NORMAL = 1.959964


class Scores(NamedTuple):
    """One model on the validation set. loss: of all its tokens. batches: of each batch, the last of which may
    be smaller. of: what they are batches of: models with the same `of` saw the same text in the same batches.
    """

    loss: float
    batches: Sequence[float]
    of: Hashable


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


def compare(one: Mapping[int, Scores], other: Mapping[int, Scores]) -> Comparison | None:
    """one, other: seed -> scores. None where no seed has both.

    Batches are paired where both were evaluated in the same ones, the last, which may be smaller, left out;
    otherwise there is no interval over them.
    """
    seeds = sorted(one.keys() & other.keys())
    if not seeds:
        return None
    over_seeds = mean([one[seed].loss - other[seed].loss for seed in seeds])
    every = [scores[seed] for seed in seeds for scores in (one, other)]
    full = min(len(scores.batches) for scores in every) - 1
    if len({scores.of for scores in every}) > 1 or full < 2:
        return Comparison(over_seeds, None)
    by_batch = [
        statistics.fmean(one[seed].batches[index] - other[seed].batches[index] for seed in seeds)
        for index in range(full)
    ]
    return Comparison(over_seeds, mean(by_batch))


def _quantile(count: int) -> float:
    """Of Student's t with count - 1 degrees of freedom: from the table, else by its expansion at the normal's
    (Abramowitz & Stegun 26.7.5), right to three digits from ten on."""
    degrees, z = count - 1, NORMAL
    if degrees <= len(T_975):
        return T_975[degrees - 1]
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3
