"""Ours beside theirs: tables of a set of runs, in three formats, and whether the paper's ordering holds."""

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from config.experiments import BY_NAME
from reproduction.claims import CLAIMS, GROWING_GAPS
from reproduction.plan import Run
from reproduction.statistics import Comparison, Mean, compare, mean

Losses = dict[str, dict[int, list[float]]]  # row -> seed -> losses of batches
HEADINGS = (
    "row", "seeds", "ours: perplexity", "s.e. over seeds", "95 % over batches", "paper", "s.e.", "difference",
    "missing",
)  # fmt: skip


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


def losses_of(found: dict[str, dict[int, dict[str, Any]]]) -> Losses:
    """row -> seed -> losses of batches, where there are any."""
    return {
        row: {seed: result["batch_losses"] for seed, result in seeds.items()}
        for row, seeds in found.items()
        if seeds
    }


def table(
    found: dict[str, dict[int, dict[str, Any]]], seeds: Sequence[int], scale: str
) -> list[dict[str, str]]:
    """A dict for each row, by HEADINGS.

    The difference is of perplexities, ours minus the published one: at the published scale only, for numbers
    of other sizes on other text cannot be compared, their order can.
    """
    return [_line(row, found[row], seeds, scale == "paper") for row in found]


def _line(
    row: str, results: dict[int, dict[str, Any]], seeds: Sequence[int], comparable: bool
) -> dict[str, str]:
    published = BY_NAME[row]
    missing = [str(seed) for seed in seeds if seed not in results]
    line = dict.fromkeys(HEADINGS, "")
    line |= {
        "row": row,
        "seeds": str(len(results)),
        "paper": _number(published.perplexity, 2),
        "s.e.": _number(published.error, 2),
        "missing": f"seed {', '.join(missing)}" if missing else "",
    }
    if results:
        ours = mean([result["perplexity"] for result in results.values()])
        unknown = (math.nan, math.nan)
        intervals = [result["perplexity_interval_95"] or unknown for result in results.values()]
        lows, highs = zip(*intervals, strict=True)
        line |= {
            "ours: perplexity": f"{ours.value:.3f}",
            "s.e. over seeds": _number(ours.standard_error, 3),
            "95 % over batches": f"{statistics.fmean(lows):.3f} to {statistics.fmean(highs):.3f}",
        }
        if comparable and published.perplexity is not None:
            line["difference"] = f"{ours.value - published.perplexity:+.2f}"
    return line


CLAIM_HEADINGS = ("the paper says", "where", "over seeds", "over batches", "found")


def claims(losses: Losses) -> list[dict[str, str]]:
    """Each claim that there are runs for, with the paired difference in nats per token."""
    lines = []
    for claim in CLAIMS:
        if claim.better in losses and claim.worse in losses:
            compared = compare(losses[claim.better], losses[claim.worse])
            if compared is not None:
                lines.append(_claim(f"{claim.better} < {claim.worse}", claim.where, compared))
    for smaller, larger in GROWING_GAPS:
        if all(row in losses for row in (*smaller, *larger)):
            compared = compare(_gap(losses, larger), _gap(losses, smaller))
            if compared is not None:
                name = f"gap of {larger[0]} to {larger[1].split('/')[1]} > at 2 repeats"
                lines.append(_claim(name, "Figure 2", compared))
    return lines


def _gap(losses: Losses, rows: tuple[str, str]) -> dict[int, list[float]]:
    one, other = losses[rows[0]], losses[rows[1]]
    return {
        seed: [a - b for a, b in zip(one[seed], other[seed], strict=True)]
        for seed in one.keys() & other.keys()
    }


def _claim(name: str, where: str, compared: Comparison) -> dict[str, str]:
    batches = compared.over_batches
    signs = {compared.over_seeds.sign, 0 if batches is None else batches.sign}
    if compared.over_seeds.margin is None and batches is not None:
        signs = {batches.sign}
    verdict = "holds" if signs == {-1} else "contradicted" if signs == {1} else _tendency(compared)
    return {
        "the paper says": name,
        "where": where,
        "over seeds": _with_margin(compared.over_seeds),
        "over batches": "" if batches is None else _with_margin(batches),
        "found": verdict,
    }


def _tendency(compared: Comparison) -> str:
    return f"undecided, tends to {'hold' if compared.over_seeds.value < 0 else 'be contradicted'}"


def _with_margin(found: Mean) -> str:
    margin = "" if found.margin is None else f" +- {found.margin:.4f}"
    return f"{found.value:+.4f}{margin} (n={found.count})"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def to_text(headings: Sequence[str], lines: Sequence[dict[str, str]]) -> str:
    """Aligned columns, for a terminal."""
    widths = {name: max(len(name), *(len(line[name]) for line in lines)) for name in headings}
    rows = [dict(zip(headings, headings, strict=True)), *lines]
    return "\n".join("  ".join(row[name].ljust(widths[name]) for name in headings).rstrip() for row in rows)


def to_markdown(headings: Sequence[str], lines: Sequence[dict[str, str]]) -> str:
    """A table of GitHub's Markdown."""
    rows = [list(headings), ["---"] * len(headings), *([line[name] for name in headings] for line in lines)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def to_latex(headings: Sequence[str], lines: Sequence[dict[str, str]]) -> str:
    """A tabular, in booktabs' style."""
    rows = [" & ".join(map(_escaped, headings)) + r" \\", r"\midrule"]
    rows += [" & ".join(_escaped(line[name]) for name in headings) + r" \\" for line in lines]
    body = "\n".join(rows)
    return f"\\begin{{tabular}}{{{'l' * len(headings)}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}"


def _escaped(text: str) -> str:
    for plain, written in (("%", r"\%"), ("_", r"\_"), ("+-", r"$\pm$"), ("<", "$<$"), (">", "$>$")):
        text = text.replace(plain, written)
    return text


FORMATS = {"text": to_text, "markdown": to_markdown, "latex": to_latex}
