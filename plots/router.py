"""Figures of router behaviour: depth and scores by kind of token, and the deepest token types."""

from pathlib import Path
from typing import Any

from plots.inputs import paper_name
from plots.style import COLOURS, WIDTH, add_legend, new_figure, ordered_looks, save_both_formats

_SECTIONS = {
    "by_frequency": "count of the token in training text",
    "by_position": "position in the window",
    "by_loss": "loss of the token, nats",
}


def draw(content: dict[str, Any], stem: Path) -> list[str]:
    """Draw <stem>: depth and scores by bins; and <stem>_types: the deepest and the least deep token types.

    Args:
        content: the .json of `python -m analysis.router`.

    Returns:
        The names of the .png and .pdf files.

    Raises:
        Failure: a file cannot be written.
    """
    drawn = save_both_formats(_by_bins(content), stem)
    if content["deepest"]:
        drawn += save_both_formats(_types(content), stem.with_name(f"{stem.name}_types"))
    return drawn


def _scores(content: dict[str, Any]) -> list[str]:
    return [f"score_{router}" for router in range(1, content["n_repeat"])]


def _by_bins(content: dict[str, Any]) -> Any:
    """Columns: bins of frequency, position and loss. Rows: depth, unless all tokens share one; scores."""
    rows = ["scores"] if content["alike_in_depth"] else ["depth", "scores"]
    figure, grid = new_figure(
        len(rows), 3, figsize=(WIDTH, 1.8 + 2.3 * len(rows)), sharey="row", sharex="col", squeeze=False
    )
    for column, (section, title) in enumerate(_SECTIONS.items()):
        entries = content[section]
        places = range(len(entries))
        if "depth" in rows:
            depths = [entry["depth"] for entry in entries]
            grid[0, column].plot(places, depths, marker="o", ms=4, color=COLOURS[0])
            grid[0, column].axhline(content["mean"]["depth"], color="gray", linewidth=0.8, linestyle="--")
        axes = grid[-1, column]
        names = _scores(content)
        for look, (router, name) in zip(ordered_looks(len(names)), enumerate(names, 1), strict=True):
            values = [float("nan") if entry[name] is None else entry[name] for entry in entries]
            axes.plot(places, values, marker=".", label=f"score of router {router}", **look)
        lowest = [entry["lowest_score"] for entry in entries]
        axes.plot(places, lowest, color="black", linestyle=":", label="lowest score of a token")
        every = 1 + (len(entries) - 1) // 20
        labels = [entry["label"] for entry in entries]
        axes.set_xticks(places[::every], labels[::every], rotation=60, ha="right", fontsize="x-small")
        axes.set_xlabel(title, fontsize="small")
        axes.set_yscale("log")
    if "depth" in rows:
        grid[0, 0].set_ylabel("mean passes taken\n(dashed: all tokens)")
    grid[-1, 0].set_ylabel("mean score of tokens\nthat the router scored")
    add_legend(figure, grid[-1, 0], note=_note(content))
    return figure


def _types(content: dict[str, Any]) -> Any:
    """The quantity that token types are ranked by, for both ends of the ranking."""
    ranked = content["types_ranked_by"]
    ends = {"deepest": "deepest", "least_deep": "least deep"}
    if ranked != "depth":
        ends = {"deepest": "highest scores", "least_deep": "lowest scores"}
    height = 1.2 + 0.22 * len(content["deepest"])
    figure, grid = new_figure(1, 2, figsize=(WIDTH, max(2.8, height + 0.3)), sharex=True)
    for axes, colour, (section, title) in zip(grid, COLOURS, ends.items(), strict=False):
        entries = content[section]
        places = range(len(entries))
        axes.plot([entry[ranked] for entry in entries], places, "o", color=colour)
        axes.axvline(content["mean"][ranked], color="gray", linewidth=0.8, linestyle="--")
        if ranked != "depth":
            axes.set_xscale("log")
        axes.set_yticks(
            places,
            [f"{entry['label']}  {entry['tokens']:,}" for entry in entries],
            fontsize="small",
        )
        axes.invert_yaxis()
        axes.set_title(f"{title}: token, occurrences")
        what = "passes taken" if ranked == "depth" else "lowest score of a token"
        axes.set_xlabel(f"{what}, mean (dashed: all tokens)")
    figure.suptitle(_note(content), fontsize="small")
    return figure


def _note(content: dict[str, Any]) -> str:
    return f"{paper_name(content['model'])}, means over {content['mean']['tokens']:,} tokens of text"
