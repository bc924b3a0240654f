"""Which keys and values a query may see: the stores that attention asks.

Attention computes the queries, keys and values of its own tokens and hands the keys and values to a store;
the store answers with all that are visible, and how. What a pass may look at (its own tokens, or those of
earlier passes too) is therefore a choice of store, and attention knows nothing of repeats.

Shapes: B batch, H heads, T tokens of this pass, S visible tokens, D head size.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Visible(NamedTuple):
    """keys, values: (B, H, S, D). mask: (T, S), True where a query may look; None: plain causal, S = T."""

    keys: Tensor
    values: Tensor
    mask: Tensor | None


class LayerStore(Protocol):
    """The store as one layer sees it."""

    def add(self, keys: Tensor, values: Tensor) -> Visible:
        """Hand in this pass's keys and values, (B, H, T, D) each; get back all that its queries may see."""


def causal_mask(query_positions: Tensor, key_positions: Tensor, window: int | None) -> Tensor:
    """(T,), (S,) -> (T, S): a query sees keys at its own position and before, at most `window` positions."""
    distance = query_positions[:, None] - key_positions[None, :]
    visible = distance >= 0
    return visible if window is None else visible & (distance < window)


class OwnPass:
    """Ordinary causal attention: a pass sees itself only. Serves every layer, for it keeps nothing."""

    def __init__(self, positions: Tensor, window: int | None = None) -> None:
        self._mask = None if window is None else causal_mask(positions, positions, window)

    def add(self, keys: Tensor, values: Tensor) -> Visible:
        return Visible(keys, values, self._mask)


class AllPasses:
    """Cross-repeat attention (Eq. 3): pass r sees the keys and values of passes 1..r, by position.

    One store serves all middle layers; `layer(i)` is the view of the i-th.
    """

    def __init__(self, n_layers: int, positions: Tensor, window: int | None = None) -> None:
        self._positions = positions
        self._window = window
        self._layers: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(n_layers)]
        self._masks: dict[int, Tensor | None] = {}  # by number of passes; all layers share them

    def layer(self, index: int) -> "_AllPassesLayer":
        return _AllPassesLayer(self, index)

    def add(self, index: int, keys: Tensor, values: Tensor) -> Visible:
        passes = self._layers[index]
        passes.append((keys, values))
        if len(passes) == 1:
            return Visible(keys, values, self._mask(1))
        return Visible(
            torch.cat([keys for keys, _ in passes], dim=2),
            torch.cat([values for _, values in passes], dim=2),
            self._mask(len(passes)),
        )

    def _mask(self, n_passes: int) -> Tensor | None:
        if n_passes not in self._masks:
            plain = n_passes == 1 and self._window is None
            keys = self._positions.repeat(n_passes)
            self._masks[n_passes] = None if plain else causal_mask(self._positions, keys, self._window)
        return self._masks[n_passes]


class _AllPassesLayer(NamedTuple):
    store: AllPasses
    index: int

    def add(self, keys: Tensor, values: Tensor) -> Visible:
        return self.store.add(self.index, keys, values)
