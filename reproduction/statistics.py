"""Statistics of the comparisons: means over seeds, paired differences, 95 % intervals, Figure 4's trade-off.

Losses are in nats per token. Two questions are kept apart: would other seeds give the same result (spread
over seeds), and would other text, with the models at hand (spread over batches of the validation set)?
"""

import itertools
import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

# Student's t, 97.5 %, by degrees of freedom.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
NORMAL = 1.959964
FIXED_DEPTH = "fixed depth"  # a series of evaluation.compute_sweep
_TEXT = ("dataset", "split", "sequence_length", "batch_size", "sample_size")  # identify a sweep's batches


class Scores(NamedTuple):
    """Losses of one model on the validation set.

    loss: over all tokens. batches: of each batch; the last one may be smaller. of: identifies the batches;
    models with equal `of` were evaluated on the same text in the same batches.
    """

    loss: float
    batches: Sequence[float]
    of: Hashable


@dataclass(frozen=True)
class Mean:
    """A mean of `count` numbers, and half the width of its 95 % interval; None for fewer than two numbers."""

    value: float
    margin: float | None
    count: int

    @property
    def standard_error(self) -> float | None:
        return None if self.margin is None else self.margin / _quantile(self.count)

    @property
    def sign(self) -> int:
        """1 or -1 if the interval is on one side of zero, else 0."""
        if self.margin is None or abs(self.value) <= self.margin:
            return 0
        return 1 if self.value > 0 else -1


def mean(numbers: Sequence[float]) -> Mean:
    """The mean with the interval of Student's t."""
    value = statistics.fmean(numbers)
    if len(numbers) < 2:
        return Mean(value, None, len(numbers))
    error = statistics.stdev(numbers) / math.sqrt(len(numbers))
    return Mean(value, _quantile(len(numbers)) * error, len(numbers))


@dataclass(frozen=True)
class Comparison:
    """Difference in loss of two experiments: over seeds, paired by seed; over batches, as the seeds' mean."""

    over_seeds: Mean
    over_batches: Mean | None


def compare(one: Mapping[int, Scores], other: Mapping[int, Scores]) -> Comparison | None:
    """Loss of `one` minus loss of `other`.

    Args:
        one, other: scores by seed.

    Returns:
        None if no seed has both. Batches are paired if both were evaluated on the same ones, without the
        last, which may be smaller; otherwise there is no interval over batches.
    """
    seeds = sorted(one.keys() & other.keys())
    if not seeds:
        return None
    over_seeds = mean([one[seed].loss - other[seed].loss for seed in seeds])
    all_scores = [scores[seed] for seed in seeds for scores in (one, other)]
    full = min(len(scores.batches) for scores in all_scores) - 1
    if len({scores.of for scores in all_scores}) > 1 or full < 2:
        return Comparison(over_seeds, None)
    by_batch = [
        statistics.fmean(one[seed].batches[index] - other[seed].batches[index] for seed in seeds)
        for index in range(full)
    ]
    return Comparison(over_seeds, mean(by_batch))


def _quantile(count: int) -> float:
    """97.5 % quantile of Student's t with count - 1 degrees of freedom.

    From the table; above it, by the expansion around the normal quantile (Abramowitz & Stegun 26.7.5), which
    is correct to three digits from ten degrees of freedom on.
    """
    degrees, z = count - 1, NORMAL
    if degrees <= len(T_975):
        return T_975[degrees - 1]
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3


def at_fixed_depths(sweep: dict[str, Any], series: str) -> tuple[Scores, Scores] | None:
    """Scores of a router and of fixed depths at equal MACs (Figure 4).

    Both are means over the depths strictly between one pass and all passes; at the ends they are equal by
    construction. The router's loss at a depth's MACs is interpolated linearly between the two nearest points.

    Args:
        sweep: written by get_ppl_per_mac.py.
        series: the router's points, by name.

    Returns:
        None if the series encloses no depth, or the sweep has no losses by batch.
    """
    points = [(_macs(point), _losses(point)) for point in sweep["points"] if point["series"] == series]
    points.sort()
    fixed = sorted(
        (point["setting"], _macs(point), _losses(point))
        for point in sweep["points"]
        if point["series"] == FIXED_DEPTH
    )[1:-1]
    if any("batch_losses" not in point for point in sweep["points"]):
        return None
    pairs = [(routed, losses) for _, macs, losses in fixed if (routed := _interpolated(points, macs))]
    if not pairs:
        return None
    of = tuple(str(sweep["about"].get(name)) for name in _TEXT)
    loss, *batches = _means([routed for routed, _ in pairs])
    fixed_loss, *fixed_batches = _means([losses for _, losses in pairs])
    return Scores(loss, batches, of), Scores(fixed_loss, fixed_batches, of)


def _losses(point: dict[str, Any]) -> list[float]:
    """The loss over all tokens, then that of each batch."""
    return [point["loss"], *point.get("batch_losses", [])]


def _macs(point: dict[str, Any]) -> float:
    return point["macs_per_sequence"]["paper"]


def _interpolated(points: Sequence[tuple[float, list[float]]], macs: float) -> list[float] | None:
    for (low, at_low), (high, at_high) in itertools.pairwise(points):
        if low <= macs <= high and low < high:
            part = (macs - low) / (high - low)
            return [(1 - part) * a + part * b for a, b in zip(at_low, at_high, strict=True)]
    return None


def _means(lists: Sequence[Sequence[float]]) -> list[float]:
    return [sum(values) / len(values) for values in zip(*lists, strict=True)]
