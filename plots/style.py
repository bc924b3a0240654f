"""Style of the figures: colours, legends, ticks, axes without a window, and the files written for each."""

import itertools
import math
import os
import textwrap
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from files import write_atomically, write_json

# Figures are written to files; matplotlib refuses to be imported with an unknown name in the environment.
os.environ["MPLBACKEND"] = "Agg"
# Okabe and Ito's palette without its yellow, which is too light for lines: colour-blind readers can tell the
# colours apart. The first four are far apart in grey as well; every series also has a marker and a line style
# of its own.
BLUE, ORANGE, BLACK, VERMILION = "#0072B2", "#E69F00", "#000000", "#D55E00"
SKY, GREEN, PINK = "#56B4E9", "#009E73", "#CC79A7"
COLOURS = (BLUE, ORANGE, BLACK, VERMILION, SKY, GREEN, PINK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")

WIDTH = 8.5  # inches: a page's text width and a third, so that letters are read at 7 points
_SETTINGS = {
    "font.size": 9.0,
    "axes.titlesize": "medium",
    "axes.formatter.useoffset": False,  # 2.4715 rather than 0.0005, with +2.471 in a corner
    "text.parse_math": False,  # a dollar of a label or a token is a dollar
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "legend.fontsize": "small",
    "lines.markersize": 4.0,
    "errorbar.capsize": 2.0,
}


def looks(count: int) -> list[dict[str, Any]]:
    """Colour, marker and line style of `count` series. Colour and marker repeat together after 56."""
    return [
        {
            "color": COLOURS[index % len(COLOURS)],
            "marker": MARKERS[index % len(MARKERS)],
            "linestyle": LINES[index % len(LINES)],
        }
        for index in range(count)
    ]


def ordered_looks(count: int) -> list[dict[str, Any]]:
    """Looks of ordered series such as passes or layers: dark to light, and thick to thin.

    Later curves are drawn over earlier ones, which still show where both are equal.
    """
    from matplotlib import colormaps

    parts = [index / max(1, count - 1) for index in range(count)]
    return [{"color": colormaps["viridis"](0.85 * part), "linewidth": 2.6 - 1.6 * part} for part in parts]


def mac_unit(macs: Iterable[float]) -> tuple[float, str]:
    """The unit, as a number of MACs and by name, in which the largest of these numbers is at least 1."""
    units, largest = ((1e12, "TMACs"), (1e9, "GMACs"), (1e6, "MMACs")), max(macs)
    return next((unit for unit in units if largest >= unit[0]), units[-1])


def new_figure(rows: int, columns: int, **settings: Any) -> tuple[Any, Any]:
    """Returns matplotlib's figure and axes; needs no screen. settings: arguments of `pyplot.subplots`."""
    from matplotlib import pyplot

    pyplot.rcParams.update(_SETTINGS)
    return pyplot.subplots(rows, columns, layout="constrained", **settings)


def add_legend(figure: Any, *axes: Any, note: str = "") -> None:
    """One legend above all panels, in as many columns as fit.

    Args:
        axes: whose series it lists, each label once.
        note: a sentence above it, for example where the intervals come from.
    """
    named = {}
    for one in axes:
        handles, labels = one.get_legend_handles_labels()
        named.update(zip(labels, handles, strict=True))
    letters = int(16 * figure.get_figwidth())  # of a line, at the legend's size of letters
    columns = max(1, letters // (8 + max(map(len, named), default=1)))
    legend = figure.legend(
        named.values(),
        [textwrap.fill(label, letters - 8) for label in named],
        loc="outside upper center",
        ncols=min(columns, max(1, len(named))),
        title=textwrap.fill(note, letters) or None,
        title_fontsize="small",
        frameon=False,
    )
    legend.get_title().set_multialignment("center")


def save(figure: Any, *paths: Path) -> None:
    """Write the figure to each path, in the format of its suffix, and free its memory.

    Raises:
        Failure: a file cannot be written.
    """
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullLocator

    both = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    for axis in both:
        if isinstance(axis.get_major_locator(), LogLocator):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_locator(NullLocator())  # Matplotlib's own overlap
    figure.get_layout_engine().execute(figure)  # sizes of the panels, which have room for so many ticks
    for axis in both:
        _tick(axis)
    for path in paths:
        write_atomically(path, partial(figure.savefig, format=path.suffix[1:], dpi=150))
    pyplot.close(figure)


def _tick(axis: Any) -> None:
    """Few round numbers on a logarithmic axis, however much or little it spans, and none that overlap.

    Matplotlib's own ticks are powers of ten, of which there may be none.
    """
    from matplotlib.ticker import AutoLocator, FixedLocator, LogLocator, MaxNLocator

    locator = axis.get_major_locator()
    if isinstance(locator, AutoLocator) and axis.axis_name == "x":
        for bins in (6, 5, 4, 3, 2):
            boxes = [label.get_window_extent() for label in axis.get_ticklabels() if label.get_text()]
            if all(one.x1 + 3 < following.x0 for one, following in itertools.pairwise(boxes)):
                break
            locator.set_params(nbins=bins)
    if not isinstance(locator, LogLocator):
        return
    low, high = sorted(axis.get_view_interval())
    room = max(2, min(8, axis.get_tick_space()))
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for digits in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [tick for power in powers for digit in digits if low <= (tick := digit * 10.0**power) <= high]
        if len(ticks) <= room:
            break
    ticks = ticks[:: -(-len(ticks) // room) or 1]
    if len(ticks) < 3:
        even = MaxNLocator(min(room, 6), steps=(1, 2, 2.5, 5, 10)).tick_values(low, high)
        ticks = [tick for tick in even if low <= tick <= high]
    axis.set_major_locator(FixedLocator(ticks))


def save_both_formats(figure: Any, stem: Path) -> list[str]:
    """Write <stem>.png and <stem>.pdf; returns their names. Raises Failure if one cannot be written."""
    paths = [stem.with_name(stem.name + suffix) for suffix in (".png", ".pdf")]
    save(figure, *paths)
    return [path.name for path in paths]


def save_with_numbers(figure: Any, path: Path, numbers: Any) -> str:
    """Write the figure as .png, .pdf and in the format of `path`, and its numbers as .json.

    Returns a line for the terminal that names the files. Raises Failure if one cannot be written.
    """
    suffixes = tuple(dict.fromkeys((path.suffix, ".png", ".pdf")))
    save(figure, *map(path.with_suffix, suffixes))
    write_json(path.with_suffix(".json"), numbers)
    return f"written: {path}, and {', '.join((*suffixes[1:], '.json'))} next to it"
