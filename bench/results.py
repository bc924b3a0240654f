"""Results of the suite: statistics, form, files and tables. No torch here.

A result is a dict: part, case, name (unique in its part), unit and value; ratio (of times in the same
process: plain path over ours, above 1 where ours is faster) and memory_mib, None where not measured; and
details, numbers that only its part has. value and ratio are {median, low, high, repeats}: quartiles, or the
extremes of fewer than four repeats.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.plan import Result
from errors import UsageError

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
QUARTILES_FROM = 4  # repeats
MACHINE_FIELDS = {"cpu", "gpu", "cores", "threads", "torch", "commit", "date"}
FIELDS = {"part", "name", "unit", "value", "ratio", "memory_mib", "details"}
COLUMNS = ("case", "median (quartiles)", "plain / ours", "MiB", "details")
PARTS_OF_A_STEP = ("attention", "mlp", "head and loss", "rest", "optimiser")  # only in older files


class Spread(NamedTuple):
    """A median, and the quartiles around it (of fewer than QUARTILES_FROM repeats: the extremes)."""

    median: float
    low: float
    high: float
    repeats: int


def spread(values: Sequence[float]) -> Spread:
    """Raises ValueError for no values."""
    if not values:
        raise ValueError("no measurements to take a median of")
    if len(values) < QUARTILES_FROM:
        return Spread(statistics.median(values), min(values), max(values), len(values))
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high, len(values))


def rate(amount: float, seconds: Sequence[float]) -> Spread:
    """`amount` per second: tokens, bytes, operations."""
    return spread([amount / one for one in seconds])


def ratio(seconds: Sequence[float], reference: Sequence[float]) -> Spread:
    """reference / seconds, round by round: above 1 where the reference is slower.

    The two measurements of a round are neighbours in time, so a slow minute of the machine affects both.
    Raises ValueError for different numbers of rounds.
    """
    return spread([other / one for one, other in zip(seconds, reference, strict=True)])


def result(
    part: str, name: str, unit: str, value: Spread | None, ratio: Spread | None = None,
    memory_mib: float | None = None, **details: Any,
) -> Result:  # fmt: skip
    return {
        "part": part, "name": name, "unit": unit, "value": value and value._asdict(),
        "ratio": ratio and ratio._asdict(), "memory_mib": memory_mib, "details": details,
    }  # fmt: skip


def failed(part: str, name: str, why: str) -> Result:
    """The result of a measurement that failed: no value, and the reason in its details."""
    return result(part, name, "", None, why=why)


def number(value: float) -> str:
    """Three or four digits."""
    if isinstance(value, int) or value == 0:
        return f"{value:,.0f}"
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.3g}"


def spread_text(value: Mapping[str, float]) -> str:
    if value["repeats"] == 1:
        return f"{number(value['median'])} (once)"
    ends = "" if value["repeats"] >= QUARTILES_FROM else "extremes "
    return f"{number(value['median'])} ({ends}{number(value['low'])} to {number(value['high'])})"


def cells(of: Result) -> list[str]:
    """A result as a line of a table of COLUMNS."""
    if of["value"] is None:
        return [of["name"], "failed", "", "", of["details"]["why"]]
    details = [
        f"{name.replace('_', ' ')} {number(value)}"
        for name, value in of["details"].items()
        if isinstance(value, int | float)
    ]
    faster = spread_text(of["ratio"]) if of["ratio"] else ""
    memory = "" if of["memory_mib"] is None else number(of["memory_mib"])
    return [of["name"], f"{spread_text(of['value'])} {of['unit']}", faster, memory, ", ".join(details)]


def line(of: Result) -> str:
    """A result on one line of the screen."""
    name, value, *others = cells(of)
    labels = ("{}", "plain / ours {}", "{} MiB", "{}")
    texts = [label.format(text) for label, text in zip(labels, [value, *others], strict=True) if text]
    return f"  {name:44} {', '.join(texts)}"


def read_json(path: Path) -> Any:
    """Raises UsageError for a file that is missing or is not JSON."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from error


def read(path: Path) -> dict[str, Any]:
    """A result file: machine and results. Raises UsageError for any other file.

    Older files call results `rows` and repeats `runs`, and have the floor of each part of a step.
    """
    content = read_json(path)
    if not is_result_file(content):
        raise UsageError(f"{path} is not a result of `python -m bench`: it has no machine and results")
    for one in content.get("rows", ()):
        for field in ("value", "ratio"):
            if one[field]:
                one[field]["repeats"] = one[field].pop("runs")
        if one.get("plain_memory_mib"):
            one["details"]["plain_mib"] = one["plain_memory_mib"]
    if "rows" in content:
        content["results"] = [one for one in content["rows"] if not one["name"].endswith(PARTS_OF_A_STEP)]
    return content


def is_result_file(content: Any) -> bool:
    if not (isinstance(content, dict) and isinstance(content.get("machine"), dict)):
        return False
    results = content.get("results", content.get("rows"))
    if not content["machine"].keys() >= MACHINE_FIELDS or not isinstance(results, list):
        return False
    return all(isinstance(one, dict) and one.keys() >= FIELDS for one in results)
