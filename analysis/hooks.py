"""Where a forward pass is looked into: one home for the hooks of all analyses.

Each function is a context: inside it `see` is called on the way, outside the model is as it was. What is
called may compute in float64: autocast is off. Nothing is kept between forward passes but counters.

Shapes: B batch, H heads, D head size, C = n_embd; *rows.shape as in `models.active_tokens`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.active_tokens import Rows
from models.block import Block
from models.key_values import Store, View, Visible
from models.language_model import LanguageModel
from models.positions import rotate


class Layer(NamedTuple):
    """A block: the part it stands in (`begin`, `middle`, `end`; `layer` where nothing repeats), its place."""

    part: str
    index: int

    @property
    def name(self) -> str:
        return f"{self.part} {self.index}"


class Attended(NamedTuple):
    """One call of a layer's attention.

    repeat: which call of this forward pass it is, from 1: the pass, for middle layers. queries: (B, H, n, D),
    as attention takes them, padded where sequences are uneven. keys, values: (*key_rows.shape, H, D), the new
    ones, before rotation. seen: what the queries could look at. output: (*rows.shape, C).
    """

    layer: Layer
    repeat: int
    queries: Tensor
    keys: Tensor
    values: Tensor
    rows: Rows
    key_rows: Rows
    seen: Visible
    output: Tensor


def layers_of(model: LanguageModel) -> dict[Layer, Block]:
    """All blocks, in the order in which a token meets them first."""
    parts = {"begin": "h_begin", "middle": "h_mid", "layer": "h", "end": "h_end"}
    return {
        Layer(part, index): block
        for part, name in parts.items()
        if name in model.transformer
        for index, block in enumerate(model.transformer[name])
    }


@contextmanager
def watch_attention(
    model: LanguageModel, see: Callable[[Attended], None], only: Layer | None = None
) -> Iterator[None]:
    """Call `see` after each attention, or only this layer's. Keys and values are projected again for it."""

    def look(layer: Layer, repeat: int, attention: nn.Module, args: tuple, output: Tensor) -> None:
        x, rows, store, context = args
        if not rows.total:
            return
        queries, keys, values = attention.project(x, rows, context)
        queries = rows.to_batch(rotate(queries, rows.rotation))
        key_rows = rows if context is None else context.rows
        with _exact(x):
            see(Attended(layer, repeat, queries, keys, values, rows, key_rows, store.seen, output))

    def listen(attention: nn.Module, args: tuple) -> tuple:
        x, rows, store, context = args
        return x, rows, _Listening(store), context

    blocks = layers_of(model)
    attentions = {layer: block.attn for layer, block in blocks.items() if only in (None, layer)}
    with _counting(model, attentions, look, listen):
        yield


@contextmanager
def watch_blocks(model: LanguageModel, see: Callable[[Layer, int, Tensor, Rows], None]) -> Iterator[None]:
    """Call `see(layer, repeat, x, rows)` after each block, x (*rows.shape, C) being what it gives."""

    def look(layer: Layer, repeat: int, block: nn.Module, args: tuple, output: Tensor) -> None:
        with _exact(output):
            see(layer, repeat, output, args[1])

    with _counting(model, layers_of(model), look):
        yield


@contextmanager
def watch_passes(model: LanguageModel, see: Callable[[int, Tensor, Rows], None]) -> Iterator[None]:
    """Call `see(repeat, x, rows)` after each pass, x (*rows.shape, C) being what the next one would take."""

    def look(module: nn.Module, args: tuple, output: Tensor) -> None:
        _, rows, repeat = args
        with _exact(output):
            see(repeat, output, rows)

    handle = model.after_pass.register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _counting(
    model: LanguageModel,
    modules: dict[Layer, nn.Module],
    look: Callable[[Layer, int, nn.Module, tuple, Tensor], None],
    before: Callable[[nn.Module, tuple], tuple] | None = None,
) -> Iterator[None]:
    """Hooks on modules that know which call of the forward pass they see."""
    calls: Counter[Layer] = Counter()

    def hook(layer: Layer) -> Callable[[nn.Module, tuple, Tensor], None]:
        def counted(module: nn.Module, args: tuple, output: Tensor) -> None:
            calls[layer] += 1
            look(layer, calls[layer], module, args, output)

        return counted

    def start(*_: Any) -> None:
        calls.clear()

    handles = [model.register_forward_pre_hook(start)]
    for layer, module in modules.items():
        handles.append(module.register_forward_hook(hook(layer)))
        if before is not None:
            handles.append(module.register_forward_pre_hook(before))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Listening:
    """A store that remembers what it last answered."""

    seen: Visible

    def __init__(self, store: Store) -> None:
        self._store = store

    def add(self, kept: Sequence[Tensor], key_rows: Rows, query_rows: Rows) -> View:
        view = self._store.add(kept, key_rows, query_rows)
        self.seen = view.whole()
        return view


def _exact(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, enabled=False)
