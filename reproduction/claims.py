"""Orderings that the paper claims, and whether our results support them.

A claim names two experiments, of which the first should have the lower loss. It holds if both 95 % intervals
of the paired difference, over seeds and over batches, are below zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reproduction.plan import Run, results_by_experiment
from reproduction.statistics import Comparison, Scores, at_fixed_depths, compare


@dataclass(frozen=True)
class Claim:
    """`better` should have a lower loss than `worse`, both names of experiments; where: in the paper."""

    better: str
    worse: str
    where: str


def _table_1() -> list[Claim]:
    claims = []
    for layers in (12, 24):
        for repeats in (2, 3, 5):
            size = f"{layers}x{repeats}"
            claims.append(Claim(f"table1/cotformer-{size}", f"table1/but-{size}", "Table 1"))
            claims.append(Claim(f"table1/but-{size}", f"table1/standard-{layers}", "Table 1"))
        for model in ("but", "cotformer"):
            for fewer, more in ((2, 3), (3, 5)):
                claims.append(
                    Claim(f"table1/{model}-{layers}x{more}", f"table1/{model}-{layers}x{fewer}", "Table 1")
                )
    return claims


CLAIMS = (
    *_table_1(),
    Claim("table2/ln-cotformer", "table2/cotformer-reserved", "Table 2"),
    Claim("table2/ln-cotformer", "table2/standard-48", "Table 2"),
    Claim("table5/mixture-of-repeats", "table5/stick-breaking", "Table 5"),
    Claim("table5/stick-breaking", "table5/pondernet", "Table 5"),
    Claim("table6/pause-24", "table6/standard-24", "Table 6"),
    Claim("table6/but-24x5", "table6/pause-24", "Table 6"),
    Claim("table6/cotformer-24x5", "table6/pause-24", "Table 6"),
)

# Figure 4: these routers should have a lower loss than fixed depths at equal MACs. (experiment, series)
ROUTER_CLAIMS = tuple(("figure4/adm", f"router, {kind}") for kind in ("top-k", "threshold"))

# Figure 2: CoTFormer's lead over BUT should grow with the repeats. (smaller, larger lead)
GROWING_GAPS = tuple(
    ((f"table1/cotformer-{n}x2", f"table1/but-{n}x2"), (f"table1/cotformer-{n}x5", f"table1/but-{n}x5"))
    for n in (12, 24)
)


@dataclass(frozen=True)
class Finding:
    """A claim of the paper, the paired difference in loss that we find, and the verdict in words."""

    claim: str
    where: str
    compared: Comparison
    verdict: str


def find(runs: Sequence[Run]) -> list[Finding]:
    """A finding for each claim whose experiments are trained."""
    scores = {
        name: {seed: _scores(result) for seed, result in by_seed.items()}
        for name, by_seed in results_by_experiment(runs).items()
        if by_seed
    }
    return judge(scores) + _judge_routers(runs)


def judge(scores: dict[str, dict[int, Scores]]) -> list[Finding]:
    """Findings on the claims about pairs of experiments. scores: by experiment, then by seed."""
    findings = []
    for claim in CLAIMS:
        if claim.better in scores and claim.worse in scores:
            compared = compare(scores[claim.better], scores[claim.worse])
            findings += _finding(f"{claim.better} < {claim.worse}", claim.where, compared)
    for smaller, larger in GROWING_GAPS:
        if all(name in scores for name in (*smaller, *larger)):
            compared = compare(_gap(scores, larger), _gap(scores, smaller))
            claim = f"gap of {larger[0]} to {larger[1].split('/')[1]} > at 2 repeats"
            findings += _finding(claim, "Figure 2", compared)
    return findings


def _scores(result: dict[str, Any]) -> Scores:
    of = tuple(str(result.get(name)) for name in ("dataset", "sequence_length", "batch_size", "tokens"))
    return Scores(result["loss"], result["batch_losses"], of)


def _gap(scores: dict[str, dict[int, Scores]], pair: tuple[str, str]) -> dict[int, Scores]:
    """By seed, loss of the first minus loss of the second; without batches if theirs are not the same."""
    one, other = scores[pair[0]], scores[pair[1]]
    gaps = {}
    for seed in one.keys() & other.keys():
        a, b = one[seed], other[seed]
        batches = [x - y for x, y in zip(a.batches, b.batches, strict=True)] if a.of == b.of else []
        gaps[seed] = Scores(a.loss - b.loss, batches, a.of)
    return gaps


def _judge_routers(runs: Sequence[Run]) -> list[Finding]:
    findings = []
    for experiment, series in ROUTER_CLAIMS:
        pairs = {
            run.seed: at_fixed_depths(sweep, series)
            for run in runs
            if experiment in run.experiments and run.swept and (sweep := run.sweep_result()) is not None
        }
        routed = {seed: pair[0] for seed, pair in pairs.items() if pair}
        fixed = {seed: pair[1] for seed, pair in pairs.items() if pair}
        claim = f"{experiment}: {series} < fixed depth, at the same MACs"
        findings += _finding(claim, "Figure 4", compare(routed, fixed))
    return findings


def _finding(claim: str, where: str, compared: Comparison | None) -> list[Finding]:
    """Empty if no seed has both."""
    return [] if compared is None else [Finding(claim, where, compared, _verdict(compared))]


def _verdict(compared: Comparison) -> str:
    """`holds` or `contradicted` if all intervals agree and there are several seeds, else `undecided`."""
    seeds, batches = compared.over_seeds, compared.over_batches
    signs = {found.sign for found in (seeds, batches) if found is not None and found.margin is not None}
    if signs == {-1}:
        return "holds" if seeds.count > 1 else "undecided: one seed, of which it holds"
    if signs == {1}:
        return "contradicted" if seeds.count > 1 else "undecided: one seed, of which it is contradicted"
    tendency = {-1: ", tends to hold", 1: ", tends to be contradicted"}
    return "undecided" + tendency.get((seeds.value > 0) - (seeds.value < 0), "")
