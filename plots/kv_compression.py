"""Figures of the KV cache's compressibility: spectra, effective ranks, energy kept by latents, entropy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plots.style import COLOURS, new_figure, save_both_formats, shades

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


def _layers(content: dict[str, Any]) -> list[str]:
    return [entry["layer"] for entry in content["weights"]]


def _spectra(content: dict[str, Any], spectra: dict[str, Sequence[float]]) -> Any:
    """Singular values. Rows: weights; data of the last pass, by layer; data of the central layer, by pass."""
    layers = _layers(content)
    repeats = {layer: _passes(content, layer) for layer in layers}
    inner = [layer for layer in layers if len(repeats[layer]) > 1]
    rows = 3 if inner else 2
    figure, grid = new_figure(rows, 3, figsize=(11, 3.1 * rows), sharey="row")
    for column, name in enumerate(_SHOWN):
        weight = {"keys": "$W_K$", "values": "$W_V$", "joint": "$[W_K; W_V]$"}[name]
        grid[0, column].set_title(weight)
        grid[1, column].set_title(f"{_SHOWN[name]} on text" + (", last repeat" if inner else ""))
        for colour, layer in zip(shades(len(layers)), layers, strict=True):
            _spectrum(grid[0, column], spectra[f"weights/{layer}/{name}"], color=colour, label=layer)
            _spectrum(grid[1, column], spectra[f"data/{layer}/{repeats[layer][-1]}/{name}"], color=colour)
        if inner:
            layer = inner[len(inner) // 2]
            grid[2, column].set_title(f"{_SHOWN[name]} on text, {layer}")
            for colour, repeat in zip(shades(len(repeats[layer])), repeats[layer], strict=True):
                label = f"repeat {repeat}"
                _spectrum(
                    grid[2, column], spectra[f"data/{layer}/{repeat}/{name}"], color=colour, label=label
                )
            _spectrum(grid[2, column], spectra[f"data/{layer}/all/{name}"], color="k", ls="--", label="all")
    for axes in grid.flat:
        axes.set_yscale("log")
        axes.set_ylim(1e-4, 1.5)
        axes.grid(alpha=0.3)
    for axes in grid[:, 0]:
        axes.set_ylabel("singular value / largest")
    for axes in grid[-1]:
        axes.set_xlabel("index of the singular value")
    columns = 1 + (len(layers) - 1) // 12
    grid[0, 2].legend(fontsize=6, ncols=columns, loc="upper left", bbox_to_anchor=(1, 1))
    if inner:
        grid[2, 2].legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _spectrum(axes: Any, values: Sequence[float], **style: Any) -> None:
    relative = np.asarray(values) / values[0]
    relative = relative[relative > 1e-7]  # below is rounding error of matrices without full rank
    axes.plot(np.arange(1, len(relative) + 1), relative, linewidth=1, **style)


def _passes(content: dict[str, Any], layer: str) -> list[int]:
    return [entry["repeat"] for entry in content["attention"] if entry["layer"] == layer]


def _ranks(content: dict[str, Any]) -> Any:
    """Effective ranks (second moment) over layers, a line for each pass.

    Columns: keys, values, both. Rows: shares of the energy.
    """
    layers, n_repeat = _layers(content), content["n_repeat"]
    levels = list(content["weights"][0]["keys"])
    figure, grid = new_figure(len(levels), 3, figsize=(11, 7.5), sharex=True, sharey="row")
    places = range(len(layers))
    passes = [*range(1, n_repeat + 1), *(["all"] if n_repeat > 1 else [])]
    by_place = {(entry["layer"], entry["repeat"]): entry for entry in content["data"]}
    for row, level in enumerate(levels):
        for column, name in enumerate(_SHOWN):
            axes = grid[row, column]
            for colour, repeat in zip([*shades(n_repeat), "black"], passes, strict=False):
                ranks = [
                    by_place[layer, repeat][name]["second_moment"][level]
                    if (layer, repeat) in by_place
                    else np.nan
                    for layer in layers
                ]
                label = "all repeats" if repeat == "all" else f"repeat {repeat}"
                style = {"linestyle": "--"} if repeat == "all" else {"marker": "."}
                axes.plot(places, ranks, color=colour, label=label, **style)
            weights = [entry[name][level] for entry in content["weights"]]
            axes.plot(places, weights, color="gray", linestyle=":", label="the weight matrix")
            axes.axhline(content["n_embd"], color="gray", linewidth=0.5)
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
            if not row:
                axes.set_title(_SHOWN[name])
        grid[row, 0].set_ylabel(f"rank for {level} % of energy")
    _name_layers(grid[-1], layers)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", fontsize="small", ncols=min(8, len(labels)))
    return figure


def _name_layers(row: Sequence[Any], layers: Sequence[str]) -> None:
    for axes in row:
        axes.set_xticks(range(len(layers)), layers, rotation=90, fontsize=min(9.0, 9.0 * 30 / len(layers)))


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
    figure, axes = new_figure(1, 1, figsize=(8, 5))
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
    for colour, layer in zip(shades(len(layers)), by_series["shared"].T, strict=True):
        axes.plot(ranks, layer, color=colour, alpha=0.35, linewidth=1)
    styles = {"shared_keys": "--", "shared_values": ":"}
    for index, (name, rows) in enumerate(by_series.items()):
        colour = COLOURS[1] if name.startswith("shared") else COLOURS[index]
        axes.plot(
            ranks, rows.mean(1), styles.get(name, "-"), marker="o", ms=4, color=colour, label=series[name]
        )
    axes.plot(
        [], [], color="gray", alpha=0.5, linewidth=1, label="single layers, shared latent (dark: first layer)"
    )
    axes.set_xscale("log")
    axes.set_xticks(ranks, [f"{r}\n{100 * r / (2 * content['n_embd']):.3g} %" for r in ranks])
    axes.minorticks_off()
    axes.set_xlabel(
        f"rank of the latent, per layer and repeat; % of the full cache, {full:,.0f} bytes per token"
    )
    axes.set_ylabel("energy kept (thick: mean over layers)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
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
        axes.set_title(title, fontsize="medium")
        figure.colorbar(image, ax=axes)
    grid[0].set_yticks(range(len(layers)), layers, fontsize="small")
    return figure
