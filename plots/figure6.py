"""Figure 6: attention of a window's last token in its last repeat, to the keys of every token and repeat.

Shapes: H heads, R passes, T tokens of a window.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plots.inputs import paper_name
from plots.style import add_legend, new_figure, ordered_looks, save_with_numbers


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
    columns = 2 if len(heads) == 4 else min(3, len(heads))
    rows = -(-len(heads) // columns)
    figure, grid = new_figure(
        rows,
        columns,
        figsize=(max(5.0, 1 + 2.5 * columns), 1.2 + 2 * rows),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    n_repeat = about["n_repeat"]
    numbers = {"layer": about["layer"], "attention_by_head_repeat_token": {}}
    positions = np.arange(attention.shape[-1])
    for axes, head in zip(grid.flat, heads, strict=False):
        of_head = attention[about["heads"].index(head)]
        numbers["attention_by_head_repeat_token"][head] = of_head.tolist()
        for repeat, (look, values) in enumerate(zip(ordered_looks(n_repeat), of_head, strict=True), start=1):
            visible = np.where(values > 0, values, np.nan)  # masked keys are not drawn
            axes.plot(positions, visible, label=f"keys of repeat {repeat}", **look)
        axes.set_title(f"head {head}")
        axes.set_yscale("log")
    for index in range(len(heads), grid.size):
        grid.flat[index].set_visible(False)
        grid.flat[index - columns].tick_params(labelbottom=True)
    figure.supxlabel("token position in the window (the query is the last token's)", fontsize="medium")
    figure.supylabel(f"attention, middle layer {about['layer']}", fontsize="medium")
    note = f"{paper_name(about['model'])}, means over {about['windows']:,} windows of text"
    add_legend(figure, grid[0, 0], note=note)
    return save_with_numbers(figure, path, numbers)
