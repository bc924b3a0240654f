"""Figure 4 as numbers: what a router gains over giving every token the same number of passes."""

import itertools
from collections.abc import Sequence
from typing import Any

from reproduction.statistics import Scores

FIXED = "fixed depth"  # a series of evaluation.compute_sweep
OF = ("dataset", "split", "sequence_length", "batch_size", "sample_size")  # what says which text it was


def at_fixed_depths(sweep: dict[str, Any], series: str) -> tuple[Scores, Scores] | None:
    """Scores of a series, and of the fixed depths, at the same MACs.

    sweep: what get_ppl_per_mac.py wrote. Both are means over the depths between one pass and all of them, at
    whose ends the two are the same by construction. The series' loss at a depth's MACs is interpolated
    linearly between its two nearest points. None where the series does not reach around any depth, or the
    sweep has no losses by batch.
    """
    points = [(_macs(point), _losses(point)) for point in sweep["points"] if point["series"] == series]
    points.sort()
    fixed = sorted(
        (point["setting"], _macs(point), _losses(point))
        for point in sweep["points"]
        if point["series"] == FIXED
    )[1:-1]
    if any("batch_losses" not in point for point in sweep["points"]):
        return None
    pairs = [(found, losses) for _, macs, losses in fixed if (found := _interpolated(points, macs))]
    if not pairs:
        return None
    of = tuple(str(sweep["about"].get(name)) for name in OF)
    loss, *batches = _mean([routed for routed, _ in pairs])
    fixed_loss, *fixed_batches = _mean([losses for _, losses in pairs])
    return Scores(loss, batches, of), Scores(fixed_loss, fixed_batches, of)


def _losses(point: dict[str, Any]) -> list[float]:
    """Of everything, and of each batch."""
    return [point["loss"], *point.get("batch_losses", [])]


def _macs(point: dict[str, Any]) -> float:
    return point["macs_per_sequence"]["paper"]


def _interpolated(points: Sequence[tuple[float, list[float]]], macs: float) -> list[float] | None:
    for (low, at_low), (high, at_high) in itertools.pairwise(points):
        if low <= macs <= high and low < high:
            part = (macs - low) / (high - low)
            return [(1 - part) * a + part * b for a, b in zip(at_low, at_high, strict=True)]
    return None


def _mean(lists: Sequence[Sequence[float]]) -> list[float]:
    return [sum(values) / len(values) for values in zip(*lists, strict=True)]
