"""Figure 2: perplexity over compute of Standard, Block Universal and CoTFormer, at 12 and 24 layers.

Standard is an ordinary Transformer. MACs are of one sequence, in the paper's convention (`models.macs`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plots.style import COLOURS, new_figure, save_with_numbers

PANELS = {"12": "12 layers", "24": "24 layers"}
SERIES = {"standard": "Standard", "but": "Block Universal", "cotformer": "CoTFormer"}
OURS, PAPER = "", "published_"  # prefixes of a point's keys


def draw(points: Sequence[dict[str, Any]], path: Path, published: bool, same_size: bool = False) -> str:
    """Draw both panels; returns a line that names the files.

    Args:
        points: what `reproduction.figures.figure_2` returns.
        path: a .png, .pdf or .svg file.
        published: with the paper's points, hollow and dashed.
        same_size: our models have the published size and text. Otherwise the paper's points get axes of their
            own, at the top and on the right.

    Raises:
        Failure: a file cannot be written.
    """
    figure, panels = new_figure(1, 2, figsize=(11, 5))
    trained = any(point["perplexity"] is not None for point in points)
    for axes, (panel, title) in zip(panels, PANELS.items(), strict=True):
        here = [point for point in points if point["panel"] == panel]
        _draw_series(axes, here, OURS, {"marker": "o"})
        if published:
            theirs = axes.twinx().twiny() if trained and not same_size else axes
            _draw_series(theirs, here, PAPER, {"marker": "o", "mfc": "none", "linestyle": "--"})
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
        drawn = sorted(
            (
                point[f"{prefix}macs"] / 1e9,
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
        label = f"{label}, the paper's" if prefix else label
        errors = [error or 0.0 for error in errors]
        axes.errorbar(x, y, errors, markersize=4, color=colour, label=label, capsize=2, **style)
        for count, where in zip(repeats, zip(x, y, strict=True), strict=True):
            axes.annotate(f"x{count}", where, (3, 4), textcoords="offset points", fontsize=8)
