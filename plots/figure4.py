"""Figure 4: perplexity over compute of models that route tokens, over MACs and over measured time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from errors import UsageError
from plots.style import colours, new_figure, save_with_numbers

# Series of `evaluation.compute_sweep` -> line style and marker.
STYLES = {"router, top-k": ("-", "o"), "router, threshold": ("--", "s"), "fixed depth": (":", "^")}
PUBLISHED_LENGTH = 256  # tokens of the paper's sequences

# Of a point of the sweep, what the figure's .json repeats.
_NUMBERS = (
    "series", "setting", "length_factors", "macs_per_sequence", "perplexity", "perplexity_interval_95",
    "average_depth", "seconds_per_token",
)  # fmt: skip


def draw(
    sweeps: dict[str, dict[str, Any]], path: Path, published: Sequence[tuple[str, float, float]] = ()
) -> str:
    """Draw the sweeps of one or several checkpoints; returns a line that names the files.

    Args:
        sweeps: label -> content of a ppl_per_mac_<checkpoint>.json.
        path: a .png, .pdf or .svg file.
        published: (label, MACs of a sequence, perplexity) of the paper's models, drawn as stars.

    Raises:
        UsageError: sequence lengths differ, so MACs of a sequence cannot be compared.
        Failure: a file cannot be written.
    """
    length = _common_length(sweeps, published=bool(published))
    figure, (over_macs, over_time) = new_figure(1, 2, figsize=(11, 5))
    for colour, (label, content) in zip(colours(len(sweeps)), sweeps.items(), strict=True):
        over_macs.plot([], [], color=colour, linewidth=4, label=label)
        for series, (line, marker) in STYLES.items():
            entries = [entry for entry in content["points"] if entry["series"] == series]
            entries.sort(key=lambda entry: entry["macs_per_sequence"]["paper"])
            style = {"color": colour, "linestyle": line, "marker": marker, "markersize": 4, "alpha": 0.85}
            perplexities = [entry["perplexity"] for entry in entries]
            over_macs.plot(
                [entry["macs_per_sequence"]["paper"] / 1e9 for entry in entries], perplexities, **style
            )
            over_time.plot([1e6 * entry["seconds_per_token"] for entry in entries], perplexities, **style)
    for series, (line, marker) in STYLES.items():
        over_macs.plot([], [], color="gray", linestyle=line, marker=marker, label=series)
    for colour, (label, macs, perplexity) in zip(colours(len(published)), published, strict=True):
        over_macs.plot(macs / 1e9, perplexity, "*", markersize=11, color=colour, label=f"paper: {label}")
    over_macs.set_xlabel(f"GMACs for a sequence of {length} tokens (the paper's convention)")
    over_time.set_xlabel("measured microseconds per token")
    for axes in (over_macs, over_time):
        axes.set_ylabel("perplexity")
        axes.grid(alpha=0.3)
    figure.legend(
        *over_macs.get_legend_handles_labels(), loc="outside upper center", fontsize="small", ncols=4
    )
    numbers: dict[str, Any] = {"sequence_length": length, "runs": {}}
    for label, content in sweeps.items():
        numbers["runs"][label] = [{name: entry.get(name) for name in _NUMBERS} for entry in content["points"]]
    if published:
        names = ("label", "macs_per_sequence", "perplexity")
        numbers["paper"] = [dict(zip(names, anchor, strict=True)) for anchor in published]
    return save_with_numbers(figure, path, numbers)


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
