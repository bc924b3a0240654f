"""Two results of the suite side by side: `python -m bench.compare A.json B.json`.

Of each row that both have: the medians, B over A, and a mark where the quartiles do not touch, so that more
has changed than the repetitions differed among themselves (which does not say why: the machine may have).
Fewer than four runs have no quartiles and get no mark. Peak memory is compared too, and marked from 5 % on.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.results import read
from bench.rows import number
from bench.timing import QUARTILES_FROM
from errors import run_script

RATES = ("/s",)  # the end of units of which more is better
MEMORY_MARGIN = 0.05


class Change(NamedTuple):
    """first, second: medians. mark: `better`, `worse`, or empty where the spreads overlap."""

    part: str
    name: str
    unit: str
    first: float
    second: float
    mark: str

    @property
    def ratio(self) -> float:
        return self.second / self.first if self.first else float("nan")


def changes(first: dict[str, Any], second: dict[str, Any]) -> list[Change]:
    """Of the rows that both results have, in the order of the first one."""
    others = {(row["part"], row["name"]): row for row in second["rows"]}
    found = []
    for row in first["rows"]:
        other = others.get((row["part"], row["name"]))
        if other is None or not (row["value"] and other["value"]) or row["unit"] != other["unit"]:
            continue
        a, b, unit = row["value"], other["value"], row["unit"]
        found.append(Change(row["part"], row["name"], unit, a["median"], b["median"], _mark(a, b, unit)))
        a, b = row["memory_mib"], other["memory_mib"]
        if a and b:
            mark = "" if abs(b / a - 1) < MEMORY_MARGIN else "better" if b < a else "worse"
            found.append(Change(row["part"], f"{row['name']}, memory", "MiB", a, b, mark))
    return found


def _mark(a: dict[str, float], b: dict[str, float], unit: str) -> str:
    if min(a["runs"], b["runs"]) < QUARTILES_FROM or (a["low"] <= b["high"] and b["low"] <= a["high"]):
        return ""
    less = b["median"] < a["median"]
    return "worse" if less == unit.endswith(RATES) else "better"


def only_in(first: dict[str, Any], second: dict[str, Any]) -> int:
    """Rows of the first that the second lacks."""
    others = {(row["part"], row["name"]) for row in second["rows"]}
    return sum((row["part"], row["name"]) not in others for row in first["rows"])


def machines(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """What the two results differ in, of where and with what they were measured."""
    a, b = first["machine"], second["machine"]
    names = ("cpu", "gpu", "cores", "threads", "device", "torch", "commit", "effort", "command")
    return [f"{name}: {a.get(name)} -> {b.get(name)}" for name in names if a.get(name) != b.get(name)]


def table(first: dict[str, Any], second: dict[str, Any]) -> str:
    found = changes(first, second)
    lines = machines(first, second)
    widest = max((len(change.name) for change in found), default=0)
    part = None
    for change in found:
        if change.part != part:
            part = change.part
            lines.append(f"\n{part:{widest + 2}}{'A':>10}{'B':>10}{'B / A':>8}")
        lines.append(
            f"  {change.name:{widest}}{number(change.first):>10}{number(change.second):>10}"
            f"{change.ratio:8.2f}  {change.unit:9} {change.mark}".rstrip()
        )
    marks = [change.mark for change in found]
    lines.append(
        f"\n{len(found)} compared: {marks.count('better')} better and {marks.count('worse')} worse by more "
        f"than the spreads; only in A: {only_in(first, second)}, only in B: {only_in(second, first)}"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__.splitlines()[0])
    parser.add_argument("a", type=Path, metavar="A.json")
    parser.add_argument("b", type=Path, metavar="B.json")
    args = parser.parse_args()
    print(table(read(args.a), read(args.b)))


if __name__ == "__main__":
    run_script(main)
