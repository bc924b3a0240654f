"""Figure 3: compute over sequence length, counted for the two models that the paper compares."""

from pathlib import Path
from typing import Any

from plots.style import COLOURS, new_figure, save_with_numbers


def draw(content: dict[str, Any], path: Path) -> str:
    """Draw MACs over sequence length; returns a line that names the files.

    Args:
        content: {"lengths": sequence lengths, <experiment>: MACs of a sequence of each length}.
        path: a .png, .pdf or .svg file.

    Raises:
        Failure: a file cannot be written.
    """
    figure, axes = new_figure(1, 1, figsize=(6.5, 4.5))
    experiments = [name for name in content if name != "lengths"]
    for colour, name in zip(COLOURS, experiments, strict=False):
        axes.plot(
            content["lengths"],
            [macs / 1e12 for macs in content[name]],
            color=colour,
            label=name.split("/")[1],
        )
    axes.set_xlabel("tokens of a sequence")
    axes.set_ylabel("TMACs for a sequence (the paper's convention)")
    axes.grid(alpha=0.3)
    axes.legend()
    return save_with_numbers(figure, path, content)
