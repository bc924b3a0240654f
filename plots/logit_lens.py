"""Figure of the logit lens: predictions read out at every depth."""

from pathlib import Path
from typing import Any

from plots.style import COLOURS, new_figure, save_both_formats

_TITLES = {
    "loss": "loss, nats per token",
    "accuracy": "accuracy",
    "agreement": "same likeliest token as the full model",
    "divergence": "KL(full model || this depth), nats",
}


def draw(content: dict[str, Any], stem: Path) -> list[str]:
    """Draw loss, accuracy, agreement and divergence over depth; returns the names of the .png and .pdf.

    Args:
        content: the .json of `python -m analysis.logit_lens`.

    Raises:
        Failure: a file cannot be written.
    """
    depths = content["depths"]
    figure, grid = new_figure(2, 2, figsize=(max(8.0, 4 + 0.35 * len(depths)), 6.5), sharex=True)
    places = range(len(depths))
    after_pass = [place for place, name in enumerate(depths) if name.startswith("repeat")]
    for axes, (name, title) in zip(grid.flat, _TITLES.items(), strict=True):
        values = [measured[name] for measured in depths.values()]
        axes.plot(places, values, marker=".", color=COLOURS[5], label="after a block")
        axes.plot(
            after_pass, [values[place] for place in after_pass], "o", color=COLOURS[0], label="after a repeat"
        )
        axes.set_title(title, fontsize="medium")
        axes.grid(alpha=0.3)
    for axes in grid[-1]:
        axes.set_xticks(places, list(depths), rotation=90 if len(depths) > 6 else 0, fontsize="small")
    if len(after_pass) < len(depths):
        grid[0, 0].legend(fontsize="small")
    return save_both_formats(figure, stem)
