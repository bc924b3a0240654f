"""Forward hooks of all analyses: on attention, on blocks, on passes through the middle.

Each `watch_*` is a context manager. Inside it, `see` is called at every place of its kind, with autocast off,
so that it may compute in float64; on leaving, the hooks are removed. Hooks keep nothing between forward
passes but counters.

Shapes: B batch, T tokens, H heads, D head size, C = n_embd; *tokens.shape as in `models.active_tokens`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distributed import Precision
from errors import Failure
from models.active_tokens import ActiveTokens
from models.block import Block
from models.embeddings import rotate
from models.kv_cache import Cache, KeysValues, LayerKeys, Visible
from models.language_model import LanguageModel


class Layer(NamedTuple):
    """A block: its part of the model (`begin`, `middle`, `end`; `layer` if nothing repeats) and its index."""

    part: str
    index: int

    @property
    def name(self) -> str:
        return f"{self.part} {self.index}"


class Attended(NamedTuple):
    """One call of a layer's attention.

    repeat: the number of this call in the forward pass, from 1; for middle layers, the pass. queries:
    (B, H, n, D), rotated, padded where sequences are uneven. keys, values: (*key_tokens.shape, H, D), those
    of this pass, before rotation. seen: all keys and values with their mask. output: (*tokens.shape, C).
    """

    layer: Layer
    repeat: int
    queries: Tensor
    keys: Tensor
    values: Tensor
    tokens: ActiveTokens
    key_tokens: ActiveTokens
    seen: Visible
    output: Tensor


def layers_of(model: LanguageModel) -> dict[Layer, Block]:
    """All blocks, in the order of the forward pass."""
    parts = {"begin": "h_begin", "middle": "h_mid", "layer": "h", "end": "h_end"}
    return {
        Layer(part, index): block
        for part, name in parts.items()
        if name in model.transformer
        for index, block in enumerate(model.transformer[name])
    }


def forward_passes(
    model: LanguageModel,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    precision: Precision | None,
    predict: bool = False,
    **settings: Any,
) -> Iterator[tuple[Tensor, Tensor | None, dict[str, Any]]]:
    """Run the model over all batches, without gradients.

    Args:
        batches: inputs and targets, (B, T) each.
        precision: device and arithmetic; None leaves both as they are.
        predict: pass targets and ask for the logits of all tokens.
        settings: further arguments of the model, such as `length_factors` or `thresholds`.

    Yields:
        inputs, targets (on the device), and the model's output.

    Raises:
        Failure: there is no batch.
    """
    empty = True
    for inputs, targets in batches:
        empty = False
        if precision is not None:
            inputs = inputs.to(precision.device)
            targets = targets.to(precision.device) if targets is not None else None
        wanted = {"targets": targets, "get_logits": True} if predict else {}
        with torch.no_grad(), precision.autocast() if precision else nullcontext():
            output = model(inputs, **wanted, **settings)
        yield inputs, targets, output
    if empty:
        raise Failure("there is nothing to measure on: no batch came from the data")


@contextmanager
def watch_attention(
    model: LanguageModel, see: Callable[[Attended], None], only: Layer | None = None
) -> Iterator[None]:
    """Call `see` after each attention layer, or after that of one layer. Projections are computed again."""

    def look(layer: Layer, repeat: int, attention: nn.Module, args: tuple, output: Tensor) -> None:
        x, tokens, layer_keys, source = args
        if not tokens.count:
            return
        queries, keys, values = attention.project(x, None if source is None else source.x)
        queries = tokens.pad(rotate(queries, tokens.rotation))
        key_tokens = tokens if source is None else source.tokens
        seen = layer_keys.cache.seen
        with _exact(x):
            see(Attended(layer, repeat, queries, keys, values, tokens, key_tokens, seen, output))

    def listen(attention: nn.Module, args: tuple) -> tuple:
        x, tokens, keys, source = args
        return x, tokens, keys._replace(cache=_Listening(keys.cache)), source

    blocks = layers_of(model)
    attentions = {layer: block.attn for layer, block in blocks.items() if only in (None, layer)}
    with _counting(model, attentions, look, listen):
        yield


@contextmanager
def watch_blocks(
    model: LanguageModel, see: Callable[[Layer, int, Tensor, ActiveTokens], None]
) -> Iterator[None]:
    """Call `see(layer, repeat, x, tokens)` after each block; x (*tokens.shape, C) is its output."""

    def look(layer: Layer, repeat: int, block: nn.Module, args: tuple, output: Tensor) -> None:
        with _exact(output):
            see(layer, repeat, output, args[1])

    with _counting(model, layers_of(model), look):
        yield


@contextmanager
def watch_passes(model: LanguageModel, see: Callable[[int, Tensor, ActiveTokens], None]) -> Iterator[None]:
    """Call `see(repeat, x, tokens)` after each pass; x (*tokens.shape, C) is the input of the next one."""

    def look(module: nn.Module, args: tuple, output: Tensor) -> None:
        _, tokens, repeat = args
        with _exact(output):
            see(repeat, output, tokens)

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
    """Hooks on modules that count the calls of each module within a forward pass."""
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
    """A cache that remembers its last answer."""

    seen: Visible

    def __init__(self, cache: Cache) -> None:
        self._cache, self.persistent = cache, cache.persistent

    def update(
        self, of: LayerKeys, new: KeysValues, key_tokens: ActiveTokens, query_tokens: ActiveTokens
    ) -> Visible:
        self.seen = self._cache.update(of, new, key_tokens, query_tokens)
        return self.seen


def _exact(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, enabled=False)
