"""Figure 3: compute over sequence length, counted for the two models that the paper compares."""

from pathlib import Path
from typing import Any

from config.experiments import BY_NAME
from plots.inputs import paper_name
from plots.style import add_legend, looks, new_figure, save_with_numbers


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
    for look, name in zip(looks(len(experiments)), experiments, strict=True):
        flags = BY_NAME[name].flags
        label = f"{paper_name(str(flags['model']))}, {flags['n_layer']} layers x {flags['n_repeat']}"
        look["marker"] = ""  # counted at each length: a curve, not points
        axes.plot(content["lengths"], [macs / 1e12 for macs in content[name]], label=label, **look)
    axes.set_xlabel("tokens of a sequence")
    axes.set_ylabel("TMACs for a sequence (the paper's convention)")
    add_legend(figure, axes)
    return save_with_numbers(figure, path, content)
