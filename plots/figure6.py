"""Figure 6: attention of a window's last token in its last repeat, to the keys of every token and repeat.

Shapes: H heads, R passes, T tokens of a window.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plots.style import new_figure, save_with_numbers, shades

COLUMNS = 3  # panels in a row


def draw(attention: np.ndarray, about: dict[str, Any], heads: Sequence[int], path: Path) -> str:
    """Draw a panel for each head, a curve for each repeat; returns a line that names the files.

    Args:
        attention: (H, R, T) probabilities, the mean over windows.
        about: content of the .json that get_attention.py writes: heads, layer, n_repeat.
        heads: which of `about["heads"]` to draw.
        path: a .png, .pdf or .svg file.

    Raises:
        Failure: a file cannot be written.
    """
    columns = min(COLUMNS, len(heads))
    rows = -(-len(heads) // columns)
    figure, grid = new_figure(
        rows, columns, figsize=(1 + 3.8 * columns, 0.9 + 2.6 * rows), sharex=True, sharey=True, squeeze=False
    )
    n_repeat = about["n_repeat"]
    numbers = {"layer": about["layer"], "attention_by_head_repeat_token": {}}
    positions = np.arange(attention.shape[-1])
    for axes, head in zip(grid.flat, heads, strict=False):
        of_head = attention[about["heads"].index(head)]
        numbers["attention_by_head_repeat_token"][head] = of_head.tolist()
        for repeat, (colour, values) in enumerate(zip(shades(n_repeat), of_head, strict=True), start=1):
            visible = np.where(values > 0, values, np.nan)  # masked keys are not drawn
            axes.plot(positions, visible, color=colour, linewidth=1, label=f"keys of repeat {repeat}")
        axes.set_title(f"head {head}", fontsize="medium")
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
    for axes in grid.flat[len(heads) :]:
        axes.set_visible(False)
    figure.supxlabel("token position in the window (the query is the last token's)", fontsize="medium")
    figure.supylabel(f"mean attention, middle layer {about['layer']}", fontsize="medium")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", fontsize="small", ncols=min(3 * columns, n_repeat)
    )
    return save_with_numbers(figure, path, numbers)
