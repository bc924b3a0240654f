"""Tables as aligned text, Markdown and LaTeX, made from rows of cells; the first row holds the headings."""

from collections.abc import Callable, Iterable, Sequence

Rows = Iterable[Sequence[str]]


def aligned_table(rows: Rows, align: str = "l") -> str:
    """Columns of equal width, two spaces apart.

    Args:
        rows: equally many cells each.
        align: `l` (left) or `r` (right) for each column; its last letter holds for all further columns, so
            `lr` is a left-aligned first column and numbers after it.
    """
    rows = [tuple(row) for row in rows]
    if not rows:
        return ""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = align.ljust(len(widths), align[-1])
    return "\n".join(
        "  ".join(
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(row, widths, sides, strict=False)
        ).rstrip()
        for row in rows
    )


def markdown_table(rows: Rows) -> str:
    """A table of GitHub's Markdown."""
    headings, *lines = rows
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *lines))


def latex_table(rows: Rows) -> str:
    """A `tabular` with the rules of the booktabs package; special characters are escaped."""
    rows = list(rows)
    lines = [" & ".join(map(_escaped, row)) + r" \\" for row in rows]
    columns = "l" * len(rows[0])
    parts = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule", *lines[1:]]
    return "\n".join([*parts, r"\bottomrule", r"\end{tabular}"])


def _escaped(text: str) -> str:
    for plain, written in (("%", r"\%"), ("_", r"\_"), ("+-", r"$\pm$"), ("<", "$<$"), (">", "$>$")):
        text = text.replace(plain, written)
    return text


FORMATS: dict[str, Callable[[Rows], str]] = {
    "text": aligned_table,
    "markdown": markdown_table,
    "latex": latex_table,
}
