"""The picture in README.md: one shared stack of middle blocks, run R times over a growing key/value store.

`python -m plots.looped_middle` writes docs/images/looped-middle.svg (Eq. 3 and Section 4 of the paper).
"""

from pathlib import Path
from typing import Any

from files import write_atomically
from plots.style import BLUE, GREEN, VERMILION, new_figure

OUTPUT = Path(__file__).parents[1] / "docs" / "images" / "looped-middle.svg"
GREY = "#444444"
PASSES = 3


def draw(path: Path = OUTPUT) -> None:
    """Draw the picture. Raises Failure where `path` cannot be written."""
    figure, axes = new_figure(1, 1, figsize=(11, 4.1))
    axes.set_xlim(0, 22)
    axes.set_ylim(0, 8.2)
    axes.axis("off")
    for x, width, text in (
        (0.1, 1.9, "token +\nembedding"),
        (2.6, 2.1, "begin blocks\n(once)"),
        (17.1, 2.0, "end blocks\n(once)"),
        (19.7, 2.2, "norm, head:\nnext token"),
    ):
        _box(axes, x, 4.4, width, 1.5, text, GREY)
    _arrow(axes, (2.0, 5.15), (2.6, 5.15))
    _arrow(axes, (19.1, 5.15), (19.7, 5.15))

    left, width, step = 5.4, 2.6, 4.0
    axes.text(left + step + width / 2, 7.6, "middle blocks: the same weights in every pass", ha="center",
              color=BLUE, fontsize=12)  # fmt: skip
    axes.plot(
        [left, left, left + 2 * step + width, left + 2 * step + width], [6.9, 7.2, 7.2, 6.9], color=BLUE
    )
    for number in range(PASSES):
        x = left + number * step
        _box(axes, x, 4.4, width, 1.5, f"pass {number + 1}", BLUE, filled=True)
        _box(axes, x, 0.7, width, 1.0, f"keys, values\nof pass {number + 1}", VERMILION)
        _arrow(axes, (x - (0.7 if number == 0 else 1.4), 5.15), (x, 5.15))
        _arrow(axes, (x + 0.55, 4.4), (x + 0.55, 1.7), VERMILION)
        for earlier in range(number + 1):
            source = left + earlier * step + width - 0.35
            _arrow(axes, (source, 1.7), (x + 1.0 + 0.45 * earlier, 4.4), VERMILION, style="--")
        if number + 1 < PASSES:
            axes.plot([x + width, x + width + 0.55], [5.15, 5.15], color=GREY)
            axes.plot(x + width + 0.75, 5.15, marker="D", color=GREEN, markersize=11)
            axes.annotate("", (17.4, 5.95), (x + width + 0.75, 5.45), arrowprops={
                "arrowstyle": "->", "color": GREEN, "connectionstyle": "arc3,rad=-0.16", "linestyle": ":",
            })  # fmt: skip
    _arrow(axes, (left + 2 * step + width, 5.15), (17.1, 5.15))
    axes.text(left + step / 2 + 2.0, 0.15, "written once (solid), read by this and all later passes (dashed)",
              color=VERMILION, fontsize=10)  # fmt: skip
    axes.plot(0.5, 2.6, marker="D", color=GREEN, markersize=9)
    note = "router (adaptive models):\nwhich tokens take the\nnext pass; the others\nkeep their state"
    axes.text(0.8, 2.6, note, va="center", color=GREEN, fontsize=10)
    _write(figure, path)


def _box(
    axes: Any, x: float, y: float, width: float, height: float, text: str, colour: str, filled: bool = False
) -> None:
    from matplotlib.patches import FancyBboxPatch

    face = colour if filled else "white"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.2",
                                  facecolor=face, edgecolor=colour, linewidth=1.6))  # fmt: skip
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=10.5,
              color="white" if filled else colour)  # fmt: skip


def _arrow(
    axes: Any, start: tuple[float, float], end: tuple[float, float], colour: str = GREY, style: str = "-"
) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": colour, "linestyle": style})


def _write(figure: Any, path: Path) -> None:
    """The same bytes each time: text stays text, no date, ids from a fixed seed."""
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.name}):
        write_atomically(path, lambda file: figure.savefig(file, format="svg", metadata={"Date": None}))
    pyplot.close(figure)


if __name__ == "__main__":
    draw()
