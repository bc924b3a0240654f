"""Figure of the logit lens: predictions read out at every depth."""

from pathlib import Path
from typing import Any

from plots.inputs import paper_name
from plots.style import WIDTH, add_legend, looks, new_figure, save_both_formats

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
    figure, grid = new_figure(2, 2, figsize=(max(WIDTH, 3 + 0.3 * len(depths)), 6.5), sharex=True)
    # Predictions from blocks skip the end blocks; a line that joined both kinds would go up and down.
    repeats = [place for place, name in enumerate(depths) if name.startswith("repeat")]
    blocks = [place for place in range(len(depths)) if place not in repeats]
    through = "through the end blocks" if content["through_end_blocks"] else "without the end blocks"
    kinds = {f"after a repeat, {through}": repeats, "after a block, without the end blocks": blocks}
    for axes, (name, title) in zip(grid.flat, _TITLES.items(), strict=True):
        values = [measured[name] for measured in depths.values()]
        for look, (label, places) in zip(looks(len(kinds)), kinds.items(), strict=True):
            if places:
                axes.plot(places, [values[place] for place in places], label=label, **look)
        axes.set_title(title)
    for axes in grid[-1]:
        names = list(depths)
        axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 6 else 0, fontsize="small")
    note = f"{paper_name(content['model'])}, means over {content['tokens']:,} tokens"
    add_legend(figure, grid[0, 0], note=note)
    return save_both_formats(figure, stem)
