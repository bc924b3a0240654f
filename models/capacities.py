"""How many tokens take each pass: length factors, the counts that follow from them, and training's draws.

Length factors f_1 >= ... >= f_{R-1} in [0, 1] are the fractions of a sequence's tokens that take passes 2..R
(paper, Section 4). No torch here: the command line checks them, and MACs are counted from them.
"""

import itertools
from collections.abc import Callable, Sequence

from errors import UsageError


def check_factors(name: str, factors: Sequence[float], n_repeat: int) -> None:
    """Raises UsageError unless there are R - 1 factors from 0 to 1 that do not increase."""
    shown = " ".join(map(str, factors))
    if len(factors) != n_repeat - 1:
        raise UsageError(
            f"--{name} {shown}: n_repeat={n_repeat} needs {n_repeat - 1} numbers, not {len(factors)}"
        )
    if any(factor is None or not 0 <= factor <= 1 for factor in factors):
        raise UsageError(f"--{name} {shown}: each must be from 0 to 1")
    if any(later > earlier for earlier, later in itertools.pairwise(factors)):
        raise UsageError(
            f"--{name} {shown}: must not increase, for a pass takes only tokens of the one before"
        )


def ratios(factors: Sequence[float]) -> list[float]:
    """Of the tokens that took pass r, the fraction that takes pass r + 1: f_r / f_{r-1}, 0 after a 0."""
    return [later / earlier if earlier else 0.0 for earlier, later in itertools.pairwise((1.0, *factors))]


def kept(ratio: float, present: int, single_precision: bool) -> int:
    """Tokens that take the next pass: `ratio` of those present, rounded down.

    Truncation compounds from pass to pass, so the count may be below int(f_r * T), and double or single
    precision can change it by one (0.6 / 0.8 * 12 is 8 or 9). Both are as in the released code.
    """
    if single_precision:
        import numpy as np  # here, for --help and a typo are answered without it

        return int(np.float32(ratio) * np.float32(present))
    return int(ratio * present)


def tokens_per_pass(
    length: int, n_repeat: int, factors: Sequence[float] | None, single_precision: bool
) -> list[int]:
    """Tokens of a sequence of `length` that take passes 1..R; no factors: all of them."""
    counts = [length]
    for ratio in ratios(factors) if factors is not None else [1.0] * (n_repeat - 1):
        counts.append(kept(ratio, counts[-1], single_precision))
    return counts


# A draw maps n uniform numbers in [0, 1), in the order in which they are drawn, to n factors.
Draw = Callable[[Sequence[float]], list[float]]


def _uniform(numbers: Sequence[float]) -> list[float]:
    """min(1.05 u, 1), descending: the default."""
    return sorted((min(1.05 * u, 1.0) for u in numbers), reverse=True)


def _more_chance_for_zero_too(numbers: Sequence[float]) -> list[float]:
    """u stretched over both ends, [-0.05, 1.05), and clamped."""
    return sorted((min(max(1.1 * u - 0.05, 0.0), 1.0) for u in numbers), reverse=True)


def _exponential_decay(numbers: Sequence[float]) -> list[float]:
    """Powers u, u^2, ... of one number."""
    return _powers(min(1.05 * numbers[0], 1.0), len(numbers))


def _at_least_10percent(numbers: Sequence[float]) -> list[float]:
    """The same with u in [0.1, 1]."""
    return _powers(min(max(0.95 * numbers[0] + 0.1, 0.1), 1.0), len(numbers))


def _powers(base: float, count: int) -> list[float]:
    return [base**power for power in range(1, count + 1)]


def _midpoints(stretch: float) -> Draw:
    """Split [0, 1] at a random place for the middle factor, then each part for the remaining factors."""

    def draw(numbers: Sequence[float]) -> list[float]:
        left = iter([min(stretch * u, 1.0) for u in numbers])

        def split(low: float, high: float, count: int) -> list[float]:
            if count == 0:
                return []
            middle = low + next(left) * (high - low)
            above = (count - 1) // 2
            return [*split(middle, high, above), middle, *split(low, middle, count - 1 - above)]

        return split(0.0, 1.0, len(numbers))

    return draw


DRAWS: dict[str, Draw] = {
    "uniform": _uniform,
    "more_chance_for_zero_too": _more_chance_for_zero_too,
    "exponential_decay": _exponential_decay,
    "at_least_10percent": _at_least_10percent,
    "pick_mid_and_recurse": _midpoints(1.05),
    "pick_mid_and_recurse_more_chance_for_one": _midpoints(1.5),
    "pick_mid_and_recurse_more_chance_for_one_even_more": _midpoints(2.0),
}


def draw_factors(method: str, numbers: Sequence[float]) -> list[float]:
    """Length factors of one training forward pass, from R - 1 uniform numbers.

    A method that is not listed is the uniform one, as in the released code, whose published runs rely on it
    (`uniform_random_range` among them).
    """
    return DRAWS.get(method, _uniform)(numbers)
