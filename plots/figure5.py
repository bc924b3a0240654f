"""Figure 5: histograms of a router's scores."""

from pathlib import Path
from typing import Any

import numpy as np

from plots.style import add_legend, looks, new_figure, save_with_numbers


def draw(scores: dict[str, np.ndarray], path: Path, title: str) -> str:
    """Draw one histogram for each label into one panel; returns a line that names the files.

    Args:
        scores: label -> (N,) scores between 0 and 1, one for each token.
        path: a .png, .pdf or .svg file.
        title: of the horizontal axis.

    Raises:
        Failure: a file cannot be written.
    """
    figure, axes = new_figure(1, 1, figsize=(7, 4.5))
    edges = np.linspace(0.0, 1.0, 51)
    numbers: dict[str, Any] = {"of": title, "bin_edges": edges.tolist(), "runs": {}}
    for look, (label, values) in zip(looks(len(scores)), scores.items(), strict=True):
        fractions = np.histogram(values, edges)[0] / len(values)
        average = float(values.mean(dtype=np.float64))
        numbers["runs"][label] = {"tokens": len(values), "mean": average, "fractions": fractions.tolist()}
        style = {"color": look["color"], "linestyle": look["linestyle"]}
        axes.stairs(fractions, edges, fill=True, alpha=0.2, color=look["color"])
        text = f"{label}: mean {average:.4f} of {len(values):,} tokens"
        axes.stairs(fractions, edges, linewidth=1.5, label=text, **style)
    axes.set_yscale("log")
    axes.set_xlabel(title)
    axes.set_ylabel("fraction of tokens")
    add_legend(figure, axes)
    return save_with_numbers(figure, path, numbers)
