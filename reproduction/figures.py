"""Figures 2 and 3: perplexity over compute of the rows of Table 1, and compute over the length of the text.

MACs are those of one sequence, in the paper's convention (`models.macs`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import config
from config.experiments import BY_NAME, EXPERIMENTS
from evaluation.figures import COLOURS, new_figure, save
from models import count_macs
from reproduction.plan import Run
from reproduction.report import gather
from reproduction.statistics import mean

PANELS = {"12": "12 layers", "24": "24 layers"}  # of Figure 2
SERIES = {"standard": "Standard", "but": "Block Universal", "cotformer": "CoTFormer"}
LENGTHS = tuple(range(128, 12288 + 1, 128))  # of Figure 3


def figure_2_rows() -> list[str]:
    """The names of its rows."""
    return [e.name for e in EXPERIMENTS if e.name.startswith(("table1/", "figure2/")) and _panel(e.name)]


def _panel(row: str) -> str | None:
    return next((panel for panel in PANELS if f"-{panel}" in row), None)


def _series(row: str) -> str:
    return next(series for series in SERIES if f"/{series}-" in row)


def figure_2(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A dict for each row: panel, series, repeats, MACs and perplexity, ours (with its standard error over
    seeds) and published, with the MACs of the published size; None where there is nothing."""
    found, args = gather(runs), {row: run.args for run in runs for row in run.rows}
    points = []
    for row in figure_2_rows():
        if row not in found:
            continue
        results = [result["perplexity"] for result in found[row].values()]
        ours = mean(results) if results else None
        published = config.parse_args(["--experiment", row])
        points.append({
            "row": row,
            "panel": _panel(row),
            "series": _series(row),
            "repeats": 1 if _series(row) == "standard" else args[row].n_repeat,
            "macs": int(count_macs(args[row], args[row].sequence_length)),
            "perplexity": ours and ours.value,
            "standard_error": ours and ours.standard_error,
            "published_macs": int(count_macs(published, published.sequence_length)),
            "published_perplexity": BY_NAME[row].perplexity,
        })  # fmt: skip
    return points


def draw_figure_2(points: Sequence[dict[str, Any]], path: Path, published: bool) -> None:
    """Both panels. published: the paper's points in place of ours, which are of another size."""
    macs, value = ("published_macs", "published_perplexity") if published else ("macs", "perplexity")
    figure, panels = new_figure(1, 2, figsize=(10, 4.5))
    for axes, (panel, title) in zip(panels, PANELS.items(), strict=True):
        for colour, (series, label) in zip(COLOURS, SERIES.items(), strict=False):
            here = [point for point in points if (point["panel"], point["series"]) == (panel, series)]
            drawn = [point for point in here if point[value] is not None]
            drawn.sort(key=lambda point: point[macs])
            if not drawn:
                continue
            errors = [0.0 if published else point["standard_error"] or 0.0 for point in drawn]
            x, y = [point[macs] / 1e9 for point in drawn], [point[value] for point in drawn]
            axes.errorbar(x, y, errors, marker="o", markersize=4, color=colour, label=label, capsize=2)
            for point, where in zip(drawn, zip(x, y, strict=True), strict=True):
                axes.annotate(f"x{point['repeats']}", where, (3, 4), textcoords="offset points", fontsize=8)
        axes.set_title(title + (", as published" if published else ""))
        axes.set_xlabel("GMACs for a sequence (the paper's convention)")
        axes.set_ylabel("perplexity")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    save(figure, path)


def figure_3() -> dict[str, Any]:
    """{"lengths": [...], <row>: MACs at each length}, of the two rows that the paper compares."""
    rows = [experiment for experiment in EXPERIMENTS if experiment.name.startswith("figure3/")]
    content: dict[str, Any] = {"lengths": list(LENGTHS)}
    for row in rows:
        args = config.parse_args(["--experiment", row.name])
        content[row.name] = [int(count_macs(args, length)) for length in LENGTHS]
    return content


def draw_figure_3(content: dict[str, Any], path: Path) -> None:
    """MACs over the length of the text."""
    figure, axes = new_figure(1, 1, figsize=(6.5, 4.5))
    rows = [name for name in content if name != "lengths"]
    for colour, row in zip(COLOURS, rows, strict=False):
        axes.plot(
            content["lengths"], [macs / 1e12 for macs in content[row]], color=colour, label=row.split("/")[1]
        )
    axes.set_xlabel("tokens of a sequence")
    axes.set_ylabel("TMACs for a sequence (the paper's convention)")
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)
