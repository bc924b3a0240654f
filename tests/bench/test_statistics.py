"""Medians, quartiles, ratios of rounds; rows on the screen; time that is left."""

import pytest

from bench.rows import line, missing, number, row
from bench.suite import clock, remaining
from bench.timing import in_turn, rate, ratio, spread


def test_median_and_quartiles():
    assert spread([5.0, 1.0, 3.0, 2.0, 4.0]) == (3.0, 2.0, 4.0, 5)
    assert spread([3.0, 1.0]) == (2.0, 1.0, 3.0, 2)  # of so few: the extremes
    with pytest.raises(ValueError, match="no runs"):
        spread([])


def test_ratios_are_those_of_a_round():
    """A minute in which the machine is three times slower falls on both."""
    assert ratio([1.0, 3.0, 1.0, 1.0, 1.0], [2.0, 6.0, 2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0, 5)
    with pytest.raises(ValueError, match="argument"):
        ratio([1.0], [1.0, 2.0])
    assert rate(10, [2.0, 5.0]) == (3.5, 2.0, 5.0, 2)


def test_works_take_turns_and_warm_up_does_not_count():
    said = []
    seconds = in_turn([lambda: said.append("a"), lambda: said.append("b")], repeats=3, warm_up=2)
    assert said == ["a", "b"] * 5
    assert [len(times) for times in seconds] == [3, 3]


def test_a_row_on_the_screen():
    slow, fast = spread([4.0, 4.0]), spread([2.0, 2.0])
    shown = line(row("train", "adm", "s", fast, plain=slow, ratio=ratio([2.0], [4.0]), memory_mib=10.04,
                     plain_memory_mib=20.0, tokens=5))  # fmt: skip
    assert "adm" in shown and "2 (extremes 2 to 2) s" in shown
    assert "plain / ours 2 (1 run)" in shown and "10.0 MiB (plain 20.0)" in shown and "tokens 5" in shown
    assert "2 (2 to 2) s" in line(row("train", "adm", "s", spread([2.0] * 4)))
    assert "not measured: no GPU" in line(missing("train", "adm", "no GPU"))


def test_numbers_have_three_digits():
    assert [number(x) for x in (0.0, 0.012345, 1.2345, 12.345, 1234.5, 7)] == [
        "0", "0.0123", "1.23", "12.3", "1,234", "7",
    ]  # fmt: skip


def test_time_left_is_that_of_the_part_or_of_all():
    spent = {"train": [2.0, 4.0], "eval": [1.0, 1.0]}
    assert remaining(["train", "eval"], spent) == 4.0
    assert remaining(["decode"], spent) == 2.0
    assert clock(125) == "2:05"
