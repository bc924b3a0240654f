"""From the moments of keys and values to ranks, and to what an MLA latent would keep: plain data for a .json.

Shapes: C = n_embd, R passes; z = [k; v] (2C,) as in `analysis.cache_statistics`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from analysis import spectra
from analysis.cache_statistics import CacheStatistics
from analysis.hooks import layers_of
from analysis.streaming import Moments
from errors import UsageError
from models.language_model import LanguageModel

Found = tuple[list[dict[str, Any]], dict[str, list[float]]]  # entries, and spectra by name
ALL = "all"  # the passes of a layer pooled: what a latent shared by them is to hold
STACKED = "stacked"  # the passes of a token side by side: what one latent for all of them is to hold


def default_ranks(width: int) -> list[int]:
    """C/16, C/8, C/4, C/2, 3C/4, those that are whole."""
    return sorted({width * part // 16 for part in (1, 2, 4, 8, 12)} - {0})


def check_ranks(ranks: Sequence[int], width: int) -> list[int]:
    """Ascending. Raises UsageError for one that is no rank of a latent of keys and values."""
    for rank in ranks:
        if not 1 <= rank <= width:
            raise UsageError(
                f"--ranks {rank}: keys and values of a token are made of n_embd={width} numbers, so a latent "
                f"has 1 to {width}"
            )
    return sorted(set(ranks))


def weight_spectra(model: LanguageModel) -> Found:
    """Of W_K, W_V (C, C) and [W_K; W_V] (2C, C) of each layer, as they are: ln_1's scale is not in them."""
    entries, values = [], {}
    for layer, block in layers_of(model).items():
        _, keys, both_values = block.attn.c_attn.weight.chunk(3)
        entry: dict[str, Any] = {"layer": layer.name}
        matrices = {"keys": keys, "values": both_values, "joint": torch.cat((keys, both_values))}
        for name, matrix in matrices.items():
            energies = spectra.energies_of_weight(matrix)
            entry[name] = spectra.effective_ranks(energies)
            values[f"weights/{layer.name}/{name}"] = energies.sqrt().tolist()
        entries.append(entry)
    return entries, values


def data_spectra(statistics: CacheStatistics, watch: Callable[[list], Iterable] = iter) -> Found:
    """Of keys, values and both together: by layer and pass, over all passes, and stacked where it was asked.

    "all" and "stacked" stand for layers of more than one pass only. watch: shows how far it is.
    """
    entries, values = [], {}
    for layer, repeat in watch(_all_places(statistics)):
        moments = _moments(statistics, layer, repeat)
        half = len(moments.total) // 2
        parts = {"keys": moments.part(slice(0, half)), "values": moments.part(slice(half, None))}
        if repeat == STACKED:
            parts = {}
        entry: dict[str, Any] = {"layer": layer.name, "repeat": repeat, "tokens": moments.count}
        for name, part in (parts | {"joint": moments}).items():
            energies = spectra.energies_of_moment(part.second_moment)
            entry[name] = {
                "second_moment": spectra.effective_ranks(energies),
                "covariance": spectra.effective_ranks(spectra.energies_of_moment(part.covariance)),
                "energy": float(energies.sum()),
            }
            values[f"data/{layer.name}/{repeat}/{name}"] = energies.sqrt().tolist()
        entries.append(entry)
    return entries, values


def attention_entropies(statistics: CacheStatistics) -> list[dict[str, Any]]:
    """By layer and pass: means over queries and heads, and by head."""
    entries = []
    for layer, repeat in statistics.places:
        by_head = statistics.entropy[layer, repeat].means
        nats, normalised = (None if math.isnan(x) else x for x in by_head.mean(0).tolist())
        entries.append(
            {
                "layer": layer.name,
                "repeat": repeat,
                "entropy": nats,
                "normalised": normalised,
                "entropy_by_head": by_head[:, 0].tolist(),
            }
        )
    return entries


def latents(
    statistics: CacheStatistics,
    ranks: Sequence[int],
    bytes_per_number: int,
    watch: Callable[[list], Iterable] = iter,
) -> dict[str, Any]:
    """What latents of `ranks` numbers, one for each layer and pass of a token, keep of E|z|^2; their size.

    own: each pass of a layer has its own best projection. shared: the passes of a layer have one, with what
    it keeps of keys and of values alone. stacked: one latent of (passes * rank) numbers holds the token's
    entries of all passes: as many bytes. The full cache holds 2C numbers for each layer and pass of a token.
    """
    entries_per_token = sum(statistics.moments(*place).count for place in statistics.places)
    entries_per_token /= statistics.tokens
    width = len(statistics.moments(*statistics.places[0]).total)
    kept: list[dict[str, Any]] = [{} for _ in ranks]
    for layer in watch(list(dict.fromkeys(layer for layer, _ in statistics.places))):
        repeats = [repeat for other, repeat in statistics.places if other == layer]
        own = [spectra.energies_of_moment(statistics.moments(layer, r).second_moment) for r in repeats]
        pooled = Moments.pooled([statistics.moments(layer, repeat) for repeat in repeats]).second_moment
        halves = (slice(0, width), slice(0, width // 2), slice(width // 2, width))
        shared = spectra.kept_of_parts(pooled, ranks, halves)
        stack = statistics.stacked.get(layer)
        stack = None if stack is None else spectra.energies_of_moment(stack.second_moment)
        for place, rank in enumerate(ranks):
            together, keys, values = shared[place]
            kept[place][layer.name] = {
                "own": [spectra.kept(energies, rank) for energies in own],
                "shared": together,
                "shared_keys": keys,
                "shared_values": values,
            }
            if stack is not None:
                kept[place][layer.name]["stacked"] = spectra.kept(stack, rank * len(repeats))
    return {
        "bytes_per_number": bytes_per_number,
        "cache_entries_per_token": entries_per_token,
        "full_cache_bytes_per_token": entries_per_token * width * bytes_per_number,
        "ranks": [
            {
                "rank": rank,
                "bytes_per_token": entries_per_token * rank * bytes_per_number,
                "fraction_of_full_cache": rank / width,
                "energy_kept": by_layer,
            }
            for rank, by_layer in zip(ranks, kept, strict=True)
        ],
    }


def _all_places(statistics: CacheStatistics) -> list[tuple[Any, Any]]:
    """Layers with their passes, and then with what is made of several."""
    found: list[tuple[Any, Any]] = list(statistics.places)
    several = [layer for layer, repeat in statistics.places if repeat == 2]
    return found + [(layer, ALL) for layer in several] + [(layer, STACKED) for layer in statistics.stacked]


def _moments(statistics: CacheStatistics, layer: Any, repeat: Any) -> Moments:
    if repeat == STACKED:
        return statistics.stacked[layer]
    if repeat == ALL:
        return Moments.pooled(
            [statistics.moments(*place) for place in statistics.places if place[0] == layer]
        )
    return statistics.moments(layer, repeat)
