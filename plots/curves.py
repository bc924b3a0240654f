"""Training curves: loss, perplexity, learning rate and gradient norm over steps."""

from pathlib import Path
from typing import Any

from plots.style import colours, new_figure, save


def draw(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw the curves of one or several runs.

    Args:
        runs: label -> lines of metrics.jsonl.
        path: a .png, .pdf or .svg file.

    Raises:
        Failure: the file cannot be written.
    """
    figure, ((loss, perplexity), (rate, norm)) = new_figure(2, 2, figsize=(11, 7), sharex=True)
    for colour, (label, lines) in zip(colours(len(runs)), runs.items(), strict=True):
        _curve(loss, lines, "train_loss", color=colour, alpha=0.45, linewidth=1)
        _curve(loss, lines, "val_loss", color=colour, marker=".", label=label)
        _curve(perplexity, lines, "val_perplexity", color=colour, marker=".", label=label)
        _curve(rate, lines, "lr", color=colour, label=label)
        _curve(norm, lines, "mean_grad_norm", color=colour, label=label)
        _curve(norm, lines, "max_grad_norm", color=colour, alpha=0.45, linewidth=1, linestyle=":")
    loss.set_ylabel("loss, nats per token (faint: training)")
    perplexity.set_ylabel("validation perplexity")
    perplexity.set_yscale("log")
    rate.set_ylabel("learning rate")
    norm.set_ylabel("gradient norm: mean (dotted: largest)")
    norm.set_yscale("log")
    for axis in (perplexity.yaxis, norm.yaxis):  # 6 rather than 6 x 10^0
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}")
    for axes in (rate, norm):
        axes.set_xlabel("step")
    for axes in (loss, perplexity, rate, norm):
        axes.grid(alpha=0.3)
    figure.legend(*loss.get_legend_handles_labels(), loc="outside upper center", fontsize="small")
    save(figure, path)


def _curve(axes: Any, lines: list[dict[str, Any]], name: str, **style: Any) -> None:
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), **style)
