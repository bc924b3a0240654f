"""Which keys and values a query may see: the stores that attention asks.

Attention computes queries, keys and values of its rows and hands the keys and values, or what it makes them
from, to a store; the store answers with all that are visible, and how. What a pass may look at (its own
tokens, or those of earlier passes too) is a choice of store, and attention knows nothing of repeats. The
stores here forget when the forward pass is over; those of `models.cache` keep what they were given, for
generation.

Shapes: B batch, H heads, n rows of a pass, S visible tokens, D head size; H and D may differ from one kept
tensor to another.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from models.active_tokens import Rows
from models.attention_op import joined
from models.masks import Sights


class Visible(NamedTuple):
    """kept: what was handed in, of all visible tokens, (B, H, S, D) each: keys and values, say.

    mask: (n, S) or (B, 1, n, S), True where a query may look; None: anywhere. causal: with no mask, whether
    the i-th query sees the first i keys only.
    """

    kept: Sequence[Tensor]
    mask: Tensor | None
    causal: bool = False


class View(NamedTuple):
    """What rows may look at, pass by pass. passes: what was handed in, (B, H, S_i, D) each."""

    passes: Sequence[Sequence[Tensor]]
    sights: Sights

    def whole(self) -> Visible:
        """All passes, one behind the other."""
        return Visible(joined(self.passes), self.sights.whole_mask, self.sights.all_causal)


class Past(NamedTuple):
    """What a store would answer to a pass, but for the pass's own tensors, which are still to come.

    earlier: what was kept of passes before, (B, H, n, D) each. It stays what it is when the store is given
    more, so that a pass can be computed again from it.
    """

    earlier: Sequence[Sequence[Tensor]]
    sights: Sights

    def joined_by(self, kept: Sequence[Tensor]) -> View:
        """With the pass's own tensors."""
        return View([*self.earlier, kept], self.sights)


class Store(Protocol):
    """What one layer may look at.

    lasting: whether later forward passes will look at what is added, so that its size matters.
    """

    lasting: bool

    def add(self, kept: Sequence[Tensor], key_rows: Rows, query_rows: Rows) -> View:
        """Hand in tensors, (B, H, n, D) each, of `key_rows`; get what `query_rows` may see of their like."""


class ForwardStore(Store, Protocol):
    """A store that forgets when the forward pass is over. `add` is `past`, joined by the new, and `keep`."""

    def past(self, key_rows: Rows, query_rows: Rows) -> Past:
        """What `add` would answer with, without what is to be added."""

    def keep(self, kept: Sequence[Tensor], key_rows: Rows) -> None:
        """For passes to come."""


class Memory(Protocol):
    """Where the layers of a forward pass find their stores.

    lasting: whether later forward passes will look at what this one adds.
    """

    lasting: bool

    def own_pass(self, layer: Hashable, repeat: int = 1) -> Store:
        """Ordinary causal attention: a pass sees the tokens of the same repeat."""

    def all_passes(self, layer: Hashable, repeat: int) -> Store:
        """Cross-repeat attention (Eq. 3): pass r sees the tokens of passes 1..r."""


class ForwardMemory:
    """The stores of one forward pass, with gradients: keys and values are kept as they were computed."""

    lasting = False

    def __init__(self, window: int | None = None) -> None:
        self._own = _OwnPass(window)
        self._shared: dict[Hashable, _AllPasses] = {}
        self._sights: dict[int, Sights] = {}  # by number of passes; all layers share them
        self._window = window

    def own_pass(self, layer: Hashable, repeat: int = 1) -> ForwardStore:
        return self._own

    def all_passes(self, layer: Hashable, repeat: int) -> ForwardStore:
        if layer not in self._shared:
            self._shared[layer] = _AllPasses(self._sights, self._window)
        return self._shared[layer]


class _OwnPass:
    """A pass sees itself only. Serves every layer, for it keeps nothing but how it sees."""

    lasting = False

    def __init__(self, window: int | None) -> None:
        self._window = window
        self._last: tuple[Rows, Rows, Sights] | None = None

    def add(self, kept: Sequence[Tensor], key_rows: Rows, query_rows: Rows) -> View:
        return self.past(key_rows, query_rows).joined_by(kept)

    def past(self, key_rows: Rows, query_rows: Rows) -> Past:
        if self._last is None or self._last[0] is not key_rows or self._last[1] is not query_rows:
            sights = Sights(query_rows.positions, [key_rows.positions], self._window)
            self._last = key_rows, query_rows, sights
        return Past((), self._last[2])

    def keep(self, kept: Sequence[Tensor], key_rows: Rows) -> None:
        pass


class _AllPasses:
    """One layer's keys and values of all passes so far."""

    lasting = False

    def __init__(self, sights: dict[int, Sights], window: int | None) -> None:
        self._passes: list[tuple[Sequence[Tensor], Tensor]] = []
        self._sights, self._window = sights, window

    def add(self, kept: Sequence[Tensor], key_rows: Rows, query_rows: Rows) -> View:
        past = self.past(key_rows, query_rows)
        self.keep(kept, key_rows)
        return past.joined_by(kept)

    def past(self, key_rows: Rows, query_rows: Rows) -> Past:
        count = len(self._passes) + 1
        if count not in self._sights:
            keys = [*(positions for _, positions in self._passes), key_rows.positions]
            self._sights[count] = Sights(query_rows.positions, keys, self._window)
        return Past([kept for kept, _ in self._passes], self._sights[count])

    def keep(self, kept: Sequence[Tensor], key_rows: Rows) -> None:
        self._passes.append((kept, key_rows.positions))
