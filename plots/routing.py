"""Figure 4 (perplexity over compute) and Figure 5 (router scores)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import config
from config.experiments import find_experiment
from errors import UsageError
from evaluation.compute_sweep import SERIES
from models import count_macs
from plots.style import COLOURS, new_figure, save_with_numbers

_STYLES = dict(zip(SERIES, (("-", "o"), ("--", "s"), (":", "^")), strict=True))


# What goes into the figure's own numbers, of a point of the sweep.
_NUMBERS = (
    "series", "setting", "length_factors", "macs_per_sequence", "perplexity", "perplexity_interval_95",
    "average_depth", "seconds_per_token",
)  # fmt: skip

PUBLISHED = {
    "section5/adm-60k": "ADM, full compute, 60k steps",
    "section5/ln-cotformer-60k": "LN-CoTFormer, 60k steps",
    "table2/ln-cotformer": "LN-CoTFormer, 40k steps",
    "table1/standard-24": "Standard, 24 layers, 40k steps",
    "table1/standard-48": "Standard, 48 layers, 40k steps",
}


def published_anchors() -> list[tuple[str, float, float]]:
    """(label, MACs of a sequence of 256, perplexity) of the paper on OpenWebText2 (Table 2 and Section 5)."""
    anchors = []
    for row, label in PUBLISHED.items():
        args = config.parse_args(["--experiment", row])
        anchors.append((label, count_macs(args, args.sequence_length), find_experiment(row).perplexity))
    return anchors


def draw_fronts(sweeps: dict[str, dict[str, Any]], path: Path, published: bool = False) -> str:
    """Perplexity over MACs and over measured time of one or several checkpoints.

    sweeps: label -> what get_ppl_per_mac.py wrote. published: with the paper's values, whose corpus is
    OpenWebText2. Returns what was written. Raises UsageError when the sequences differ in length, for MACs
    are those of a sequence.
    """
    lengths = {content["about"]["sequence_length"] for content in sweeps.values()}
    if published:
        lengths.add(256)
    if len(lengths) > 1:
        raise UsageError(
            f"sequences of {' and '.join(map(str, sorted(lengths)))} tokens: MACs are those of a sequence, "
            "so they cannot be drawn together" + ("; the published values are of 256" if published else "")
        )
    figure, (over_macs, over_time) = new_figure(1, 2, figsize=(11, 5))
    for colour, (label, content) in zip(_colours(len(sweeps)), sweeps.items(), strict=True):
        over_macs.plot([], [], color=colour, linewidth=4, label=label)
        for series, (line, marker) in _STYLES.items():
            entries = [entry for entry in content["points"] if entry["series"] == series]
            entries.sort(key=lambda entry: entry["macs_per_sequence"]["paper"])
            style = {"color": colour, "linestyle": line, "marker": marker, "markersize": 4, "alpha": 0.85}
            perplexities = [entry["perplexity"] for entry in entries]
            over_macs.plot(
                [entry["macs_per_sequence"]["paper"] / 1e9 for entry in entries], perplexities, **style
            )
            over_time.plot([1e6 * entry["seconds_per_token"] for entry in entries], perplexities, **style)
    for series, (line, marker) in _STYLES.items():
        over_macs.plot([], [], color="gray", linestyle=line, marker=marker, label=series)
    if published:
        for colour, (label, macs, value) in zip(_colours(len(PUBLISHED)), published_anchors(), strict=True):
            over_macs.plot(macs / 1e9, value, "*", markersize=11, color=colour, label=f"paper: {label}")
    (length,) = lengths
    over_macs.set_xlabel(f"GMACs for a sequence of {length} tokens (the paper's convention)")
    over_time.set_xlabel("measured microseconds a token")
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
        numbers["paper"] = [dict(zip(names, anchor, strict=True)) for anchor in published_anchors()]
    return save_with_numbers(figure, path, numbers)


def draw_scores(scores: dict[str, np.ndarray], path: Path, title: str) -> str:
    """Histograms of one router's scores, laid over one another. scores: label -> (N,).

    Returns what was written.
    """
    figure, axes = new_figure(1, 1, figsize=(7, 4.5))
    edges = np.linspace(0.0, 1.0, 51)
    numbers: dict[str, Any] = {"of": title, "bin_edges": edges.tolist(), "runs": {}}
    for colour, (label, values) in zip(_colours(len(scores)), scores.items(), strict=True):
        fractions = np.histogram(values, edges)[0] / len(values)
        average = float(values.mean(dtype=np.float64))
        numbers["runs"][label] = {"tokens": len(values), "mean": average, "fractions": fractions.tolist()}
        named = f"{label} (mean {average:.4f})"
        axes.stairs(fractions, edges, fill=True, alpha=0.35, color=colour)
        axes.stairs(fractions, edges, color=colour, label=named)
    axes.set_yscale("log")
    axes.set_xlabel(title)
    axes.set_ylabel("fraction of tokens")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return save_with_numbers(figure, path, numbers)


def _colours(count: int) -> Sequence[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]
