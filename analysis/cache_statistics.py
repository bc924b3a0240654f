"""What a cache of keys and values holds: their moments, and how widely attention spreads over them.

Shapes: B batch, T tokens, H heads, D head size, C = n_embd, R passes; z = [k; v], (2C,): key and value of a
token, all heads, the key before rotation, as the latent of an MLA (DeepSeek-V2) would hold it.
"""

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from analysis.attention import CHUNK, entropies
from analysis.hooks import Attended, Layer, layers_of, watch_attention
from analysis.streaming import GroupedMeans, Moments
from distributed import Precision
from errors import Failure, UsageError
from models.config import ModelConfig
from models.language_model import LanguageModel

STACKED_LIMIT = 2**32  # bytes of moments over all repeats at once that are made unasked


def stacked_bytes(config: ModelConfig) -> int:
    """Memory for the moments of [z_1; ...; z_R] of each middle layer."""
    return 0 if config.repeats == 1 else 8 * config.layers[1] * (2 * config.n_embd * config.repeats) ** 2


class CacheStatistics:
    """Fed with what attention did; its size depends on the model only.

    moments: of z, by layer and pass. stacked: by middle layer, of [z_1; ...; z_R], the token's entries of
    all passes, if asked for (the former are then parts of these). entropy: by layer and pass, a row for each
    head: means of the attention's entropy, and of that over the log of the number of visible keys, where a
    query sees more than one.
    """

    def __init__(self, config: ModelConfig, stacked: bool, chunk: int = CHUNK) -> None:
        self._config, self._chunk = config, chunk
        self._stack = stacked and config.repeats > 1
        self._moments: dict[tuple[Layer, int], Moments] = {}
        self.stacked: dict[Layer, Moments] = {}
        self.entropy: dict[tuple[Layer, int], GroupedMeans] = {}
        self._waiting: dict[Layer, list[Tensor]] = {}  # z of the passes so far, of this batch
        self.tokens = 0

    def see(self, call: Attended) -> None:
        """For `watch_attention`."""
        z = torch.cat([call.keys.flatten(-2), call.values.flatten(-2)], -1).flatten(0, -2)
        if self._stack and call.layer.part == "middle":
            self._add_stacked(call, z)
        else:
            self._of(call.layer, call.repeat, z).add(z)
        where = call.layer, call.repeat
        found, counts = entropies(call.queries, call.seen, self._chunk)
        normalised = torch.where(counts > 1, found / counts.log(), torch.nan)
        both = torch.stack((found, normalised), -1)
        both = call.rows.from_batch(both).flatten(0, -3)  # (rows, H, 2): without padding
        heads = torch.arange(both.shape[1], device=both.device).expand(both.shape[:2])
        if where not in self.entropy:
            self.entropy[where] = GroupedMeans(both.shape[1], 2)
        self.entropy[where].add(heads.flatten(), both.flatten(0, 1))

    def moments(self, layer: Layer, repeat: int) -> Moments:
        """Of z (2C,)."""
        if layer in self.stacked:
            width = 2 * self._config.n_embd
            return self.stacked[layer].part(slice((repeat - 1) * width, repeat * width))
        return self._moments[layer, repeat]

    @property
    def places(self) -> list[tuple[Layer, int]]:
        """Layers and passes that were seen."""
        return list(self.entropy)

    def numbers_held(self) -> int:
        """How many numbers the statistics consist of."""
        moments = [*self._moments.values(), *self.stacked.values()]
        sizes = [part.total.numel() + part.products.numel() for part in moments]
        return sum(sizes) + sum(2 * means.sums.numel() for means in self.entropy.values())

    def _of(self, layer: Layer, repeat: int, z: Tensor) -> Moments:
        if (layer, repeat) not in self._moments:
            self._moments[layer, repeat] = Moments(z.shape[1], z.device)
        return self._moments[layer, repeat]

    def _add_stacked(self, call: Attended, z: Tensor) -> None:
        grid = call.key_rows.grid
        if len(z) != grid.batch * grid.length:
            raise UsageError(
                "only where every token takes every pass are there entries of all passes to be stacked; "
                "give --stacked false, or no capacities"
            )
        waiting = [*self._waiting.get(call.layer, []), z] if call.repeat > 1 else [z]
        self._waiting[call.layer] = waiting
        if call.repeat == self._config.repeats:
            del self._waiting[call.layer]
            if call.layer not in self.stacked:
                self.stacked[call.layer] = Moments(sum(part.shape[1] for part in waiting), z.device)
            self.stacked[call.layer].add(torch.cat(waiting, -1))


@torch.no_grad()
def gather(
    model: LanguageModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    precision: Precision | None,
    stacked: bool = True,
    **routing: Any,
) -> CacheStatistics:
    """One forward pass over the batches (inputs, targets), each (B, T).

    precision: None for the model's own numbers. routing: `length_factors` or `thresholds`, for models that
    route. Raises UsageError where entries of passes are to be stacked that not all tokens took, and Failure
    where there is no batch.
    """
    statistics = CacheStatistics(model.config, stacked)
    with watch_attention(model, statistics.see):
        for inputs, _ in batches:
            if precision is not None:
                inputs = inputs.to(precision.device)
            with precision.autocast() if precision else nullcontext():
                model(inputs, **routing)
            statistics.tokens += inputs.numel()
    if not statistics.tokens:
        raise Failure("there is nothing to measure on: no batch came from the data")
    order = list(layers_of(model))
    statistics.entropy = {
        place: statistics.entropy[place]
        for place in sorted(statistics.entropy, key=lambda place: (order.index(place[0]), place[1]))
    }
    return statistics
