"""Scaling curves of the benchmarks: time and memory of a training step over length, repeats and batch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errors import Failure
from plots.style import COLOURS, new_figure, save

STYLES = {"none": "-", "repeat": "--", "block": ":"}  # by --activation_checkpointing


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw a column for each axis, a line for each model and kind of activation checkpointing.

    Args:
        results: of the benchmarks; those of the part `scaling` are drawn.
        path: a .png, .pdf or .svg file.

    Raises:
        Failure: no result is of that part, or the file cannot be written.
    """
    points = [result for result in results if result["part"] == "scaling" and result["value"]]
    if not points:
        raise Failure("there are no points of the part `scaling` to draw")
    names = list(dict.fromkeys(point["details"]["at"]["axis"] for point in points))
    figure, panels = new_figure(2, len(names), figsize=(4.2 * len(names), 7), squeeze=False, sharex="col")
    lines = list(dict.fromkeys(map(_line_of, points)))
    models = list(dict.fromkeys(model for model, _ in lines))
    for column, axis in enumerate(names):
        for model, recompute in lines:
            one = [
                point
                for point in points
                if _line_of(point) == (model, recompute) and point["details"]["at"]["axis"] == axis
            ]
            x = [point["details"]["at"]["point"] for point in one]
            style = {"color": COLOURS[models.index(model)], "linestyle": STYLES[recompute], "marker": "."}
            label = f"{model}, recompute {recompute}"
            panels[0][column].plot(x, [point["value"]["median"] for point in one], label=label, **style)
            panels[1][column].plot(x, [point["memory_mib"] for point in one], **style)
        panels[1][column].set_xlabel(axis)
        for panel in (panels[0][column], panels[1][column]):
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("seconds per training step")
    panels[1][0].set_ylabel("peak memory, MiB")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8)
    save(figure, path)


def _line_of(point: dict[str, Any]) -> tuple[str, str]:
    return point["details"]["at"]["model"], point["details"]["at"]["recompute"]
