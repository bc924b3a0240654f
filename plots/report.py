"""Figures of the reproduction report: perplexity of each experiment, and the paper's claims."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plots.style import COLOURS, new_figure, save_with_numbers

VERDICTS = {"holds": COLOURS[2], "contradicted": COLOURS[1]}


def draw_perplexity(rows: Sequence[Any], path: Path) -> None:
    """Draw each experiment's perplexity, ours on the left and the paper's on the right.

    The two have axes of their own, as sizes and text may differ.

    Args:
        rows: `reproduction.report.Row`, one for each experiment.
        path: a .png, .pdf or .svg file.

    Raises:
        Failure: a file cannot be written.
    """
    figure, (ours, theirs) = new_figure(
        1, 2, figsize=(10, 1.2 + 0.28 * len(rows)), sharey=True, width_ratios=(3, 2)
    )
    for y, row in enumerate(reversed(rows)):
        if row.interval is not None:
            ours.plot(row.interval, (y, y), color=COLOURS[5], linewidth=5, alpha=0.45, solid_capstyle="butt")
        if row.ours is not None:
            ours.errorbar(row.ours.value, y, xerr=row.ours.margin, fmt="o", color=COLOURS[0], capsize=2)
        else:
            ours.annotate("missing", (0.02, y), xycoords=("axes fraction", "data"), fontsize=8, va="center")
        if row.published is not None:
            theirs.errorbar(row.published, y, xerr=row.error, fmt="s", color=COLOURS[1], capsize=2)
    ours.set_yticks(range(len(rows)), [row.row for row in reversed(rows)], fontsize=8)
    ours.set_xlabel("our perplexity; 95 % over seeds (thin) and over batches (wide)")
    theirs.set_xlabel("the paper's, with its standard error")
    for axes in (ours, theirs):
        axes.grid(alpha=0.3)
    save_with_numbers(figure, path, [asdict(row) for row in rows])


def draw_claims(findings: Sequence[Any], path: Path) -> None:
    """Draw paired differences in loss, with both intervals; left of zero the paper's claim holds.

    Args:
        findings: `reproduction.claims.Finding`, one for each claim.
        path: a .png, .pdf or .svg file.

    Raises:
        Failure: a file cannot be written.
    """
    figure, axes = new_figure(1, 1, figsize=(10, 1.4 + 0.34 * len(findings)))
    for y, finding in enumerate(reversed(findings)):
        colour = VERDICTS.get(finding.verdict, "gray")
        _interval(axes, finding.compared.over_seeds, y + 0.12, colour, "o")
        if finding.compared.over_batches is not None:
            _interval(axes, finding.compared.over_batches, y - 0.12, colour, "x")
    for label, marker in (("over seeds", "o"), ("over batches", "x")):
        axes.plot([], [], marker, color="black", label=label)
    for label, colour in (*VERDICTS.items(), ("undecided", "gray")):
        axes.plot([], [], color=colour, linewidth=4, label=label)
    axes.axvline(0.0, color="black", linewidth=1)
    axes.set_yticks(range(len(findings)), [finding.claim for finding in reversed(findings)], fontsize=8)
    axes.set_xlabel("difference in nats per token, 95 % interval; left of zero: as in the paper")
    axes.set_xscale("symlog", linthresh=0.02)
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize="small")
    save_with_numbers(figure, path, [asdict(finding) for finding in findings])


def _interval(axes: Any, found: Any, y: float, colour: str, marker: str) -> None:
    axes.errorbar(found.value, y, xerr=found.margin, fmt=marker, color=colour, capsize=2, markersize=5)
