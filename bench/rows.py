"""The form of a result: rows, alike for all parts, and their lines on the screen.

A row is a dict: part, name (unique in its part), unit, value; then, None where there is none: plain (the same
over the plain path), ratio (of times: plain over ours, above 1 where we are faster), memory_mib,
plain_memory_mib; and details, numbers that only this part has. value, plain and ratio are {median, low, high,
runs}, low and high being quartiles, of fewer than four runs the extremes.
"""

from collections.abc import Mapping
from typing import Any

from bench.plan import Row
from bench.timing import QUARTILES_FROM, Spread


def row(
    part: str,
    name: str,
    unit: str,
    value: Spread,
    *,
    plain: Spread | None = None,
    ratio: Spread | None = None,
    memory_mib: float | None = None,
    plain_memory_mib: float | None = None,
    **details: Any,
) -> Row:
    return {
        "part": part,
        "name": name,
        "unit": unit,
        "value": value._asdict(),
        "plain": plain and plain._asdict(),
        "ratio": ratio and ratio._asdict(),
        "memory_mib": None if memory_mib is None else round(memory_mib, 2),
        "plain_memory_mib": None if plain_memory_mib is None else round(plain_memory_mib, 2),
        "details": details,
    }


def missing(part: str, name: str, why: str) -> Row:
    """A row of what could not be measured: its value is None, and details say why."""
    empty = {"plain": None, "ratio": None, "memory_mib": None, "plain_memory_mib": None}
    return {"part": part, "name": name, "unit": "", "value": None, **empty, "details": {"why": why}}


def number(value: float) -> str:
    """Three or four digits, as people read them."""
    if isinstance(value, int) or value == 0:
        return f"{value:,.0f}"
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.3g}"


def spread_text(value: Mapping[str, float] | None) -> str:
    if value is None:
        return "-"
    if value["runs"] == 1:
        return f"{number(value['median'])} (1 run)"
    ends = "" if value["runs"] >= QUARTILES_FROM else "extremes "
    return f"{number(value['median'])} ({ends}{number(value['low'])} to {number(value['high'])})"


def line(of: Row) -> str:
    """One row on the screen."""
    if of["value"] is None:
        return f"  {of['name']}: not measured: {of['details']['why']}"
    said = [f"  {of['name']:44} {spread_text(of['value'])} {of['unit']}"]
    if of["ratio"]:
        said.append(f"plain / ours {spread_text(of['ratio'])}")
    if of["memory_mib"] is not None:
        before = f" (plain {number(of['plain_memory_mib'])})" if of["plain_memory_mib"] else ""
        said.append(f"{number(of['memory_mib'])} MiB{before}")
    said += [f"{name} {_detail(value)}" for name, value in of["details"].items() if _is_short(value)]
    return ", ".join(said)


def _is_short(value: Any) -> bool:
    return isinstance(value, int | float | str) and not isinstance(value, bool)


def _detail(value: Any) -> str:
    return value if isinstance(value, str) else number(value)
