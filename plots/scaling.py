"""Scaling curves of the benchmarks: time and memory of a training step over length, repeats and batch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errors import Failure
from plots.inputs import paper_name
from plots.style import WIDTH, add_legend, looks, new_figure, save

STYLES = {"none": "-", "repeat": "--", "block": ":"}  # by --activation_checkpointing
TITLES = {"sequence_length": "tokens of a sequence", "batch": "sequences of a batch", "n_repeat": "repeats"}


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
    figure, panels = new_figure(2, len(names), figsize=(WIDTH, 6), squeeze=False, sharex="col")
    lines = list(dict.fromkeys(map(_line_of, points)))
    models = list(dict.fromkeys(model for model, _ in lines))
    model_looks = dict(zip(models, looks(len(models)), strict=True))
    for column, axis in enumerate(names):
        for model, recompute in lines:
            one = [
                point
                for point in points
                if _line_of(point) == (model, recompute) and point["details"]["at"]["axis"] == axis
            ]
            x = [point["details"]["at"]["point"] for point in one]
            look = model_looks[model] | {"linestyle": STYLES[recompute]}
            checkpointing = "" if recompute == "none" else f", recomputing each {recompute}"
            label = f"{paper_name(model)}{checkpointing}"
            panels[0][column].plot(x, [point["value"]["median"] for point in one], label=label, **look)
            low, high = ([point["value"][end] for point in one] for end in ("low", "high"))
            panels[0][column].vlines(x, low, high, color=look["color"], alpha=0.5, linewidth=3)
            panels[1][column].plot(x, [point["memory_mib"] for point in one], **look)
        measured = sorted({
            point["details"]["at"]["point"] for point in points if point["details"]["at"]["axis"] == axis
        })  # fmt: skip
        for panel in (panels[0][column], panels[1][column]):
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xticks(measured, [f"{value:,}" for value in measured])
            panel.minorticks_off()
        panels[1][column].set_xlabel(TITLES.get(axis, axis))
    panels[0][0].set_ylabel("seconds per training step")
    panels[1][0].set_ylabel("peak memory, MiB")
    add_legend(
        figure, *panels[0], note="bars: quartiles of repeated steps (of fewer than four: the extremes)"
    )
    save(figure, path)


def _line_of(point: dict[str, Any]) -> tuple[str, str]:
    return point["details"]["at"]["model"], point["details"]["at"]["recompute"]
