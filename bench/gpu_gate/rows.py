"""Rows: what an item finds. No torch here.

A row is a dict of numbers and texts with a name, unique in its item, and `ok`: whether a check passed; None
for a measurement, which cannot fail.
"""

import math
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


class Skipped(Exception):
    """An item, or the rest of one, cannot be done here; the message says why."""


def row(name: str, ok: bool | None = None, **found: Any) -> Row:
    """Numbers are rounded to 6 digits; those that are not finite become text, as JSON has none."""
    return {"name": name, "ok": ok, **{key: _plain(value) for key, value in found.items()}}


def skipped(name: str, why: str) -> Row:
    """A part of an item that cannot be done here."""
    return row(name, skipped=why)


def close(
    name: str, found: Sequence[float | None], reference: Sequence[float | None], tolerance: float, **more: Any
) -> Row:
    """Whether losses, or other numbers, are those of the reference within an absolute tolerance."""
    pairs = list(zip(found, reference, strict=True))
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    difference = max((abs(a - b) for a, b in known), default=math.nan)
    if any((a is None) != (b is None) for a, b in pairs) or any(math.isnan(a - b) for a, b in known):
        difference = math.nan
    return row(name, difference <= tolerance, difference=difference, tolerance=tolerance, **more)


def line(one: Row) -> str:
    """A row on one line of the screen."""
    marks = {True: "ok", False: "NOT OK", None: ""}
    found = {key: value for key, value in one.items() if key not in ("name", "ok")}
    parts = [f"{key.replace('_', ' ')} {value}" for key, value in found.items()]
    return f"  {one['name']:40} {'  '.join(filter(None, [marks[one['ok']], ', '.join(parts)]))}"


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value
