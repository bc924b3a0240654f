"""Ours beside theirs, as numbers: each row of a set of runs, and whether the paper's ordering holds.

Losses in nats per token. `reproduction.formats` writes the numbers, `reproduction.figures` draws them.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from config.experiments import BY_NAME
from reproduction.claims import CLAIMS, GROWING_GAPS, ROUTER_CLAIMS
from reproduction.plan import Run
from reproduction.router import at_fixed_depths
from reproduction.statistics import Comparison, Mean, Scores, compare, mean


@dataclass(frozen=True)
class Line:
    """A row. ours: perplexity, over seeds; interval: 95 % over batches, the mean of the seeds' intervals.

    published, error: the paper's, with its standard error. difference: ours minus the published one, at the
    published scale only, for numbers of other sizes on other text cannot be compared; their order can.
    """

    row: str
    seeds: int
    ours: Mean | None
    interval: tuple[float, float] | None
    published: float | None
    error: float | None
    difference: float | None
    missing: list[int]


@dataclass(frozen=True)
class Finding:
    """A claim of the paper, and the paired difference in loss that we find; verdict: in words."""

    claim: str
    where: str
    compared: Comparison
    verdict: str


def gather(runs: Iterable[Run]) -> dict[str, dict[int, dict[str, Any]]]:
    """row -> seed -> what eval.py wrote, of those that are complete."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for run in runs:
        result = run.result() if run.trained else None
        for row in run.rows:
            found.setdefault(row, {})
            if result is not None:
                found[row][run.seed] = result
    return found


def lines(runs: Sequence[Run]) -> list[Line]:
    """One for each row."""
    found, seeds = gather(runs), list(dict.fromkeys(run.seed for run in runs))
    comparable = {row for run in runs if run.as_published for row in run.rows}
    return [_line(row, found[row], seeds, row in comparable) for row in found]


def _line(row: str, results: dict[int, dict[str, Any]], seeds: Sequence[int], comparable: bool) -> Line:
    published = BY_NAME[row]
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
    return Line(row, len(results), ours, interval, published.perplexity, published.error, difference, missing)


def findings(runs: Sequence[Run]) -> list[Finding]:
    """Each claim that there are runs for."""
    scores = {
        row: {seed: _scores(result) for seed, result in seeds.items()}
        for row, seeds in gather(runs).items()
        if seeds
    }
    return judge(scores) + _of_routers(runs)


def _scores(result: dict[str, Any]) -> Scores:
    about = tuple(str(result.get(name)) for name in ("dataset", "sequence_length", "batch_size", "tokens"))
    return Scores(result["loss"], result["batch_losses"], about)


def judge(losses: dict[str, dict[int, Scores]]) -> list[Finding]:
    """The claims about rows, from row -> seed -> scores."""
    found = []
    for claim in CLAIMS:
        if claim.better in losses and claim.worse in losses:
            compared = compare(losses[claim.better], losses[claim.worse])
            found += _finding(f"{claim.better} < {claim.worse}", claim.where, compared)
    for smaller, larger in GROWING_GAPS:
        if all(row in losses for row in (*smaller, *larger)):
            compared = compare(_gap(losses, larger), _gap(losses, smaller))
            name = f"gap of {larger[0]} to {larger[1].split('/')[1]} > at 2 repeats"
            found += _finding(name, "Figure 2", compared)
    return found


def _gap(losses: dict[str, dict[int, Scores]], rows: tuple[str, str]) -> dict[int, Scores]:
    """By seed, the first row's less the second's; without batches where these are not the same."""
    one, other = losses[rows[0]], losses[rows[1]]
    gaps = {}
    for seed in one.keys() & other.keys():
        a, b = one[seed], other[seed]
        batches = [x - y for x, y in zip(a.batches, b.batches, strict=True)] if a.of == b.of else []
        gaps[seed] = Scores(a.loss - b.loss, batches, a.of)
    return gaps


def _of_routers(runs: Sequence[Run]) -> list[Finding]:
    """Figure 4: the router's choice of tokens against all tokens, at the compute of a fixed depth."""
    found = []
    for claim in ROUTER_CLAIMS:
        pairs = {
            run.seed: at_fixed_depths(run.sweep_result(), claim.series)
            for run in runs
            if claim.row in run.rows and run.swept
        }
        routed = {seed: pair[0] for seed, pair in pairs.items() if pair}
        fixed = {seed: pair[1] for seed, pair in pairs.items() if pair}
        name = f"{claim.row}: {claim.series} < fixed depth, at the same MACs"
        found += _finding(name, claim.where, compare(routed, fixed))
    return found


def _finding(claim: str, where: str, compared: Comparison | None) -> list[Finding]:
    """None where no seed has both."""
    if compared is None:
        return []
    return [Finding(claim, where, compared, _verdict(compared))]


def _verdict(compared: Comparison) -> str:
    """What both kinds of interval say, where there are both; one seed speaks for itself alone."""
    seeds, batches = compared.over_seeds, compared.over_batches
    signs = {found.sign for found in (seeds, batches) if found is not None and found.margin is not None}
    said = {frozenset({-1}): "holds", frozenset({1}): "contradicted"}.get(frozenset(signs))
    if said is not None:
        return said if seeds.count > 1 else f"undecided: one seed, of which it {_AS_A_VERB[said]}"
    tendency = {-1: ", tends to hold", 1: ", tends to be contradicted"}
    return "undecided" + tendency.get((seeds.value > 0) - (seeds.value < 0), "")


_AS_A_VERB = {"holds": "holds", "contradicted": "is contradicted"}


ZERO_SHOT = {
    "MMLU": ("mmlu",),
    "ARC": ("arc_easy", "arc_challenge"),
    "HellaSwag": ("hellaswag",),
    "PIQA": ("piqa",),
}


def zero_shot(runs: Sequence[Run]) -> dict[str, dict[str, tuple[float | None, float]]]:
    """Table 3: row -> task -> (ours, published), accuracies in percent, length-normalised where there is one.

    Ours: the mean over the seeds that `evaluation.lm_eval` was called for; ARC is that of its two halves.
    """
    return {
        row: {
            task: (_accuracy([run for run in runs if row in run.rows], parts), published)
            for (task, parts), published in zip(ZERO_SHOT.items(), BY_NAME[row].zero_shot, strict=True)
        }
        for row in dict.fromkeys(row for run in runs for row in run.rows)
        if BY_NAME[row].zero_shot
    }


def _accuracy(runs: Sequence[Run], tasks: Sequence[str]) -> float | None:
    scores = []
    for run in runs:
        results = (run.downstream() or {}).get("results", {})
        of_tasks = [results[task] for task in tasks if task in results]
        if len(of_tasks) == len(tasks):
            each = [score.get("acc_norm,none", score.get("acc,none", math.nan)) for score in of_tasks]
            scores.append(100 * statistics.fmean(each))
    return statistics.fmean(scores) if scores else None
