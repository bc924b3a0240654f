"""Stores that keep what they were given: the key/value cache of generation.

Prefill and decoding run the model's own forward pass; it is only these stores that remember. Memory for all
tokens is allocated when a layer is first used in a repeat, and each key is written once, behind the last one:
a token that halted before a repeat takes no place in it, and attention never looks at more than there is.

Shapes: B sequences, H heads, n new rows of a pass, S places, D head size.
"""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from models.key_values import Store, Visible, visible
from models.rows import FAR, Rows


class Cache:
    """Keys and values of B growing sequences, by layer and repeat; `lengths` says how far each has come."""

    lasting = True

    def __init__(self, batch: int, capacity: int, window: int | None = None) -> None:
        """capacity: tokens that a sequence can grow to. window: as in `attention_window_length`."""
        self.lengths = [0] * batch
        self._capacity, self._window = capacity, window
        self._stores: dict[tuple[Hashable, int], _Kept] = {}

    def advance(self, counts: Sequence[int]) -> None:
        """Make room for as many new tokens of each sequence. Raises ValueError when there is none."""
        lengths = [old + new for old, new in zip(self.lengths, counts, strict=True)]
        if max(lengths) > self._capacity:
            raise ValueError(f"the cache holds {self._capacity} tokens a sequence, not {max(lengths)}")
        self.lengths = lengths

    def own_pass(self, layer: Hashable, repeat: int = 1) -> Store:
        return _Passes([self._kept(layer, repeat)], self._window)

    def all_passes(self, layer: Hashable, repeat: int) -> Store:
        return _Passes([self._kept(layer, earlier) for earlier in range(1, repeat + 1)], self._window)

    @property
    def bytes_per_token(self) -> float:
        """Memory that the keys and values written so far take, over the tokens they stand for."""
        return sum(store.bytes_used for store in self._stores.values()) / sum(self.lengths)

    def _kept(self, layer: Hashable, repeat: int) -> "_Kept":
        if (layer, repeat) not in self._stores:
            self._stores[layer, repeat] = _Kept(self._capacity)
        return self._stores[layer, repeat]


class _Passes:
    """The store of a pass that sees what is kept of some passes, its own being the last of them."""

    def __init__(self, kept: list["_Kept"], window: int | None) -> None:
        self._kept, self._window = kept, window

    def add(self, keys: Tensor, values: Tensor, key_rows: Rows, query_rows: Rows) -> Visible:
        own = self._kept[-1]
        first = own.is_empty
        own.write(keys, values, key_rows)
        if len(self._kept) == 1:
            keys, values = own.keys, own.values
        else:
            keys = torch.cat([kept.keys for kept in self._kept], dim=2)
            values = torch.cat([kept.values for kept in self._kept], dim=2)
        if self._window is None:
            if first and len(self._kept) == 1 and key_rows is query_rows:
                return Visible(keys, values, None, causal=True)
            if query_rows.grid.length == 1 and all(kept.is_even for kept in self._kept):
                return Visible(keys, values, None)  # the newest token of each sequence sees all there is
        positions = torch.cat([kept.positions for kept in self._kept], dim=1)
        return Visible(keys, values, visible(query_rows.positions, positions, self._window))


class _Kept:
    """What one layer was given in one repeat, sequence by sequence, without gaps."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._counts: list[int] = []

    @property
    def is_empty(self) -> bool:
        return not any(self._counts)

    @property
    def is_even(self) -> bool:
        """Whether every sequence has as many."""
        return min(self._counts) == max(self._counts)

    @property
    def keys(self) -> Tensor:
        """(B, H, longest, D); of shorter sequences the rest is zeros, at position FAR."""
        return self._keys[:, :, : max(self._counts)]

    @property
    def values(self) -> Tensor:
        return self._values[:, :, : max(self._counts)]

    @property
    def positions(self) -> Tensor:
        """(B, longest)."""
        return self._positions[:, : max(self._counts)]

    @property
    def bytes_used(self) -> int:
        """Of the keys and values written so far."""
        if not self._counts:
            return 0
        (_, heads, _, size), width = self._keys.shape, self._keys.element_size()
        return 2 * sum(self._counts) * heads * size * width

    def write(self, keys: Tensor, values: Tensor, rows: Rows) -> None:
        """keys, values: (B, H, n, D) of `rows`, put behind what is there."""
        if not self._counts:
            self._allocate(keys, values)
        starts, self._counts = self._counts, [a + b for a, b in zip(self._counts, rows.counts, strict=True)]
        start, new = starts[0], rows.counts[0]
        if min(starts) == max(starts) and min(rows.counts) == max(rows.counts):
            places = slice(start, start + new)
            self._keys[:, :, places], self._values[:, :, places] = keys, values
            self._positions[:, places] = rows.positions
            return
        device = keys.device
        count = torch.tensor(rows.counts, device=device)
        sequence = torch.arange(len(starts), device=device).repeat_interleave(count)
        within = torch.arange(rows.total, device=device) - (count.cumsum(0) - count)[sequence]
        places = torch.tensor(starts, device=device)[sequence] + within
        self._keys[sequence, :, places] = keys[sequence, :, within]
        self._values[sequence, :, places] = values[sequence, :, within]
        self._positions[sequence, places] = rows.positions.expand(len(starts), -1)[sequence, within]

    def _allocate(self, keys: Tensor, values: Tensor) -> None:
        batch, heads, _, size = keys.shape
        # Zeros, for a place that is not visible must still hold a number.
        self._keys = keys.new_zeros(batch, heads, self._places, size)
        self._values = values.new_zeros(batch, heads, self._places, values.shape[-1])
        self._positions = torch.full((batch, self._places), FAR, device=keys.device)
        self._counts = [0] * batch
