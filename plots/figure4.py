"""Figure 4: perplexity over compute of models that route tokens, over MACs and over measured time.

The same text is hard or easy for every point of a checkpoint, so the intervals of their perplexities are far
wider than those of their differences: the lower panels show the latter, paired by batch.
"""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errors import UsageError
from plots.style import COLOURS, MARKERS, WIDTH, add_legend, mac_unit, new_figure, save_with_numbers

# Series of `evaluation.compute_sweep` -> line style and marker.
STYLES = {"router, top-k": ("-", "o"), "router, threshold": ("--", "s"), "fixed depth": (":", "^")}
PUBLISHED_LENGTH = 256  # tokens of the paper's sequences

# Of a point of the sweep, what the figure's .json repeats.
_NUMBERS = (
    "series", "setting", "length_factors", "macs_per_sequence", "perplexity", "perplexity_interval_95",
    "average_depth", "seconds_per_token",
)  # fmt: skip
_CHANGE = ("change_percent", "change_percent_interval_95")  # from the point of the most compute


def draw(
    sweeps: dict[str, dict[str, Any]], path: Path, published: Sequence[tuple[str, float, float]] = ()
) -> str:
    """Draw the sweeps of one or several checkpoints; returns a line that names the files.

    Args:
        sweeps: label -> content of a ppl_per_mac_<checkpoint>.json.
        path: a .png, .pdf or .svg file.
        published: (label, MACs of a sequence, perplexity) of the paper's models, drawn hollow.

    Raises:
        UsageError: sequence lengths differ, so MACs of a sequence cannot be compared.
        Failure: a file cannot be written.
    """
    length = _common_length(sweeps, published=bool(published))
    points = [point for content in sweeps.values() for point in content["points"]]
    divisor, unit = mac_unit([*map(_macs, points), *(macs for _, macs, _ in published)])
    figure, grid = new_figure(2, 2, figsize=(WIDTH, 7), sharex="col", sharey="row")
    legend, several = grid[0, 0], len(sweeps) > 1
    for index, (label, content) in enumerate(sweeps.items()):
        full = max(content["points"], key=_macs)
        for number, series in enumerate(STYLES):
            entries = sorted((p for p in content["points"] if p["series"] == series), key=_macs)
            # Several checkpoints: a colour for each. One: a colour for each series.
            place, places = (index, len(sweeps)) if several else (number, len(STYLES))
            offset = 3 * (place - (places - 1) / 2)  # bars often stand at the same compute: side by side
            _draw_series(grid, entries, full, divisor, _style(series, place), offset)
        if several:
            legend.plot([], [], color=_style("", index)["color"], linewidth=4, label=label)
    for number, series in enumerate(STYLES):
        legend.plot([], [], label=series, **_style(series, None if several else number))
    for marker, (label, macs, perplexity) in zip(MARKERS[::-1], published, strict=False):
        hollow = {"color": "black", "mfc": "none", "markersize": 8, "linestyle": ""}
        legend.plot(macs / divisor, perplexity, marker, label=f"the paper's {label}", **hollow)
    grid[1, 0].set_xlabel(f"{unit} for a sequence of {length} tokens (the paper's convention)")
    grid[1, 1].set_xlabel("measured microseconds per token")
    grid[0, 0].set_ylabel("perplexity")
    grid[1, 0].set_ylabel("perplexity, change from the most compute, %")
    add_legend(figure, legend, note=_note(sweeps))
    numbers: dict[str, Any] = {"sequence_length": length, "runs": {}}
    for label, content in sweeps.items():
        full = max(content["points"], key=_macs)
        numbers["runs"][label] = [
            {name: entry.get(name) for name in _NUMBERS}
            | dict(zip(_CHANGE, _change(entry, full), strict=True))
            for entry in content["points"]
        ]
    if published:
        names = ("label", "macs_per_sequence", "perplexity")
        numbers["paper"] = [dict(zip(names, anchor, strict=True)) for anchor in published]
    return save_with_numbers(figure, path, numbers)


def _macs(point: dict[str, Any]) -> float:
    return point["macs_per_sequence"]["paper"]


def _style(series: str, colour: int | None) -> dict[str, Any]:
    line, marker = STYLES.get(series, ("-", ""))
    return {
        "color": "gray" if colour is None else COLOURS[colour % len(COLOURS)],
        "linestyle": line,
        "marker": marker,
        "alpha": 0.8,
    }


# A value, and its 95 % interval where it is known.
Estimate = tuple[float, Sequence[float] | None]


def _level(point: dict[str, Any]) -> Estimate:
    return point["perplexity"], point.get("perplexity_interval_95")


def _change(point: dict[str, Any], full: dict[str, Any]) -> Estimate:
    """Change of perplexity from the point `full`, in percent; the interval is paired by batch."""
    change = 100 * (point["perplexity"] / full["perplexity"] - 1)
    losses = [each.get("batch_losses", ())[:-1] for each in (point, full)]  # the last batch may be smaller
    if len(losses[0]) != len(losses[1]) or len(losses[0]) < 2:
        return change, None
    differences = [mine - its for mine, its in zip(*losses, strict=True)]
    margin = 1.96 * statistics.stdev(differences) / math.sqrt(len(differences))
    return change, [100 * ((1 + change / 100) * math.exp(by) - 1) for by in (-margin, margin)]


def _draw_series(
    grid: Any,
    entries: Sequence[dict[str, Any]],
    full: dict[str, Any],
    divisor: float,
    style: dict[str, Any],
    offset: float,
) -> None:
    """Draw one series of a checkpoint into all panels, with bars on the left, moved by `offset` points."""
    from matplotlib.transforms import ScaledTranslation

    macs = [_macs(entry) / divisor for entry in entries]
    times = [1e6 * entry["seconds_per_token"] for entry in entries]
    rows = [[_level(entry) for entry in entries], [_change(entry, full) for entry in entries]]
    for (left, right), row in zip(grid, rows, strict=True):
        values = [value for value, _ in row]
        right.plot(times, values, **style)
        drawn = left.plot(macs, values, **style)
        bars = sorted({(x, *bounds) for x, (_, bounds) in zip(macs, row, strict=True) if bounds})
        if bars:
            drawn.append(
                left.vlines(*zip(*bars, strict=True), color=style["color"], alpha=0.35, linewidth=1.5)
            )
        for artist in drawn:
            artist.set_transform(
                left.transData + ScaledTranslation(offset / 72, 0, left.figure.dpi_scale_trans)
            )


def _note(sweeps: dict[str, dict[str, Any]]) -> str:
    """Where the intervals come from, and the model if it is a single one."""
    points = [point for content in sweeps.values() for point in content["points"]]
    parts = list(sweeps) if len(sweeps) == 1 else []
    if any(_level(point)[1] for point in points):
        counts = sorted({len(point["batch_losses"]) for point in points if "batch_losses" in point})
        batches = " or ".join(f"{count:,}" for count in counts) + " " if counts else ""
        note = f"bars (left): 95 % intervals over {batches}evaluation batches of one checkpoint: above of "
        note += "perplexity, as eval.py's"
        parts.append(note + (", below of its change, paired by batch" if counts else ""))
    return "; ".join(parts)


def _common_length(sweeps: dict[str, dict[str, Any]], published: bool) -> int:
    lengths = {content["about"]["sequence_length"] for content in sweeps.values()}
    if published:
        lengths.add(PUBLISHED_LENGTH)
    if len(lengths) > 1:
        raise UsageError(
            f"sequences of {' and '.join(map(str, sorted(lengths)))} tokens cannot be drawn together: MACs "
            "are those of a sequence"
            + (f"; the published values are of {PUBLISHED_LENGTH} tokens" if published else "")
        )
    return lengths.pop()
