"""The report: perplexities next to the paper's, claims, zero-shot accuracies, provenance of the results."""

import math
import shlex
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from config.experiments import BY_NAME
from reproduction.claims import Finding
from reproduction.plan import Run, results_by_experiment
from reproduction.statistics import Mean, mean
from tables import FORMATS

HEADINGS = (
    "experiment", "seeds", "ours: perplexity", "s.e. over seeds", "95 % over batches", "paper", "s.e.",
    "difference", "missing",
)  # fmt: skip
CLAIM_HEADINGS = ("the paper says", "where", "over seeds", "over batches", "found")
ZERO_SHOT = {
    "MMLU": ("mmlu",),
    "ARC": ("arc_easy", "arc_challenge"),
    "HellaSwag": ("hellaswag",),
    "PIQA": ("piqa",),
}
Accuracies = dict[str, tuple[float | None, float]]  # by task: ours and the paper's, in percent


@dataclass(frozen=True)
class Row:
    """A row of the report.

    Attributes:
        row: name of the experiment.
        seeds: number of trained seeds; missing: the other seeds.
        ours: perplexity, over seeds. interval: 95 % over batches, the mean of the seeds' intervals.
        published, error: the paper's perplexity and its standard error.
        difference: ours minus the published one, only at the published size and text, as perplexities are not
            comparable otherwise.
    """

    row: str
    seeds: int
    ours: Mean | None
    interval: tuple[float, float] | None
    published: float | None
    error: float | None
    difference: float | None
    missing: list[int]


def rows(runs: Sequence[Run]) -> list[Row]:
    """A row for each experiment."""
    results, seeds = results_by_experiment(runs), list(dict.fromkeys(run.seed for run in runs))
    comparable = {name for run in runs if run.as_published for name in run.experiments}
    return [_row(name, results[name], seeds, name in comparable) for name in results]


def _row(name: str, results: dict[int, dict[str, Any]], seeds: Sequence[int], comparable: bool) -> Row:
    published = BY_NAME[name]
    ours = interval = difference = None
    if results:
        ours = mean([result["perplexity"] for result in results.values()])
        known = [result["perplexity_interval_95"] for result in results.values()]
        if all(known):
            lows, highs = zip(*known, strict=True)
            interval = statistics.fmean(lows), statistics.fmean(highs)
        if comparable and published.perplexity is not None:
            difference = ours.value - published.perplexity
    missing = [seed for seed in seeds if seed not in results]
    return Row(name, len(results), ours, interval, published.perplexity, published.error, difference, missing)


def zero_shot(runs: Sequence[Run]) -> dict[str, Accuracies]:
    """Table 3: by experiment and task, our and the published accuracy, length-normalised if there is one.

    Ours is the mean over the seeds that run_lm_eval.py has scored; ARC is the mean of its two halves.
    """
    return {
        name: {
            task: (_accuracy([run for run in runs if name in run.experiments], parts), published)
            for (task, parts), published in zip(ZERO_SHOT.items(), BY_NAME[name].zero_shot or (), strict=True)
        }
        for name in dict.fromkeys(name for run in runs for name in run.experiments)
        if BY_NAME[name].zero_shot
    }


def _accuracy(runs: Sequence[Run], tasks: Sequence[str]) -> float | None:
    by_seed = []
    for run in runs:
        results = (run.downstream() or {}).get("results", {})
        scores = [results[task] for task in tasks if task in results]
        if len(scores) == len(tasks):
            each = [score.get("acc_norm,none", score.get("acc,none", math.nan)) for score in scores]
            by_seed.append(100 * statistics.fmean(each))
    return statistics.fmean(by_seed) if by_seed else None


def write(runs: Sequence[Run], rows: Sequence[Row], findings: Sequence[Finding], form: str) -> str:
    """The report as text. form: one of tables.FORMATS."""
    table = FORMATS[form]
    parts = [table([HEADINGS, *map(row_cells, rows)])]
    if findings:
        parts.append(table([CLAIM_HEADINGS, *map(finding_cells, findings)]))
    if scores := zero_shot(runs):
        parts.append(table(zero_shot_cells(scores)))
    return "\n\n".join([*parts, provenance(runs)]) + "\n"


def row_cells(row: Row) -> tuple[str, ...]:
    """Cells of HEADINGS."""
    return (
        row.row,
        str(row.seeds),
        _number(None if row.ours is None else row.ours.value, 3),
        _number(None if row.ours is None else row.ours.standard_error, 3),
        "" if row.interval is None else f"{row.interval[0]:.3f} to {row.interval[1]:.3f}",
        _number(row.published, 2),
        _number(row.error, 2),
        "" if row.difference is None else f"{row.difference:+.2f}",
        f"seed {', '.join(map(str, row.missing))}" if row.missing else "",
    )


def finding_cells(finding: Finding) -> tuple[str, ...]:
    """Cells of CLAIM_HEADINGS; differences in nats per token."""
    over_seeds, over_batches = finding.compared.over_seeds, finding.compared.over_batches
    batches = "" if over_batches is None else _with_margin(over_batches)
    return finding.claim, finding.where, _with_margin(over_seeds), batches, finding.verdict


def zero_shot_cells(scores: dict[str, Accuracies]) -> list[tuple[str, ...]]:
    """Headings, then a row of cells for each experiment of `zero_shot`."""
    ours, paper = ([f"{task}: {whose}" for task in ZERO_SHOT] for whose in ("ours", "paper"))
    rows: list[tuple[str, ...]] = [("experiment", *ours, *paper)]
    for name, tasks in scores.items():
        numbers = [_number(pair[whose], 2) for whose in (0, 1) for pair in tasks.values()]
        rows.append((name, *numbers))
    return rows


def _with_margin(found: Mean) -> str:
    margin = "" if found.margin is None else f" +- {found.margin:.4f}"
    return f"{found.value:+.4f}{margin} (n={found.count})"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def provenance(runs: Sequence[Run]) -> str:
    """The command, the number of trained runs, and their hours, dates, commits, versions and machines."""
    trained = [summary for run in runs if run.trained and (summary := run.summary())]
    lines = [f"python {shlex.join(sys.argv)}", f"{len(trained)} of {len(runs)} runs are trained"]
    if trained:
        hours = sum(summary["training_seconds"] * summary["processes"] for summary in trained) / 3600
        dates = sorted(summary["finished"] for summary in trained)
        lines += [
            f"{hours:.2f} hours of training in total, on "
            + _unique(f"{s['processes']} process on {s['device']} ({s['arithmetic']})" for s in trained),
            f"finished between {dates[0]} and {dates[-1]}",
            "commits " + _unique(summary["git_commit"] or "unknown" for summary in trained),
            "torch " + _unique(summary["versions"]["torch"] for summary in trained),
        ]
        machines = _unique(summary["machine"] for summary in trained if "machine" in summary)
        lines += [f"machine: {machines}"] if machines else []
    return "\n".join(f"- {line}" for line in lines)


def _unique(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))
