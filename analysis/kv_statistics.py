"""KV compression: spectra, ranks and attention entropy of keys and values, and how much of them latents keep.

Shapes: B batch, T tokens, H heads, D head size, C = n_embd, R passes; z = [k; v], (2C,): key and value of a
token in one layer and pass, all heads, the key before rotation, as the latent of an MLA (DeepSeek-V2) holds
it.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from analysis import statistics
from analysis.attention_maps import CHUNK, entropies
from analysis.hooks import Attended, Layer, forward_passes, layers_of, watch_attention
from analysis.statistics import GroupedMeans, Moments
from distributed import Precision
from errors import UsageError
from models.config import ModelConfig
from models.language_model import LanguageModel

STACKED_LIMIT = 2**32  # bytes of stacked moments that --stacked auto allows
ALL = "all"  # the passes of a layer pooled: the data of a latent that they share
STACKED = "stacked"  # [z_1; ...; z_R] of a token: the data of one latent for all its passes
Place = tuple[Layer, Any]  # a layer and a pass, ALL or STACKED
Spectra = dict[str, list[float]]  # singular values by name
Progress = Callable[[list], Iterable]  # shows a progress bar


def stacked_bytes(config: ModelConfig) -> int:
    """Memory of the moments of [z_1; ...; z_R], all middle layers together."""
    return 0 if config.repeats == 1 else 8 * config.layers[1] * (2 * config.n_embd * config.repeats) ** 2


class KVStatistics:
    """Moments of keys and values and entropy of attention, by layer and pass; as large for any text.

    Attributes:
        stacked: by middle layer, the moments of [z_1; ...; z_R], the token's entries of all passes, if asked
            for; the moments of single passes are then blocks of these.
        entropy: by layer and pass, with a group for each head: mean entropy of attention, and mean of entropy
            over log(number of visible keys), of queries that see more than one key.
        tokens: tokens of text so far.
    """

    def __init__(self, config: ModelConfig, stacked: bool, chunk: int = CHUNK) -> None:
        self._config, self._chunk = config, chunk
        self._stack = stacked and config.repeats > 1
        self._moments: dict[tuple[Layer, int], Moments] = {}
        self.stacked: dict[Layer, Moments] = {}
        self.entropy: dict[tuple[Layer, int], GroupedMeans] = {}
        self._waiting: dict[Layer, list[Tensor]] = {}  # z of this batch's passes so far
        self.tokens = 0

    def see(self, call: Attended) -> None:
        """Add one attention call, for `watch_attention`."""
        z = torch.cat([call.keys.flatten(-2), call.values.flatten(-2)], -1).flatten(0, -2)
        if self._stack and call.layer.part == "middle":
            self._add_stacked(call, z)
        else:
            self._moments_at(call.layer, call.repeat, z).add(z)
        self._add_entropy(call)

    def moments(self, layer: Layer, repeat: Any) -> Moments:
        """Moments of z (2C,) in a pass; for ALL, of all passes pooled; for STACKED, of [z_1; ...; z_R]."""
        if repeat == STACKED:
            return self.stacked[layer]
        if repeat == ALL:
            return Moments.pooled([self.moments(*place) for place in self.places if place[0] == layer])
        if layer in self.stacked:
            width = 2 * self._config.n_embd
            return self.stacked[layer].part(slice((repeat - 1) * width, repeat * width))
        return self._moments[layer, repeat]

    @property
    def places(self) -> list[tuple[Layer, int]]:
        """All layers and passes, in the order of the forward pass if `measure` is done."""
        return list(self.entropy)

    @property
    def pooled_places(self) -> list[Place]:
        """ALL and STACKED of each layer with several passes."""
        several = [layer for layer, repeat in self.places if repeat == 2]
        return [(layer, ALL) for layer in several] + [(layer, STACKED) for layer in self.stacked]

    def numbers_held(self) -> int:
        """The size of the statistics in numbers."""
        moments = [*self._moments.values(), *self.stacked.values()]
        sizes = [part.sum.numel() + part.products.numel() for part in moments]
        return sum(sizes) + sum(2 * means.sums.numel() for means in self.entropy.values())

    def _moments_at(self, layer: Layer, repeat: int, z: Tensor) -> Moments:
        if (layer, repeat) not in self._moments:
            self._moments[layer, repeat] = Moments(z.shape[1], z.device)
        return self._moments[layer, repeat]

    def _add_stacked(self, call: Attended, z: Tensor) -> None:
        grid = call.key_tokens.grid
        if len(z) != grid.batch * grid.length:
            raise UsageError(
                "keys and values of all passes can be stacked only where every token takes every pass; "
                "give --stacked false, or no capacities"
            )
        waiting = [*self._waiting.get(call.layer, []), z] if call.repeat > 1 else [z]
        self._waiting[call.layer] = waiting
        if call.repeat == self._config.repeats:
            del self._waiting[call.layer]
            if call.layer not in self.stacked:
                self.stacked[call.layer] = Moments(sum(part.shape[1] for part in waiting), z.device)
            self.stacked[call.layer].add(torch.cat(waiting, -1))

    def _add_entropy(self, call: Attended) -> None:
        place = call.layer, call.repeat
        nats, counts = entropies(call.queries, call.seen, self._chunk)
        normalised = torch.where(counts > 1, nats / counts.log(), torch.nan)
        both = torch.stack((nats, normalised), -1)
        both = call.tokens.unpad(both).flatten(0, -3)  # (n, H, 2): without padding
        heads = torch.arange(both.shape[1], device=both.device).expand(both.shape[:2])
        if place not in self.entropy:
            self.entropy[place] = GroupedMeans(both.shape[1], 2)
        self.entropy[place].add(heads.flatten(), both.flatten(0, 1))


def measure(
    model: LanguageModel,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    precision: Precision | None,
    stacked: bool = True,
    **routing: Any,
) -> KVStatistics:
    """Statistics of one forward pass over all batches; the arguments are those of `hooks.forward_passes`.

    stacked: also those of [z_1; ...; z_R]. Raises UsageError if it is asked for and tokens leave early,
    Failure if there is no batch.
    """
    found = KVStatistics(model.config, stacked)
    with watch_attention(model, found.see):
        for inputs, _, _ in forward_passes(model, batches, precision, **routing):
            found.tokens += inputs.numel()
    order = {layer: index for index, layer in enumerate(layers_of(model))}
    found.entropy = dict(sorted(found.entropy.items(), key=lambda item: (order[item[0][0]], item[0][1])))
    return found


def default_ranks(width: int) -> list[int]:
    """C/16, C/8, C/4, C/2 and 3C/4, rounded down, without 0."""
    return sorted({width * part // 16 for part in (1, 2, 4, 8, 12)} - {0})


def check_ranks(ranks: Sequence[int], width: int) -> list[int]:
    """The ranks in ascending order. Raises UsageError for one that no latent of keys and values can have."""
    for rank in ranks:
        if not 1 <= rank <= width:
            raise UsageError(
                f"--ranks {rank}: keys and values of a token are made of n_embd={width} numbers, so a latent "
                f"has 1 to {width}"
            )
    return sorted(set(ranks))


def weight_spectra(model: LanguageModel) -> tuple[list[dict[str, Any]], Spectra]:
    """Effective ranks and spectra of W_K, W_V and [W_K; W_V], (2C, C), by layer; ln_1's scale is left out."""
    entries, spectra = [], {}
    for layer, block in layers_of(model).items():
        _, keys, values = block.attn.c_attn.weight.chunk(3)
        entry: dict[str, Any] = {"layer": layer.name}
        for name, matrix in {"keys": keys, "values": values, "joint": torch.cat((keys, values))}.items():
            energies = statistics.energies_of_weight(matrix)
            entry[name] = statistics.effective_ranks(energies)
            spectra[f"weights/{layer.name}/{name}"] = energies.sqrt().tolist()
        entries.append(entry)
    return entries, spectra


def data_spectra(found: KVStatistics, progress: Progress = iter) -> tuple[list[dict[str, Any]], Spectra]:
    """Effective ranks and spectra of keys, values and both, by layer and pass, and for ALL and STACKED."""
    entries, spectra = [], {}
    for layer, repeat in progress([*found.places, *found.pooled_places]):
        moments = found.moments(layer, repeat)
        half = len(moments.sum) // 2
        parts = {"keys": moments.part(slice(0, half)), "values": moments.part(slice(half, None))}
        if repeat == STACKED:
            parts = {}
        entry: dict[str, Any] = {"layer": layer.name, "repeat": repeat, "tokens": moments.count}
        for name, part in (parts | {"joint": moments}).items():
            energies = statistics.energies_of_moment(part.second_moment)
            entry[name] = {
                "second_moment": statistics.effective_ranks(energies),
                "covariance": statistics.effective_ranks(statistics.energies_of_moment(part.covariance)),
                "energy": float(energies.sum()),
            }
            spectra[f"data/{layer.name}/{repeat}/{name}"] = energies.sqrt().tolist()
        entries.append(entry)
    return entries, spectra


def attention_entropies(found: KVStatistics) -> list[dict[str, Any]]:
    """By layer and pass: means over queries and heads, and means by head, in nats."""
    entries = []
    for (layer, repeat), by_head in found.entropy.items():
        nats, normalised = (None if math.isnan(x) else x for x in by_head.means.mean(0).tolist())
        entries.append(
            {
                "layer": layer.name,
                "repeat": repeat,
                "entropy": nats,
                "normalised": normalised,
                "entropy_by_head": by_head.means[:, 0].tolist(),
            }
        )
    return entries


def latents(
    found: KVStatistics, ranks: Sequence[int], bytes_per_number: int, progress: Progress = iter
) -> dict[str, Any]:
    """Size of latents of `ranks` numbers for each layer and pass of a token, and the energy E|z|^2 they keep.

    own: each pass of a layer has its own projection. shared: the passes of a layer share a projection; also
    given for keys and values alone. stacked: one latent of (passes * rank) numbers, as many bytes, for all
    passes of a token. The full cache holds 2C numbers for each layer and pass of a token.
    """
    entries_per_token = sum(found.moments(*place).count for place in found.places) / found.tokens
    width = len(found.moments(*found.places[0]).sum)
    halves = (slice(0, width), slice(0, width // 2), slice(width // 2, width))
    kept: list[dict[str, Any]] = [{} for _ in ranks]
    for layer in progress(list(dict.fromkeys(layer for layer, _ in found.places))):
        repeats = [repeat for other, repeat in found.places if other == layer]
        own = [statistics.energies_of_moment(found.moments(layer, r).second_moment) for r in repeats]
        shared = statistics.energy_kept_of_parts(found.moments(layer, ALL).second_moment, ranks, halves)
        stack = None
        if layer in found.stacked:
            stack = statistics.energies_of_moment(found.stacked[layer].second_moment)
        for by_layer, rank, (joint, keys, values) in zip(kept, ranks, shared, strict=True):
            by_layer[layer.name] = {
                "own": [statistics.energy_kept(energies, rank) for energies in own],
                "shared": joint,
                "shared_keys": keys,
                "shared_values": values,
            }
            if stack is not None:
                by_layer[layer.name]["stacked"] = statistics.energy_kept(stack, rank * len(repeats))
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
