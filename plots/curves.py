"""Training curves: loss, perplexity, learning rate and gradient norm over steps."""

import math
from pathlib import Path
from typing import Any

from plots.style import WIDTH, add_legend, looks, new_figure, save

NOTE = "bars: 95 % interval over the batches of an evaluation, of this run alone"
SHOWN = 10  # markers and bars of a curve


def draw(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw the curves of one or several runs.

    Args:
        runs: label -> lines of metrics.jsonl.
        path: a .png, .pdf or .svg file.

    Raises:
        Failure: the file cannot be written.
    """
    figure, ((loss, perplexity), (rate, norm)) = new_figure(2, 2, figsize=(WIDTH, 6), sharex=True)
    for index, (look, (label, lines)) in enumerate(zip(looks(len(runs)), runs.items(), strict=True)):
        look["start"] = index  # markers of curves that coincide alternate
        faint: dict[str, Any] = look | {"alpha": 0.4, "linewidth": 1, "marker": ""}
        _curve(loss, lines, "train_loss", **faint)
        _curve(norm, lines, "max_grad_norm", **faint)
        _curve(loss, lines, "val_loss", math.log, **look)
        _curve(perplexity, lines, "val_perplexity", float, label=label, **look)
        _curve(rate, lines, "lr", **look)
        _curve(norm, lines, "mean_grad_norm", **look)
    loss.set_ylabel("validation loss, nats per token\n(faint: training loss)")
    perplexity.set_ylabel("validation perplexity")
    perplexity.set_yscale("log")
    rate.set_ylabel("learning rate")
    norm.set_ylabel("gradient norm, mean of logged steps\n(faint: largest)")
    norm.set_yscale("log")
    for axes in (rate, norm):
        axes.set_xlabel("step")
        axes.xaxis.get_major_locator().set_params(integer=True)
    estimated = any(line.get("val_perplexity_interval") for lines in runs.values() for line in lines)
    add_legend(figure, perplexity, note=NOTE if estimated else "")
    save(figure, path)


def _curve(
    axes: Any, lines: list[dict[str, Any]], name: str, scale: Any = None, start: int = 0, **style: Any
) -> None:
    """A measure over steps; with `scale`, which maps perplexity to it, its interval too.

    start: which point has the first marker.
    """
    measured = [line for line in lines if line.get(name) is not None]
    if not measured:
        return
    steps, values = [line["step"] for line in measured], [line[name] for line in measured]
    every = -(-len(measured) // SHOWN)
    marked = slice(start % every, None, every)
    if len(measured) == 1:
        style["marker"] = style["marker"] or "."
    axes.plot(steps, values, markevery=marked, **style)
    if scale is None:
        return
    bounds = [
        (line["step"], scale(interval[0]), scale(interval[1]))
        for line in measured[marked]
        if (interval := line.get("val_perplexity_interval")) and math.isfinite(interval[1])
    ]
    if bounds:
        axes.vlines(*zip(*bounds, strict=True), color=style["color"], alpha=0.5, linewidth=2)
