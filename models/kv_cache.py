"""Keys and values: of one forward pass (`PassKeys`), and of a growing text (`KVCache`).

Attention computes keys and values of its tokens and hands them to `LayerKeys.update`, which answers with all
that are visible and a mask. Whether a pass attends to its own keys or to those of all passes so far is
decided by who makes the LayerKeys (`models.repeaters`); attention knows nothing of repeats. Prefill and
decoding run the model's ordinary forward pass on a KVCache.

Shapes: B batch, H heads, n new tokens of a pass, S visible tokens, D head size. What is cached need not be
keys and values: latent attention caches latents, with H = 1.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from models.active_tokens import ActiveTokens, CachePlaces, without_waiting
from models.masks import AttentionMask

if TYPE_CHECKING:
    from models.pass_store import PassStore, StoredPass

KeysValues = Sequence[Tensor]  # of one pass: keys and values, (B, H, S, D) each


class Visible(NamedTuple):
    """The keys and values that a pass attends to, pass by pass, and the mask over them.

    stored: where those of earlier passes are, if they are in a store; then passes has only the newest.
    """

    passes: Sequence[KeysValues]
    mask: AttentionMask
    stored: "StoredPass | None" = None

    def concatenated(self) -> list[Tensor]:
        """Keys, and values, of all passes one after another: (B, H, S, D) each."""
        passes = self.passes if self.stored is None else [self.stored.earlier(), *self.passes]
        if len(passes) == 1:
            return list(passes[0])
        return [torch.cat(part, dim=2) for part in zip(*passes, strict=True)]


class LayerKeys(NamedTuple):
    """The keys that a layer attends to in pass `repeat`: of this pass, or of all passes so far (Eq. 3)."""

    cache: "Cache"
    layer: Hashable
    repeat: int
    all_passes: bool

    def update(self, new: KeysValues, key_tokens: ActiveTokens, query_tokens: ActiveTokens) -> Visible:
        """Add keys and values `new`, (B, H, n, D) each, of key_tokens; get those visible to query_tokens."""
        return self.cache.update(self, new, key_tokens, query_tokens)


def layer_keys(
    cache: "Cache", part: str, count: int, repeat: int = 1, all_passes: bool = False
) -> list[LayerKeys]:
    """For each of the `count` layers of a part of the model (`begin`, `middle`, `end`)."""
    return [LayerKeys(cache, (part, layer), repeat, all_passes) for layer in range(count)]


class Cache(Protocol):
    """PassKeys or KVCache. persistent: whether later forward passes attend to what this one adds."""

    persistent: bool

    def update(
        self, of: LayerKeys, new: KeysValues, key_tokens: ActiveTokens, query_tokens: ActiveTokens
    ) -> Visible: ...


class PassKeys:
    """Keys and values of one forward pass, with gradients."""

    persistent = False

    def __init__(
        self, window: int | None = None, new_store: "Callable[[Tensor], PassStore] | None" = None
    ) -> None:
        """
        Args:
            window: `ModelConfig.attention_window_length`.
            new_store: makes a layer's store of the keys of its first pass; None: each pass concatenates.
        """
        self._window, self._new_store = window, new_store
        self._stores: dict[Hashable, PassStore] = {}  # by layer
        self._passes: dict[Hashable, list[tuple[KeysValues, Tensor]]] = {}  # by layer; with positions
        self._masks: dict[int, tuple[ActiveTokens, ActiveTokens, AttentionMask]] = {}

    def update(
        self, of: LayerKeys, new: KeysValues, key_tokens: ActiveTokens, query_tokens: ActiveTokens
    ) -> Visible:
        seen = self.earlier(of, key_tokens, query_tokens)
        if of.all_passes and self._new_store is not None:
            if of.layer not in self._stores:
                self._stores[of.layer] = self._new_store(new[0])
            self.append(of, (), key_tokens)
            return Visible([new], seen.mask, self._stores[of.layer].next_pass(new[0]))
        self.append(of, new, key_tokens)
        return Visible([*seen.passes, new], seen.mask)

    def earlier(self, of: LayerKeys, key_tokens: ActiveTokens, query_tokens: ActiveTokens) -> Visible:
        """What `update` will return, without the new keys and values."""
        earlier = self._passes.get(of.layer, []) if of.all_passes else []
        if of.all_passes and len(earlier) != of.repeat - 1:
            raise ValueError(
                f"pass {of.repeat} attends to all passes, but an earlier one, which saw itself alone, "
                "kept no keys: give all passes of a layer the same all_passes"
            )
        # All layers of a pass share its mask, and so do passes of the same tokens that see only themselves.
        number = of.repeat if of.all_passes else 0
        known = self._masks.get(number)
        if known is None or known[0] is not key_tokens or known[1] is not query_tokens:
            positions = [*(where for _, where in earlier), key_tokens.positions]
            mask = AttentionMask(query_tokens.positions, positions, self._window)
            known = self._masks[number] = key_tokens, query_tokens, mask
        return Visible([keys_values for keys_values, _ in earlier], known[2])

    def append(self, of: LayerKeys, new: KeysValues, key_tokens: ActiveTokens) -> None:
        """Keep keys and values for the passes to come, if these attend to them."""
        if of.all_passes:
            self._passes.setdefault(of.layer, []).append((new, key_tokens.positions))


class KVCache:
    """Keys and values of B growing texts, by layer and pass, for generation.

    Memory for all tokens is allocated when a layer is first used in a pass. Each key is written once, after
    the last one: a token that halted before a pass takes no place in it, and attention only reads the
    places in use.
    """

    persistent = True

    def __init__(
        self, batch: int, capacity: int, window: int | None = None, positions_per_token: int = 1
    ) -> None:
        """
        Args:
            capacity: tokens that a text can grow to.
            window: `ModelConfig.attention_window_length`.
            positions_per_token: more than one with pause tokens, which are cached like tokens.
        """
        self.lengths = [0] * batch  # tokens of each text
        self._capacity, self._window, self._positions_per_token = capacity, window, positions_per_token
        self._empty = CachePlaces(self.lengths)
        self._layers: dict[tuple[Hashable, int], _LayerCache] = {}
        # Of one forward pass: places and masks that many layers share.
        self._extended: dict[tuple[int, int], tuple[CachePlaces, ActiveTokens, CachePlaces]] = {}
        self._masks: dict[tuple[int, ...], tuple[Sequence[CachePlaces], ActiveTokens, AttentionMask]] = {}

    def new_positions(self, count: int, device: torch.device) -> Tensor:
        """The next `count` positions of the texts: (count,), or (B, count) where their lengths differ."""
        start = self._positions_per_token * self.lengths[0]
        if min(self.lengths) == max(self.lengths):
            return torch.arange(start, start + count, device=device)
        starts = without_waiting(self._positions_per_token * torch.tensor(self.lengths), device)
        return starts[:, None] + torch.arange(count, device=device)

    def advance(self, counts: Sequence[int]) -> None:
        """Make room for this many new tokens of each text. Raises ValueError when there is none."""
        lengths = [old + new for old, new in zip(self.lengths, counts, strict=True)]
        if max(lengths) > self._capacity:
            raise ValueError(f"the cache holds {self._capacity} tokens a sequence, not {max(lengths)}")
        self.lengths = lengths
        self._extended.clear()
        self._masks.clear()

    def update(
        self, of: LayerKeys, new: KeysValues, key_tokens: ActiveTokens, query_tokens: ActiveTokens
    ) -> Visible:
        first = 1 if of.all_passes else of.repeat
        passes = [self._layer(of.layer, repeat) for repeat in range(first, of.repeat + 1)]
        passes[-1].write(new, self._extend(passes[-1].places, key_tokens))
        mask = self._mask([one.places for one in passes], query_tokens)
        return Visible([one.first(one.places.longest) for one in passes], mask)

    def _extend(self, places: CachePlaces, tokens: ActiveTokens) -> CachePlaces:
        """`places` and those of new tokens: made once, for all layers with the same places."""
        key = id(places), id(tokens)
        if key not in self._extended:  # kept with what the key stands for, so that it stands for nothing else
            self._extended[key] = places, tokens, places.extended(tokens)
        return self._extended[key][2]

    def _mask(self, places: Sequence[CachePlaces], tokens: ActiveTokens) -> AttentionMask:
        """Between queries of `tokens` and keys of `places`: made once for the layers of a pass."""
        key = (*map(id, places), id(tokens))
        if key not in self._masks:
            sees_all = self._window is None and tokens.grid.length == 1 and all(one.is_even for one in places)
            keys = [one.positions for one in places]
            mask = AttentionMask(tokens.positions, keys, self._window, sees_all)
            self._masks[key] = places, tokens, mask
        return self._masks[key][2]

    @property
    def bytes_per_token(self) -> float:
        """Bytes written so far, per token of the texts."""
        return sum(layer.bytes_used for layer in self._layers.values()) / sum(self.lengths)

    def _layer(self, layer: Hashable, repeat: int) -> "_LayerCache":
        if (layer, repeat) not in self._layers:
            places = self._capacity * self._positions_per_token
            self._layers[layer, repeat] = _LayerCache(places, self._empty)
        return self._layers[layer, repeat]


class _LayerCache:
    """Keys and values of one layer in one pass."""

    def __init__(self, capacity: int, empty: CachePlaces) -> None:
        self._capacity, self.places = capacity, empty
        self._tensors: list[Tensor] = []

    def first(self, places: int) -> list[Tensor]:
        """(B, H, places, D) each; shorter sequences are filled with zeros, at position PADDING."""
        return [tensor[:, :, :places] for tensor in self._tensors]

    @property
    def bytes_used(self) -> int:
        token = sum(tensor[0, :, 0].numel() * tensor.element_size() for tensor in self._tensors)
        return sum(self.places.counts) * token

    def write(self, new: KeysValues, places: CachePlaces) -> None:
        """Append `new`, (B, H, n, D) each, at the newest of `places`."""
        if not self._tensors:
            # Zeros: a place that is masked must still hold a number.
            shapes = [(*part.shape[:2], self._capacity, part.shape[-1]) for part in new]
            self._tensors = [part.new_zeros(shape) for part, shape in zip(new, shapes, strict=True)]
        self.places = places
        for tensor, part in zip(self._tensors, new, strict=True):
            if len(places.newest) == 2:
                tensor[:, :, slice(*places.newest)] = part
            else:
                sequence, at, within = places.newest
                tensor[sequence, :, at] = part[sequence, :, within]


class _Recording:
    """Replaces a PassKeys while a part of the network is recomputed: what it held then, and what is new."""

    persistent = False

    def __init__(self, seen: Visible) -> None:
        self._seen = seen
        self.new: list[Tensor] = []

    def update(
        self, of: LayerKeys, new: KeysValues, key_tokens: ActiveTokens, query_tokens: ActiveTokens
    ) -> Visible:
        # Copies: values are views of one tensor with queries and keys, which would be kept as a whole.
        self.new = [tensor.contiguous() for tensor in new]
        return Visible([*self._seen.passes, self.new], self._seen.mask)


def recomputed(
    function: Callable[..., Tensor],
    layers: Sequence[LayerKeys],
    key_tokens: ActiveTokens,
    query_tokens: ActiveTokens,
    *args: Any,
) -> Tensor:
    """function(layers, *args) under activation checkpointing: the backward pass computes it a second time.

    Of it only args, the result and the new keys and values are kept. The second time it must not add to the
    cache again, so it works on what the cache held at the start and returns the new keys and values.

    Args:
        function: updates each of the layers once, with keys of key_tokens for query_tokens; depends on
            nothing that changes later. Dropout draws the same numbers again.
    """
    caches: list[Any] = [one.cache for one in layers]  # PassKeys: what persists is never recomputed
    seen = [cache.earlier(one, key_tokens, query_tokens) for cache, one in zip(caches, layers, strict=True)]

    def pure(*args: Any) -> tuple[Tensor, list[list[Tensor]]]:
        recordings = [_Recording(each) for each in seen]
        stand_ins = [one._replace(cache=record) for one, record in zip(layers, recordings, strict=True)]
        return function(stand_ins, *args), [record.new for record in recordings]

    result, new = checkpoint(pure, *args, use_reentrant=False)
    for cache, one, tensors in zip(caches, layers, new, strict=True):
        cache.append(one, tensors, key_tokens)
    return result


def recomputation_pays(training: bool, layer: LayerKeys) -> bool:
    """Whether a backward pass will follow, for which activations would be kept."""
    return training and torch.is_grad_enabled() and not layer.cache.persistent
