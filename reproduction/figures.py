"""Figures 2 and 3: perplexity over compute of the rows of Table 1, and compute over the length of the text.

MACs are those of one sequence, in the paper's convention (`models.macs`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import config
from config.experiments import BY_NAME, EXPERIMENTS
from models import count_macs
from plots.style import COLOURS, new_figure, save_with_numbers
from reproduction.plan import Run
from reproduction.report import gather
from reproduction.statistics import mean

PANELS = {"12": "12 layers", "24": "24 layers"}  # of Figure 2
PREFIXES = {"ours": "", "paper": "published_"}  # of the keys of a point
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
    """A dict for each row: panel, series, repeats, MACs, perplexity and its standard error over seeds,
    ours and as published (at the published size); None where there is nothing."""
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
            "error": ours and ours.standard_error,
            "published_macs": int(count_macs(published, published.sequence_length)),
            "published_perplexity": BY_NAME[row].perplexity,
            "published_error": BY_NAME[row].error,
        })  # fmt: skip
    return points


def draw_figure_2(
    points: Sequence[dict[str, Any]], path: Path, published: bool, same_size: bool = False
) -> str:
    """Both panels; returns what was written.

    published: with the paper's points, hollow and dashed. They are of the published size and text: unless
    ours are too (same_size), they have axes of their own, above and on the right.
    """
    figure, panels = new_figure(1, 2, figsize=(11, 5))
    trained = any(point["perplexity"] is not None for point in points)
    for axes, (panel, title) in zip(panels, PANELS.items(), strict=True):
        here = [point for point in points if point["panel"] == panel]
        _draw_series(axes, here, PREFIXES["ours"], {"marker": "o"})
        if published:
            theirs = axes.twinx().twiny() if trained and not same_size else axes
            _draw_series(theirs, here, PREFIXES["paper"], {"marker": "o", "mfc": "none", "linestyle": "--"})
            if theirs is not axes:
                theirs.set_xlabel("the paper's GMACs", color="gray")
                figure.axes[-2].set_ylabel("the paper's perplexity", color="gray")
        axes.set_title(title)
        axes.set_xlabel("GMACs for a sequence (the paper's convention)")
        axes.set_ylabel("perplexity")
        axes.grid(alpha=0.3)
    handles = [pair for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    named = {label: handle for handle, label in handles}
    figure.legend(named.values(), named, loc="outside upper center", fontsize="small", ncols=3)
    return save_with_numbers(figure, path, list(points))


def _draw_series(axes: Any, points: Sequence[dict[str, Any]], prefix: str, style: dict[str, Any]) -> None:
    for colour, (series, label) in zip(COLOURS, SERIES.items(), strict=False):
        drawn = [
            (
                point[f"{prefix}macs"] / 1e9,
                point[f"{prefix}perplexity"],
                point[f"{prefix}error"],
                point["repeats"],
            )
            for point in points
            if point["series"] == series and point[f"{prefix}perplexity"] is not None
        ]
        if not drawn:
            continue
        x, y, errors, repeats = zip(*sorted(drawn), strict=True)
        label = f"{label}, the paper's" if prefix else label
        errors = [error or 0.0 for error in errors]
        axes.errorbar(x, y, errors, markersize=4, color=colour, label=label, capsize=2, **style)
        for count, where in zip(repeats, zip(x, y, strict=True), strict=True):
            axes.annotate(f"x{count}", where, (3, 4), textcoords="offset points", fontsize=8)


def figure_3() -> dict[str, Any]:
    """{"lengths": [...], <row>: MACs at each length}, of the two rows that the paper compares."""
    rows = [experiment for experiment in EXPERIMENTS if experiment.name.startswith("figure3/")]
    content: dict[str, Any] = {"lengths": list(LENGTHS)}
    for row in rows:
        args = config.parse_args(["--experiment", row.name])
        content[row.name] = [int(count_macs(args, length)) for length in LENGTHS]
    return content


def draw_figure_3(content: dict[str, Any], path: Path) -> str:
    """MACs over the length of the text; returns what was written."""
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
    return save_with_numbers(figure, path, content)
