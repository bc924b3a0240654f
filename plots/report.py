"""The report as figures, each with its numbers: rows, claims, and Figures 2 and 4 of what there is."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plots.routing import draw_fronts
from plots.style import COLOURS, new_figure, save_with_numbers
from reproduction.figures import draw_figure_2, figure_2
from reproduction.plan import Run
from reproduction.report import Finding, Line
from reproduction.statistics import Mean

VERDICTS = {"holds": COLOURS[2], "contradicted": COLOURS[1]}


def draw_report(
    runs: Sequence[Run], lines: Sequence[Line], findings: Sequence[Finding], folder: Path
) -> list[Path]:
    """Write what there is something to draw for into `folder`; the paths of the .png files."""
    drawn = [folder / "perplexity.png"]
    draw_lines(lines, drawn[-1])
    if findings:
        drawn.append(folder / "claims.png")
        draw_findings(findings, drawn[-1])
    points = figure_2(runs)
    if any(point["perplexity"] is not None for point in points):
        drawn.append(folder / "figure2.png")
        draw_figure_2(points, drawn[-1], published=True, same_size=all(run.as_published for run in runs))
    sweeps = {
        f"{run.rows[0]}, seed {run.seed}": run.sweep_result() for run in runs if run.sweep and run.swept
    }
    if sweeps:
        drawn.append(folder / "figure4.png")
        draw_fronts(sweeps, drawn[-1])
    return drawn


def draw_lines(lines: Sequence[Line], path: Path) -> None:
    """Each row's perplexity, ours beside the paper's: two axes, for sizes and text may differ."""
    figure, (ours, theirs) = new_figure(
        1, 2, figsize=(10, 1.2 + 0.28 * len(lines)), sharey=True, width_ratios=(3, 2)
    )
    for y, line in enumerate(reversed(lines)):
        if line.interval is not None:
            ours.plot(line.interval, (y, y), color=COLOURS[5], linewidth=5, alpha=0.45, solid_capstyle="butt")
        if line.ours is not None:
            ours.errorbar(line.ours.value, y, xerr=line.ours.margin, fmt="o", color=COLOURS[0], capsize=2)
        else:
            ours.annotate("missing", (0.02, y), xycoords=("axes fraction", "data"), fontsize=8, va="center")
        if line.published is not None:
            theirs.errorbar(line.published, y, xerr=line.error, fmt="s", color=COLOURS[1], capsize=2)
    ours.set_yticks(range(len(lines)), [line.row for line in reversed(lines)], fontsize=8)
    ours.set_xlabel("our perplexity; bars: 95 % over seeds (thin), over batches (wide)")
    theirs.set_xlabel("the paper's, with its standard error")
    for axes in (ours, theirs):
        axes.grid(alpha=0.3)
    save_with_numbers(figure, path, [asdict(line) for line in lines])


def draw_findings(findings: Sequence[Finding], path: Path) -> None:
    """Paired differences in loss, with both kinds of interval; left of zero the paper's claim holds."""
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
    axes.set_xlabel("difference in nats per token, 95 %; left of zero as the paper has it")
    axes.set_xscale("symlog", linthresh=0.02)
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize="small")
    save_with_numbers(figure, path, [asdict(finding) for finding in findings])


def _interval(axes: Any, found: Mean, y: float, colour: str, marker: str) -> None:
    axes.errorbar(found.value, y, xerr=found.margin, fmt=marker, color=colour, capsize=2, markersize=5)
