"""What can be checked of a drawn figure: text that overlaps or is cut off."""

from itertools import combinations
from typing import Any


def unreadable(figure: Any) -> list[str]:
    """Pairs of an axis' tick labels that overlap, and texts that reach out of the figure; [] for none."""
    figure.draw_without_rendering()
    page = figure.bbox.padded(1.0)
    found = []
    for axes in figure.axes:
        if not axes.get_visible():
            continue
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            shown = [
                (label.get_text(), label.get_window_extent())
                for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
                if low <= tick.get_loc() <= high
                for label in (tick.label1, tick.label2)
                if label.get_visible() and label.get_text() and label.get_rotation() in (0.0, 90.0)
            ]
            for (text, box), (other, its) in combinations(shown, 2):
                if box.overlaps(its):
                    found.append(f"{text} overlaps {other}")
            texts = [*shown, (axis.label.get_text(), axis.label.get_window_extent())]
            for text, box in texts:
                if text and not (page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0):
                    found.append(f"{text} is cut off")
    for legend in figure.legends:
        box = legend.get_window_extent()
        if not (page.x0 <= box.x0 and box.x1 <= page.x1 and box.y1 <= page.y1):
            found.append("the legend is cut off")
        found += ["the legend covers a panel" for axes in figure.axes if box.overlaps(axes.bbox)]
    return found


def texts(figure: Any) -> str:
    """The legends of a figure, with the sentences above them, a line for each."""
    found = [text for legend in figure.legends for text in (legend.get_title(), *legend.get_texts())]
    return "\n".join(" ".join(text.get_text().split()) for text in found)


def bars(axes: Any) -> list[list[float]]:
    """Lower and upper end of each vertical bar."""
    from matplotlib.collections import LineCollection

    found = [one for one in axes.collections if isinstance(one, LineCollection)]
    return [sorted(float(y) for _, y in segment) for one in found for segment in one.get_segments()]
