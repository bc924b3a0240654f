"""What a report is of: how many runs, which code, how long, on what."""

import shlex
import sys
from collections.abc import Iterable, Sequence

from reproduction.plan import Run


def describe(runs: Sequence[Run]) -> str:
    """A few lines: for the end of a report."""
    trained = [summary for run in runs if run.trained and (summary := run.summary())]
    words = [f"python {shlex.join(sys.argv)}", f"{len(trained)} of {len(runs)} runs are trained"]
    if trained:
        hours = sum(summary["training_seconds"] * summary["processes"] for summary in trained) / 3600
        dates = sorted(summary["finished"] for summary in trained)
        words += [
            f"{hours:.2f} hours of training in sum, on "
            + _each(f"{s['processes']} process on {s['device']} ({s['arithmetic']})" for s in trained),
            f"finished between {dates[0]} and {dates[-1]}",
            "commits " + _each(summary["git_commit"] or "unknown" for summary in trained),
            "torch " + _each(summary["versions"]["torch"] for summary in trained),
        ]
        machines = _each(summary["machine"] for summary in trained if "machine" in summary)
        words += [f"machine: {machines}"] if machines else []
    return "\n".join(f"- {line}" for line in words)


def _each(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))
