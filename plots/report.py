"""Figures of the reproduction report: perplexity of each experiment, and the paper's claims."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plots.style import BLUE, GREEN, SKY, VERMILION, WIDTH, add_legend, new_figure, save_with_numbers

VERDICTS = {"holds": GREEN, "contradicted": VERMILION}


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
        1, 2, figsize=(WIDTH, 1.4 + 0.24 * len(rows)), sharey=True, width_ratios=(3, 2)
    )
    shown: list[float] = []  # an interval over few seeds can be wider than all others together
    for y, row in enumerate(reversed(rows)):
        if row.interval is not None:
            shown += row.interval
            ours.plot(row.interval, (y, y), color=SKY, linewidth=5, alpha=0.45, solid_capstyle="butt")
        if row.ours is not None:
            shown.append(row.ours.value)
            ours.errorbar(row.ours.value, y, xerr=row.ours.margin, fmt="o", color=BLUE)
        else:
            ours.annotate("missing", (0.02, y), xycoords=("axes fraction", "data"), fontsize=8, va="center")
        if row.published is not None:
            theirs.errorbar(row.published, y, xerr=row.error, fmt="s", color=VERMILION)
    ours.errorbar([], [], xerr=[], fmt="o", color=BLUE, label="ours, 95 % over seeds")
    ours.plot([], [], color=SKY, linewidth=5, alpha=0.45, label="95 % over evaluation batches")
    theirs.errorbar([], [], xerr=[], fmt="s", color=VERMILION, label="the paper's, standard error over seeds")
    if shown:
        ours.set_xscale("log")
        ours.set_xlim(0.97 * min(shown), 1.03 * max(shown))
    ours.set_yticks(range(len(rows)), [row.row for row in reversed(rows)], fontsize=8)
    ours.set_ylim(-0.7, len(rows) - 0.3)
    ours.set_xlabel("our perplexity")
    theirs.set_xlabel("the paper's perplexity")
    add_legend(figure, ours, theirs)
    save_with_numbers(figure, path, [asdict(row) for row in rows])


def draw_claims(findings: Sequence[Any], path: Path) -> None:
    """Draw paired differences in loss, with both intervals; left of zero the paper's claim holds.

    Args:
        findings: `reproduction.claims.Finding`, one for each claim.
        path: a .png, .pdf or .svg file.

    Raises:
        Failure: a file cannot be written.
    """
    from matplotlib.ticker import NullLocator

    figure, axes = new_figure(1, 1, figsize=(WIDTH, 1.6 + 0.28 * len(findings)))
    for y, finding in enumerate(reversed(findings)):
        colour = VERDICTS.get(finding.verdict, "gray")
        _interval(axes, finding.compared.over_seeds, y + 0.15, colour, "o")
        if finding.compared.over_batches is not None:
            _interval(axes, finding.compared.over_batches, y - 0.15, colour, "x")
    for label, marker in (("paired over seeds", "o"), ("paired over evaluation batches", "x")):
        axes.plot([], [], marker, color="black", label=label)
    for label, colour in (*VERDICTS.items(), ("undecided", "gray")):
        axes.plot([], [], color=colour, linewidth=4, label=label)
    axes.axvline(0.0, color="black", linewidth=1)
    axes.set_yticks(range(len(findings)), [finding.claim for finding in reversed(findings)], fontsize=7)
    axes.set_ylim(-0.7, len(findings) - 0.3)
    axes.set_xlabel("difference in nats per token, 95 % interval; left of zero: as in the paper")
    axes.set_xscale("symlog", linthresh=0.02)
    axes.set_xticks([sign * tick for tick in (0.01, 0.1, 1) for sign in (-1, 1)] + [0])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    add_legend(figure, axes)
    save_with_numbers(figure, path, [asdict(finding) for finding in findings])


def _interval(axes: Any, found: Any, y: float, colour: str, marker: str) -> None:
    axes.errorbar(found.value, y, xerr=found.margin, fmt=marker, color=colour)
