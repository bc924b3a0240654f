"""Figures: what they share, and that of a run's curves."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from errors import UsageError
from files import write_atomically, write_json
from models.variants import VARIANTS

FORMATS = (".png", ".pdf", ".svg")
FIGURE_HELP = "a .png, .pdf or .svg file; .png, .pdf and the numbers as .json are written beside it"

# Colours that stay apart for colour-blind readers (Okabe and Ito), each run one of them.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")


def check_labels(runs: Sequence[Path], labels: Sequence[str] | None, output: Path) -> list[str]:
    """One name for each run, made from its folders if none are given. Raises UsageError where impossible."""
    if output.suffix not in FORMATS:
        raise UsageError(f"--output {output}: the suffix must be one of {', '.join(FORMATS)}")
    if labels is None:
        aliases = {variant.name: variant.alias for variant in VARIANTS}
        labels = ["/".join(aliases.get(part, part) for part in run.resolve().parts[-2:]) for run in runs]
    if len(labels) != len(runs) or len(set(labels)) != len(labels):
        raise UsageError(f"{len(runs)} runs need as many different labels; given: {', '.join(labels)}")
    return list(labels)


def check_numbers(output: Path, inputs: Sequence[Path]) -> None:
    """Raises UsageError where a figure's numbers would take the place of the file that it is drawn from."""
    for path in inputs:
        if path.with_suffix(".json").resolve() == output.with_suffix(".json").resolve():
            raise UsageError(
                f"--output {output}: the figure's numbers would go to {output.with_suffix('.json').name}, "
                "which belongs to what it is drawn from; give another name"
            )


def new_figure(rows: int, columns: int, **settings: Any) -> tuple[Any, Any]:
    """matplotlib's figure and axes, without a window: this also runs where there is no screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, layout="constrained", **settings)


def save(figure: Any, *paths: Path) -> None:
    """Write the figure, each file whole; its suffix decides the format. The figure's memory is given back.

    Raises Failure where one cannot be written.
    """
    from matplotlib import pyplot

    for path in paths:
        write_atomically(path, partial(figure.savefig, format=path.suffix[1:], dpi=150))
    pyplot.close(figure)


def save_with_numbers(figure: Any, path: Path, numbers: Any) -> str:
    """Write a figure of the paper as .png and .pdf, and in the path's own format, and its numbers as .json.

    Returns what to tell of it. Raises Failure where one of them cannot be written.
    """
    suffixes = tuple(dict.fromkeys((path.suffix, ".png", ".pdf")))
    save(figure, *map(path.with_suffix, suffixes))
    write_json(path.with_suffix(".json"), numbers)
    return f"written: {path}, and {', '.join((*suffixes[1:], '.json'))} beside it"


def draw_curves(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Loss, perplexity, learning rate and gradient norm over steps.

    runs: label -> lines of metrics.jsonl. path: its suffix (.png, .pdf, .svg) decides the format.
    Raises Failure where it cannot be written.
    """
    figure, ((loss, perplexity), (rate, norm)) = new_figure(2, 2, figsize=(11, 7), sharex=True)
    for index, (label, lines) in enumerate(runs.items()):
        colour = COLOURS[index % len(COLOURS)]
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
