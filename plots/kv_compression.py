"""Figures of the KV cache's compressibility: spectra, effective ranks, energy kept by latents, entropy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plots.inputs import paper_name
from plots.style import COLOURS, MARKERS, WIDTH, add_legend, new_figure, ordered_looks, save_both_formats

_SHOWN = {"keys": "keys", "values": "values", "joint": "[keys; values]"}


def draw(content: dict[str, Any], spectra: dict[str, Sequence[float]], stem: Path) -> list[str]:
    """Draw four figures as .png and .pdf; returns the names of the files.

    <stem>_spectra: singular values of weights and of data. <stem>_ranks: effective ranks. <stem>_energy_kept:
    energy that latents of each rank keep. <stem>_entropy: attention entropy.

    Args:
        content: the .json of `python -m analysis.kv_compression`.
        spectra: the .npz, singular values by name.

    Raises:
        Failure: a file cannot be written.
    """
    figures = {
        "spectra": _spectra(content, spectra),
        "ranks": _ranks(content),
        "energy_kept": _kept(content),
        "entropy": _entropy(content),
    }
    names = []
    for name, figure in figures.items():
        names += save_both_formats(figure, stem.with_name(f"{stem.name}_{name}"))
    return names


def _of(content: dict[str, Any]) -> str:
    return f"{paper_name(content['model'])}, {content['tokens']:,} tokens of text"


def _layers(content: dict[str, Any]) -> list[str]:
    return [entry["layer"] for entry in content["weights"]]


def _spectra(content: dict[str, Any], spectra: dict[str, Sequence[float]]) -> Any:
    """Singular values. Rows: weights; data of the last pass, by layer; data of the central layer, by pass."""
    layers = _layers(content)
    repeats = {layer: _passes(content, layer) for layer in layers}
    inner = [layer for layer in layers if len(repeats[layer]) > 1]
    rows = 3 if inner else 2
    figure, grid = new_figure(rows, 3, figsize=(WIDTH, 0.6 + 2.6 * rows), sharey="row")
    for column, name in enumerate(_SHOWN):
        weight = {"keys": "$W_K$", "values": "$W_V$", "joint": "$[W_K; W_V]$"}[name]
        grid[0, column].set_title(weight, parse_math=True)
        grid[1, column].set_title(f"{_SHOWN[name]} on text" + (", last repeat" if inner else ""))
        for look, layer in zip(ordered_looks(len(layers)), layers, strict=True):
            _spectrum(grid[0, column], spectra[f"weights/{layer}/{name}"], label=layer, **look)
            _spectrum(grid[1, column], spectra[f"data/{layer}/{repeats[layer][-1]}/{name}"], **look)
        if inner:
            layer = inner[len(inner) // 2]
            grid[2, column].set_title(f"{_SHOWN[name]} on text, {layer}")
            for look, repeat in zip(ordered_looks(len(repeats[layer])), repeats[layer], strict=True):
                label = f"repeat {repeat}"
                _spectrum(grid[2, column], spectra[f"data/{layer}/{repeat}/{name}"], label=label, **look)
            _spectrum(grid[2, column], spectra[f"data/{layer}/all/{name}"], color="k", ls="--", label="all")
    for axes in grid.flat:
        axes.set_yscale("log")
        axes.set_ylim(1e-4, 1.5)
    for axes in grid[:, 0]:
        axes.set_ylabel("singular value / largest")
    for axes in grid[-1]:
        axes.set_xlabel("index of the singular value")
    if inner:
        grid[2, 2].legend()
    add_legend(figure, grid[0, 0], note=_of(content))
    return figure


def _spectrum(axes: Any, values: Sequence[float], **style: Any) -> None:
    relative = np.asarray(values) / values[0]
    relative = relative[relative > 1e-7]  # below is rounding error of matrices without full rank
    axes.plot(np.arange(1, len(relative) + 1), relative, **style)


def _passes(content: dict[str, Any], layer: str) -> list[int]:
    return [entry["repeat"] for entry in content["attention"] if entry["layer"] == layer]


def _ranks(content: dict[str, Any]) -> Any:
    """Effective ranks (second moment) over layers, a line for each pass.

    Columns: keys, values, both. Rows: shares of the energy.
    """
    layers, n_repeat = _layers(content), content["n_repeat"]
    levels = list(content["weights"][0]["keys"])
    figure, grid = new_figure(len(levels), 3, figsize=(WIDTH, 7), sharex=True, sharey="row")
    places = range(len(layers))
    passes = [*range(1, n_repeat + 1), *(["all"] if n_repeat > 1 else [])]
    by_place = {(entry["layer"], entry["repeat"]): entry for entry in content["data"]}
    for row, level in enumerate(levels):
        for column, name in enumerate(_SHOWN):
            axes = grid[row, column]
            looks = [{**look, "marker": "."} for look in ordered_looks(n_repeat)]
            looks.append({"color": "black", "linewidth": 1, "linestyle": "--"})
            for look, repeat in zip(looks, passes, strict=False):
                ranks = [
                    by_place[layer, repeat][name]["second_moment"][level]
                    if (layer, repeat) in by_place
                    else np.nan
                    for layer in layers
                ]
                label = "all repeats" if repeat == "all" else f"repeat {repeat}"
                axes.plot(places, ranks, label=label, **look)
            weights = [entry[name][level] for entry in content["weights"]]
            axes.plot(places, weights, color="gray", linestyle=":", label="the weight matrix")
            axes.axhline(content["n_embd"], color="gray", linewidth=0.8, label="n_embd")
            axes.set_ylim(bottom=0)
            if not row:
                axes.set_title(_SHOWN[name])
        grid[row, 0].set_ylabel(f"rank for {level} % of energy")
    _name_layers(grid[-1], layers)
    add_legend(figure, grid[0, 0], note=_of(content))
    return figure


def _name_layers(row: Sequence[Any], layers: Sequence[str]) -> None:
    every = 1 + (len(layers) - 1) // 16  # as many as have room
    for axes in row:
        axes.set_xticks(range(0, len(layers), every), layers[::every], rotation=90, fontsize="small")


def _kept(content: dict[str, Any]) -> Any:
    """Energy that latents keep over their rank: means over layers; of the shared latent, each layer too."""
    latents = content["latents"]
    full = latents["full_cache_bytes_per_token"]
    ranks = [entry["rank"] for entry in latents["ranks"]]
    series = {
        "own": "a projection for each repeat",
        "shared": "one shared by the repeats of a layer",
        "shared_keys": "... its keys",
        "shared_values": "... its values",
        "stacked": "one latent for all repeats, of the same total size",
    }
    figure, axes = new_figure(1, 1, figsize=(WIDTH, 5.5))
    layers = list(latents["ranks"][0]["energy_kept"])
    by_series: dict[str, np.ndarray] = {}  # (ranks, layers)
    for name in series:
        rows = [
            [np.mean(of_layer[name]) for of_layer in entry["energy_kept"].values() if name in of_layer]
            for entry in latents["ranks"]
        ]
        if rows[0]:
            by_series[name] = np.array(rows)
    if content["n_repeat"] == 1:
        del by_series["own"]
        series["shared"] = "keys and values"
    for look, layer in zip(ordered_looks(len(layers)), by_series["shared"].T, strict=True):
        axes.plot(ranks, layer, color=look["color"], alpha=0.35, linewidth=1)
    styles = {"shared_keys": "--", "shared_values": ":"}
    for index, (name, rows) in enumerate(by_series.items()):
        look = {
            "color": COLOURS[1] if name.startswith("shared") else COLOURS[index],
            "marker": MARKERS[index],
            "linestyle": styles.get(name, "-"),
        }
        axes.plot(ranks, rows.mean(1), label=series[name], **look)
    axes.plot(
        [], [], color="gray", alpha=0.5, linewidth=1, label="single layers, shared latent (dark: first layer)"
    )
    axes.set_xscale("log")
    named = [ranks[0]]  # those with room for their names
    for rank in ranks[1:]:
        if np.log(rank / named[-1]) > 0.08 * np.log(ranks[-1] / ranks[0]):
            named.append(rank)
    axes.set_xticks(named, [f"{r}\n{100 * r / (2 * content['n_embd']):.3g} %" for r in named])
    axes.minorticks_off()
    axes.set_xlabel(
        f"rank of the latent, per layer and repeat; % of the full cache, {full:,.0f} bytes per token"
    )
    axes.set_ylabel("energy kept (thick: mean over layers)")
    add_legend(figure, axes, note=_of(content))
    return figure


def _entropy(content: dict[str, Any]) -> Any:
    """Attention entropy as heat maps, layers by repeats."""
    layers, n_repeat = _layers(content), content["n_repeat"]
    titles = {"entropy": "attention entropy, nats", "normalised": "entropy / log(visible keys)"}
    size = (3.2 + 1.3 * n_repeat, 1.5 + 0.32 * len(layers))
    figure, grid = new_figure(1, 2, figsize=(max(6.5, size[0]), max(3.0, size[1])), sharey=True)
    for axes, (name, title) in zip(grid, titles.items(), strict=True):
        values = np.full((len(layers), n_repeat), np.nan)
        for entry in content["attention"]:
            if entry[name] is not None:
                values[layers.index(entry["layer"]), entry["repeat"] - 1] = entry[name]
        limits = {"vmin": 0, "vmax": 1 if name == "normalised" else None}
        image = axes.imshow(values, aspect="auto", cmap="viridis", **limits)
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                ink = "white" if image.norm(value) < 0.6 else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=7)
        axes.set_xticks(range(n_repeat), range(1, n_repeat + 1))
        axes.set_xlabel("repeat")
        axes.set_title(title)
        axes.grid(visible=False)
        figure.colorbar(image, ax=axes)
    grid[0].set_yticks(range(len(layers)), layers, fontsize="small")
    figure.suptitle(f"{_of(content)}: means over heads and tokens", fontsize="small")
    return figure
