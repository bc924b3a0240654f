"""Decoding at fixed shapes: a step writes one token of each text, and is replayed as a CUDA graph.

Launching the kernels of a step takes the host longer than a GPU takes to run them. A graph launches them at
once, but always the same ones, on the same memory: so a step reads its token ids and its position from
tensors, writes keys at that position, and attends to a fixed number of places, of which a mask hides those
not yet written. There is a graph for each of few such numbers.

Shapes: B batch, H heads, n new positions of a text (a token and its pause tokens), D head size.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.active_tokens import ActiveTokens, put_
from models.kv_cache import KeysValues, KVCache, LayerKeys, Visible
from models.language_model import LanguageModel
from models.masks import AttentionMask

FEWEST_PLACES = 64  # to attend to; then twice as many, and so on


def has_fixed_shapes(model: LanguageModel, thresholds: Sequence[float] | None) -> bool:
    """Whether every token takes every pass, and nothing is drawn: then a step is the same for all tokens."""
    config = model.config
    if config.variant.routed:
        return not any(limit > 0.0 for limit in thresholds or config.routing_threshold or [])
    return not config.variant.has_halting_gate and config.ponder_eval != "sample"


class StaticCache(KVCache):
    """A KVCache of texts of equal lengths; after the prompt, steps of one token use it at fixed shapes.

    Attributes:
        positions: (n,) of the new tokens, on the device; None while the prompt is read.
        places: how many places a step attends to.
    """

    positions: Tensor | None = None
    places = 0

    def move(self, device: torch.device) -> None:
        """Make `positions` and `places` those of the next token. Raises ValueError when there is no room."""
        each = self._positions_per_token
        new = super().new_positions(each, device)
        super().advance([1] * len(self.lengths))
        needed, self.places = self.lengths[0] * each, FEWEST_PLACES
        while self.places < needed:
            self.places *= 2
        self.places = min(self.places, self._capacity * each)
        if self.positions is None:
            self.positions = new
        else:
            self.positions.copy_(new)  # graphs read this very tensor

    def new_positions(self, count: int, device: torch.device) -> Tensor:
        return super().new_positions(count, device) if self.positions is None else self.positions

    def advance(self, counts: Sequence[int]) -> None:
        if self.positions is None:
            super().advance(counts)
        self._static_masks: dict[int, AttentionMask] = {}  # made anew, as every replay must

    def update(
        self, of: LayerKeys, new: KeysValues, key_tokens: ActiveTokens, query_tokens: ActiveTokens
    ) -> Visible:
        if self.positions is None:
            return super().update(of, new, key_tokens, query_tokens)
        first = 1 if of.all_passes else of.repeat
        passes = [self._layer(of.layer, repeat).first(self.places) for repeat in range(first, of.repeat + 1)]
        for tensor, part in zip(passes[-1], new, strict=True):
            put_(tensor.transpose(0, 2), self.positions, part.transpose(0, 2).to(tensor.dtype))
        if len(passes) not in self._static_masks:
            every = torch.arange(self.places, device=self.positions.device)
            mask = AttentionMask(self.positions, [every] * len(passes), self._window)
            self._static_masks[len(passes)] = mask
        return Visible(passes, self._static_masks[len(passes)])


class CapturedStep(NamedTuple):
    """A CUDA graph, and the output that each replay overwrites."""

    graph: Any  # torch.cuda.CUDAGraph
    output: dict[str, Any]


class GraphedDecoder:
    """Writes texts of equal lengths token by token, after the prompt has been read into its `cache`.

    To be used in one autocast context with the prompt: graphs read the weights that autocast has converted.
    On a CPU every step runs plainly, at the same shapes.
    """

    def __init__(self, model: LanguageModel, batch: int, thresholds: Sequence[float] | None) -> None:
        config = model.config
        window, each = config.attention_window_length, config.positions_per_token
        self.cache = StaticCache(batch, config.sequence_length, window, each)
        self._model, self._thresholds = model, thresholds
        self._idx = torch.zeros(batch, 1, dtype=torch.long, device=model.lm_head.weight.device)
        self._steps: dict[int, CapturedStep] = {}  # by the places that they attend to

    def __call__(self, idx: Tensor) -> dict[str, Any]:
        """The newest token of each text, (B, 1) on the CPU -> output, valid until the next call."""
        self._idx.copy_(idx, non_blocking=True)
        self.cache.move(self._idx.device)
        if self._idx.device.type != "cuda":
            return self.run()
        if self.cache.places not in self._steps:
            self._steps[self.cache.places] = self._capture()
        step = self._steps[self.cache.places]
        step.graph.replay()
        return step.output

    def run(self) -> dict[str, Any]:
        """One step, kernel by kernel. Run again it computes, and writes into the cache, the same."""
        return self._model(
            self._idx, get_logits=True, get_routing=True, thresholds=self._thresholds, cache=self.cache
        )

    def _capture(self) -> CapturedStep:
        """`run` as a graph, after a first run on a side stream, as torch.cuda.graph asks for."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self.run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self.run()
        return CapturedStep(graph, output)
