"""Runs the cases of the parts one after the other, and says how far it is."""

import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from statistics import mean

from bench.parts import PARTS, maker
from bench.plan import Case, Done, Plan, Row
from bench.rows import line, missing
from errors import Failure


def flat(done: Done) -> list[Row]:
    return [one for rows in done.values() for one in rows]


def run(parts: Sequence[str], plan: Plan, keep: Callable[[Done], object], before: Done | None = None) -> Done:
    """Measure everything, printing rows as they come and, to stderr, how long the rest will take.

    keep: is given all so far after each case. before: what need not be measured again. A case that fails
    leaves a row that says why, and the others go on; where all fail, Failure.
    """
    cases: list[tuple[str, Case]] = []
    for part in dict.fromkeys(parts):
        made = maker(part)(plan)
        cases += [(part, case) for case in made]
        if not made:
            print(f"{part}: nothing to measure here (its models are not chosen, or it needs a GPU)")
    done: Done = dict(before or {})
    planned, cases = cases, [(part, case) for part, case in cases if (part, case.name) not in done]
    spent: dict[str, list[float]] = {}
    started, last = time.perf_counter(), None
    for number, (part, case) in enumerate(cases, start=1):
        if part != last:
            print(f"\n{part}: {PARTS[part][1]}", flush=True)
            last = part
        begun = time.perf_counter()
        found = measured(part, case)
        for one in found:
            print(line(one), flush=True)
        done[part, case.name] = found
        keep(done)
        now = time.perf_counter()
        spent.setdefault(part, []).append(now - begun)
        left = remaining([name for name, _ in cases[number:]], spent)
        print(
            f"  [{number} of {len(cases)}, {clock(now - started)}, about {clock(left)} left]",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    done = {(part, case.name): done[part, case.name] for part, case in planned}
    rows = flat(done)
    if rows and all(one["value"] is None for one in rows):
        raise Failure(f"nothing could be measured: {rows[0]['details']['why']}")
    return done


def measured(part: str, case: Case) -> list[Row]:
    """Its rows, or one that says why there are none: hours of measuring are not lost for one case."""
    try:
        return case.measure()
    except Failure as error:
        return [missing(part, case.name, str(error))]
    except Exception as error:
        traceback.print_exc()
        return [missing(part, case.name, f"{type(error).__name__}: {error}")]


def remaining(parts: Sequence[str], spent: Mapping[str, Sequence[float]]) -> float:
    """Seconds that cases of these parts will take: as the part's so far, or all cases' where it has none."""
    everything = mean([seconds for one in spent.values() for seconds in one])
    return sum(mean(spent[part]) if part in spent else everything for part in parts)


def clock(seconds: float) -> str:
    """minutes:seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
