"""The report's tables in three formats: a terminal's, Markdown, LaTeX."""

from collections.abc import Iterable, Sequence

from reproduction.report import Finding, Line
from reproduction.statistics import Mean

HEADINGS = (
    "row", "seeds", "ours: perplexity", "s.e. over seeds", "95 % over batches", "paper", "s.e.", "difference",
    "missing",
)  # fmt: skip
CLAIM_HEADINGS = ("the paper says", "where", "over seeds", "over batches", "found")
Cells = dict[str, str]  # by heading


def line_cells(line: Line) -> Cells:
    """By HEADINGS."""
    ours, interval = line.ours, line.interval
    values = (
        line.row,
        str(line.seeds),
        _number(ours and ours.value, 3),
        _number(ours and ours.standard_error, 3),
        "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}",
        _number(line.published, 2),
        _number(line.error, 2),
        "" if line.difference is None else f"{line.difference:+.2f}",
        f"seed {', '.join(map(str, line.missing))}" if line.missing else "",
    )
    return dict(zip(HEADINGS, values, strict=True))


def finding_cells(finding: Finding) -> Cells:
    """By CLAIM_HEADINGS: differences in nats per token."""
    over_seeds, over_batches = finding.compared.over_seeds, finding.compared.over_batches
    batches = "" if over_batches is None else _with_margin(over_batches)
    values = finding.claim, finding.where, _with_margin(over_seeds), batches, finding.verdict
    return dict(zip(CLAIM_HEADINGS, values, strict=True))


def zero_shot_cells(scores: dict[str, dict[str, tuple[float | None, float]]]) -> list[Cells]:
    """Of `report.zero_shot`: a column for each task, ours and the paper's."""
    return [
        {"row": row}
        | {f"{task}: ours": _number(ours, 2) for task, (ours, _) in tasks.items()}
        | {f"{task}: paper": _number(published, 2) for task, (_, published) in tasks.items()}
        for row, tasks in scores.items()
    ]


def _with_margin(found: Mean) -> str:
    margin = "" if found.margin is None else f" +- {found.margin:.4f}"
    return f"{found.value:+.4f}{margin} (n={found.count})"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def to_text(headings: Sequence[str], lines: Iterable[Cells]) -> str:
    """Aligned columns."""
    rows = [dict(zip(headings, headings, strict=True)), *lines]
    widths = {name: max(len(row[name]) for row in rows) for name in headings}
    return "\n".join("  ".join(row[name].ljust(widths[name]) for name in headings).rstrip() for row in rows)


def to_markdown(headings: Sequence[str], lines: Iterable[Cells]) -> str:
    """A table of GitHub's Markdown."""
    rows = [list(headings), ["---"] * len(headings), *([line[name] for name in headings] for line in lines)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def to_latex(headings: Sequence[str], lines: Iterable[Cells]) -> str:
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
