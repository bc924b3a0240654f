"""Stores that keep what they were given: the key/value cache of generation.

Prefill and decoding run the model's own forward pass; it is only these stores that remember. Memory for all
tokens is allocated when a layer is first used in a repeat, and each key is written once, behind the last one:
a token that halted before a repeat takes no place in it, and attention never looks at more than there is.

Shapes: B sequences, H heads, n new rows of a pass, S places, D head size; H and D may differ from one kept
tensor to another.
"""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from models.active_tokens import FAR, Rows
from models.key_values import Store, View
from models.masks import Sights


class Cache:
    """Keys and values of B growing texts, by layer and repeat; `lengths` says how far each has come."""

    lasting = True

    def __init__(self, batch: int, capacity: int, window: int | None = None, rows_per_token: int = 1) -> None:
        """capacity: tokens that a text can grow to. window: as in `attention_window_length`.

        rows_per_token: more than one where pauses stand behind each token; they are kept like tokens.
        """
        self.lengths = [0] * batch
        self._capacity, self._window, self._rows_per_token = capacity, window, rows_per_token
        self._stores: dict[tuple[Hashable, int], _Kept] = {}

    def advance(self, counts: Sequence[int]) -> None:
        """Make room for as many new tokens of each text. Raises ValueError when there is none."""
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
        """Memory that what was written so far takes, over the tokens of the texts."""
        return sum(store.bytes_used for store in self._stores.values()) / sum(self.lengths)

    def _kept(self, layer: Hashable, repeat: int) -> "_Kept":
        if (layer, repeat) not in self._stores:
            self._stores[layer, repeat] = _Kept(self._capacity * self._rows_per_token)
        return self._stores[layer, repeat]


class _Passes:
    """The store of a pass that sees what is kept of some passes, its own being the last of them."""

    lasting = True

    def __init__(self, passes: list["_Kept"], window: int | None) -> None:
        self._passes, self._window = passes, window

    def add(self, kept: Sequence[Tensor], key_rows: Rows, query_rows: Rows) -> View:
        own = self._passes[-1]
        own.write(kept, key_rows)
        newest = self._window is None and query_rows.grid.length == 1
        everything = newest and all(one.is_even for one in self._passes)
        query = query_rows.positions
        keys = [query if one.holds_only(query) else one.positions for one in self._passes]
        return View([one.tensors for one in self._passes], Sights(query, keys, self._window, everything))


class _Kept:
    """What one layer was given in one repeat, sequence by sequence, without gaps."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._counts: list[int] = []
        self._only: Tensor | None = None

    def holds_only(self, positions: Tensor) -> bool:
        """Whether all that it holds was given at once, by rows of these very positions."""
        return self._only is positions

    @property
    def is_even(self) -> bool:
        """Whether every sequence has as many."""
        return min(self._counts) == max(self._counts)

    @property
    def tensors(self) -> list[Tensor]:
        """(B, H, longest, D) each; of shorter sequences the rest is zeros, at position FAR."""
        return [tensor[:, :, : max(self._counts)] for tensor in self._tensors]

    @property
    def positions(self) -> Tensor:
        """(B, longest)."""
        return self._positions[:, : max(self._counts)]

    @property
    def bytes_used(self) -> int:
        """Of what was written so far."""
        if not self._counts:
            return 0
        row = sum(tensor[0, :, 0].numel() * tensor.element_size() for tensor in self._tensors)
        return sum(self._counts) * row

    def write(self, new: Sequence[Tensor], rows: Rows) -> None:
        """new: (B, H, n, D) each, of `rows`, put behind what is there."""
        self._only = None if any(self._counts) else rows.positions
        if not self._counts:
            self._allocate(new)
        starts, self._counts = self._counts, [a + b for a, b in zip(self._counts, rows.counts, strict=True)]
        if min(starts) == max(starts) and min(rows.counts) == max(rows.counts):
            places = slice(starts[0], starts[0] + rows.counts[0])
            for tensor, added in zip(self._tensors, new, strict=True):
                tensor[:, :, places] = added
            self._positions[:, places] = rows.positions
            return
        device = self._positions.device
        count = torch.tensor(rows.counts, device=device)
        sequence = torch.arange(len(starts), device=device).repeat_interleave(count)
        within = torch.arange(rows.total, device=device) - (count.cumsum(0) - count)[sequence]
        places = torch.tensor(starts, device=device)[sequence] + within
        for tensor, added in zip(self._tensors, new, strict=True):
            tensor[sequence, :, places] = added[sequence, :, within]
        self._positions[sequence, places] = rows.positions.expand(len(starts), -1)[sequence, within]

    def _allocate(self, new: Sequence[Tensor]) -> None:
        batch = len(new[0])
        # Zeros, for a place that is not visible must still hold a number.
        self._tensors = [
            tensor.new_zeros(batch, tensor.shape[1], self._places, tensor.shape[-1]) for tensor in new
        ]
        self._positions = torch.full((batch, self._places), FAR, device=new[0].device)
        self._counts = [0] * batch
