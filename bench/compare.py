"""Two results of the suite, or two commits: `python -m bench.compare BEFORE.json AFTER.json | --against REF`.

Of two files: each result that both have, and a mark where the quartiles do not overlap, so that more has
changed than the repeats differ among themselves. That does not say why: the machine may have changed. Fewer
than four repeats get no mark. Memory is marked from 5 % on.

--against measures training steps, evaluation and decoding of the commit REF and of the files here in one go:
two processes, one for each side, take turns (`bench.against`).
"""

import argparse
from pathlib import Path
from typing import Any

from bench.plan import DTYPES, QUICK_MODELS, SIZES
from bench.results import QUARTILES_FROM, number, read, spread_text
from errors import UsageError, run_script
from tables import aligned_table

RATES = "/s"  # the end of units of which more is better
MEMORY_MARGIN = 0.05
COLUMNS = ("part", "case", "before", "after", "after / before", "")
DESCRIBED = ("cpu", "gpu", "cores", "threads", "device", "torch", "commit", "effort", "command")


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[list[str]]:
    """Lines of a table: part, case, before, after, after / before, mark; of the results that both have."""
    others = {(one["part"], one["name"]): one for one in after["results"]}
    lines = []
    for one in before["results"]:
        other = others.get((one["part"], one["name"]))
        if other is None or not (one["value"] and other["value"]) or one["unit"] != other["unit"]:
            continue
        case, (a, b) = [one["part"], one["name"]], (one["value"], other["value"])
        quotient = b["median"] / a["median"] if a["median"] else float("nan")
        texts = [f"{spread_text(value)} {one['unit']}" for value in (a, b)]
        lines.append([*case, *texts, f"{quotient:.2f}", mark(a, b, one["unit"])])
        a, b = one["memory_mib"], other["memory_mib"]
        if a and b:
            changed = "" if abs(b / a - 1) < MEMORY_MARGIN else "better" if b < a else "worse"
            case[1] += ", memory"
            lines.append([*case, f"{number(a)} MiB", f"{number(b)} MiB", f"{b / a:.2f}", changed])
    return lines


def mark(a: dict[str, float], b: dict[str, float], unit: str) -> str:
    """better or worse where the quartiles of before (a) and after (b) do not overlap, else nothing."""
    too_few = min(a["repeats"], b["repeats"]) < QUARTILES_FROM
    if too_few or (a["low"] <= b["high"] and b["low"] <= a["high"]):
        return ""
    less = b["median"] < a["median"]
    return "worse" if less == unit.endswith(RATES) else "better"


def compared(before: dict[str, Any], after: dict[str, Any]) -> str:
    machines = [(name, before["machine"].get(name), after["machine"].get(name)) for name in DESCRIBED]
    differing = [f"{name}: {a} -> {b}" for name, a, b in machines if a != b]
    lines = changes(before, after)
    marks = [line[-1] for line in lines]
    better, worse = marks.count("better"), marks.count("worse")
    summary = f"{len(lines)} compared: {better} better and {worse} worse by more than the spreads"
    return "\n".join([*differing, "", aligned_table([COLUMNS, *lines]), "", summary])


def main() -> None:
    summary, _, about = (__doc__ or "").partition("\n\n")
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m bench.compare", None, summary, about, formatter_class=form)
    add = parser.add_argument
    add("files", nargs="*", type=Path, metavar="FILE.json", help="before and after")
    add("--against", metavar="REF", help="a commit, branch or tag to measure against the files here")
    kinds = ("train", "eval", "decode")
    add("--only", nargs="+", choices=kinds, default=kinds, help="(default: all)")
    add("--models", nargs="+", default=QUICK_MODELS, help="names or aliases (default: three)")
    add("--sizes", nargs="+", choices=SIZES, default=["baseline"], help="(default: baseline)")
    add("--dtypes", nargs="+", choices=DTYPES, default=DTYPES, help="(default: both)")
    add("--device", default="cpu", help="cpu or cuda (default: cpu)")
    add("--rounds", type=int, default=11, help="measurements of each side (default: 11)")
    args = parser.parse_args()
    if bool(args.against) == bool(args.files) or len(args.files) not in (0, 2):
        raise UsageError("give two result files, before and after, or --against REF")
    if not args.against:
        print(compared(*map(read, args.files)))
        return
    from bench.against import measure_against  # imports torch

    measure_against(args)


if __name__ == "__main__":
    run_script(main)
