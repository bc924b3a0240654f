"""What the rows of a pass may see of the passes whose keys and values they look at.

Shapes: B batch, n rows that ask, S_i rows of the i-th pass, S all of them.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from models.active_tokens import FAR

Made = TypeVar("Made")


class Patch(NamedTuple):
    """What a run of queries sees of a pass: a run of its keys, and what is added to their scores, 0 or -inf.

    bias: (queries, keys) or (B, 1, queries, keys); None: they see all of these. blind: which queries see none
    of them, (queries,) or (B, 1, queries); None: nobody.
    """

    keys: slice
    bias: Tensor | None
    blind: Tensor | None = None


class Run(NamedTuple):
    """What a run of queries sees of all passes: (number of a pass, which of its keys) each.

    bias: what is added to the scores of those keys, one behind the other: (queries, keys) or
    (B, 1, queries, keys); None: nothing.
    """

    queries: slice
    keys: list[tuple[int, slice]]
    bias: Tensor | None


class Sights:
    """Made once for a pass of a forward pass, and shared by all its layers (by a cache: for each layer).

    Masks are made when first asked for. One is True where a query may look: (n, S), or (B, 1, n, S) where
    sequences differ; None: see `causal`.
    """

    def __init__(
        self, query: Tensor, keys: Sequence[Tensor], window: int | None = None, everything: bool = False
    ) -> None:
        """query: positions of the rows, (n,) or (B, n). keys: of each pass, (S_i,) or (B, S_i).

        A pass whose positions are `query` itself is the rows' own, or one of the same rows. everything: all
        keys are visible, as they are to the newest token.
        """
        self._query, self._keys, self._window, self._everything = query, keys, window, everything
        self._made: dict[Hashable, Any] = {}

    def causal(self, number: int) -> bool:
        """Of the `number`-th pass: whether the i-th query sees its first i keys; no mask is needed then."""
        return self._keys[number] is self._query and self._window is None and not self._everything

    def mask(self, number: int) -> Tensor | None:
        """Of the `number`-th pass, (n, S_i) or (B, 1, n, S_i)."""
        if self._everything or self.causal(number):
            return None
        return self._once(number, lambda: visible(self._query, self._keys[number], self._window))

    def patches(self, number: int, step: int, dtype: torch.dtype) -> list[Patch | None]:
        """Of the `number`-th pass, for each run of `step` queries; None where they see nothing.

        Keys that none of them sees are left out at both ends: before all of a window, and behind them.
        """
        starts = range(0, self._query.shape[-1], step)
        which = None if self.causal(number) else number  # causal passes have the same patches
        return self._once(
            (which, step, dtype),
            lambda: [self._patch(number, slice(start, start + step), dtype) for start in starts],
        )

    def runs(self, step: int, dtype: torch.dtype) -> list[Run]:
        """All passes, for each run of `step` queries."""
        return self._once(("runs", step, dtype), lambda: [*self._runs(step, dtype)])

    def _runs(self, step: int, dtype: torch.dtype) -> Iterator[Run]:
        by_pass = [self.patches(number, step, dtype) for number in range(len(self._keys))]
        for place, patches in enumerate(zip(*by_pass, strict=True)):
            seen = [(number, patch) for number, patch in enumerate(patches) if patch is not None]
            stop = min((place + 1) * step, self._query.shape[-1])
            keys = [(number, patch.keys) for number, patch in seen]
            yield Run(slice(place * step, stop), keys, _joined([patch.bias for _, patch in seen]))

    def _patch(self, number: int, run: slice, dtype: torch.dtype) -> Patch | None:
        if self._everything:
            return Patch(slice(0, self._keys[number].shape[-1]), None)
        if self.causal(number):
            end = min(run.stop, self._query.shape[-1])
            form = {"dtype": dtype, "device": self._query.device}
            bias = torch.full((end - run.start, end), -torch.inf, **form).triu_(run.start + 1)
            return Patch(slice(0, end), bias)
        mask = self.mask(number)[..., run, :]
        seen = mask.flatten(0, -2).any(0).nonzero()
        if not len(seen):
            return None
        keys = slice(int(seen[0]), int(seen[-1]) + 1)
        mask = mask[..., keys]
        bias = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)
        blind = ~mask.any(-1)
        return Patch(keys, bias, blind if blind.any() else None)

    @property
    def all_causal(self) -> bool:
        """Whether all passes, taken together, are one whose i-th key is the last that the i-th query sees."""
        return len(self._keys) == 1 and self.causal(0)

    @property
    def whole_mask(self) -> Tensor | None:
        """Of all passes, one behind the other."""
        if self._everything or self.all_causal:
            return None
        return self._once("whole", self._visible_of_all)

    def _once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What was made when it was first asked for.

        A compiler finds by itself what is made twice, and refuses side effects of a checkpointed stretch.
        """
        if torch.compiler.is_compiling():
            return make()
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _visible_of_all(self) -> Tensor:
        keys = self._keys
        if any(positions.dim() == 2 for positions in keys):
            batch = max(len(positions) for positions in keys if positions.dim() == 2)
            keys = [positions.expand(batch, -1) for positions in keys]
        return visible(self._query, torch.cat(list(keys), -1), self._window)


def _joined(biases: Sequence[Tensor | None]) -> Tensor | None:
    """One behind the other. Either none of them is None, or all are."""
    if biases[0] is None or len(biases) == 1:
        return biases[0]
    for bias in biases:
        if bias.dim() == 4:
            lead = (*bias.shape[:2], -1, -1)
            biases = [bias.expand(lead) for bias in biases]
            break
    return torch.cat(list(biases), dim=-1)


def visible(query_positions: Tensor, key_positions: Tensor, window: int | None) -> Tensor:
    """A query sees keys at its own position and before, at most `window` positions.

    (n,) or (B, n) and (S,) or (B, S) -> (n, S), or (B, 1, n, S) where sequences differ.
    """
    query, key = query_positions[..., :, None], key_positions[..., None, :]
    mask = query >= key
    if window is not None:
        mask &= (query - key < window) | (query == FAR)  # padding must see something, lest softmax gives NaN
    return mask if mask.dim() == 2 else mask[:, None]
