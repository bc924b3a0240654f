"""Figure 2: perplexity over compute of Standard, Block Universal and CoTFormer, at 12 and 24 layers.

Standard is an ordinary Transformer. MACs are of one sequence, in the paper's convention (`models.macs`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plots.style import WIDTH, add_legend, looks, mac_unit, new_figure, save_with_numbers

PANELS = {"12": "12 layers", "24": "24 layers"}
SERIES = {"standard": "Standard", "but": "Block Universal", "cotformer": "CoTFormer"}
OURS, PAPER = "", "published_"  # prefixes of a point's keys
_BELOW = "cotformer"  # the series whose labels are below: its points are close to Block Universal's


def draw(points: Sequence[dict[str, Any]], path: Path, published: bool, same_size: bool = False) -> str:
    """Draw both panels; returns a line that names the files.

    Args:
        points: what `reproduction.figures.figure_2` returns.
        path: a .png, .pdf or .svg file.
        published: with the paper's points, hollow and dashed.
        same_size: our models have the published size and text. Otherwise the paper's points get panels of
            their own, below ours.

    Raises:
        Failure: a file cannot be written.
    """
    trained = any(point["perplexity"] is not None for point in points)
    rows = [[prefix] for prefix, drawn in ((OURS, trained), (PAPER, published)) if drawn]
    if same_size and len(rows) == 2:
        rows = [[OURS, PAPER]]
    figure, grid = new_figure(len(rows), 2, figsize=(WIDTH, 0.8 + 3.3 * len(rows)), squeeze=False)
    for panels, prefixes in zip(grid, rows, strict=True):
        whose = "the paper's" if prefixes == [PAPER] and trained else ""
        divisor, unit = mac_unit(point[f"{prefix}macs"] for point in points for prefix in prefixes)
        for axes, (panel, title) in zip(panels, PANELS.items(), strict=True):
            here = [point for point in points if point["panel"] == panel]
            for prefix in prefixes:
                _draw_series(axes, here, prefix, divisor)
            if not axes.has_data():
                axes.text(0.5, 0.5, "none trained", transform=axes.transAxes, ha="center")
                axes.set(xticks=[], yticks=[])
            axes.margins(0.12)
            axes.set_title(f"{title}, {whose}" if whose else title)
            axes.set_xlabel(f"{unit} for a sequence (the paper's convention)")
        panels[0].set_ylabel("perplexity")
    add_legend(figure, *grid.flat, note=_note(points, rows))
    return save_with_numbers(figure, path, list(points))


def _note(points: Sequence[dict[str, Any]], rows: Sequence[Sequence[str]]) -> str:
    """Where the intervals come from."""
    sources = []
    shown = {prefix for prefixes in rows for prefix in prefixes}
    if OURS in shown:
        seeds = sorted({point["seeds"] for point in points if point["perplexity"] is not None})
        counted = " to ".join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))
        sources.append("ours of one seed, without bars" if seeds == [1] else f"ours over {counted} seeds")
    if PAPER in shown:
        sources.append("the paper's as published")
    return f"bars: standard error of the mean, {'; '.join(sources)}. x2: two repeats"


def _draw_series(axes: Any, points: Sequence[dict[str, Any]], prefix: str, divisor: float) -> None:
    for look, (series, label) in zip(looks(len(SERIES)), SERIES.items(), strict=True):
        drawn = sorted(
            (
                point[f"{prefix}macs"] / divisor,
                point[f"{prefix}perplexity"],
                point[f"{prefix}error"],
                point["repeats"],
            )
            for point in points
            if point["series"] == series and point[f"{prefix}perplexity"] is not None
        )
        if not drawn:
            continue
        x, y, errors, repeats = zip(*drawn, strict=True)
        look["linestyle"] = "-"
        if prefix == PAPER:
            look |= {"linestyle": "--", "mfc": "white"}
            label += ", the paper's"
        errors = [error or 0.0 for error in errors]
        axes.errorbar(x, y, errors, label=label, **look)
        above = series != _BELOW
        for count, place, value, error in zip(repeats, x, y, errors, strict=True):
            end = value + error if above else value - error
            axes.annotate(
                f"x{count}", (place, end), (0, 3 if above else -3), textcoords="offset points",
                fontsize="small", ha="center", va="bottom" if above else "top",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
            )  # fmt: skip
