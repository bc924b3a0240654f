"""Attention masks between the active tokens of a pass and the keys of all passes so far.

Shapes: B batch, n queries, S_i keys of the i-th pass, S all of them.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from models.active_tokens import PADDING

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

ALIGNMENT = 16  # numbers: kernels read at most 16 bytes at once, and PyTorch pads rows to 16 in gradients


class MaskBlock(NamedTuple):
    """A block of queries and the keys that at least one of them attends to.

    keys: (number of a pass, which of its keys). bias: 0 or -inf, added to the scores of those keys, one pass
    after another: (queries, keys) or (B, 1, queries, keys); None: nothing to add.
    """

    queries: slice
    keys: list[tuple[int, slice]]
    bias: Tensor | None


class AttentionMask:
    """Which keys each query attends to: those at its own position and before, at most `window` positions.

    Made once for each pass of a forward pass and shared by all its layers. Tensors are made when first used.
    """

    def __init__(
        self, query: Tensor, keys: Sequence[Tensor], window: int | None = None, sees_all: bool = False
    ) -> None:
        """
        Args:
            query: positions of the queries, (n,) or (B, n).
            keys: positions of each pass' keys, (S_i,) or (B, S_i). A pass whose positions are `query` itself
                is that of the queries, or one of the same tokens.
            sees_all: every key is visible, as to the newest token of a text.
        """
        self._query, self._keys, self._window, self._sees_all = query, keys, window, sees_all
        self._made: dict[Hashable, Any] = {}

    @property
    def is_causal(self) -> bool:
        """Whether there is one pass, and query i sees its first i + 1 keys: no tensor is needed then."""
        return len(self._keys) == 1 and self._is_causal_pass(0)

    @property
    def every_pass_is_causal(self) -> bool:
        """Whether query i sees the first i + 1 keys of each pass."""
        return all(self._is_causal_pass(number) for number in range(len(self._keys)))

    @property
    def tensor(self) -> Tensor | None:
        """True where a query attends, over all passes: (n, S), or (B, 1, n, S) where sequences differ.

        None where `is_causal`, or where every key is visible.
        """
        if self._sees_all or self.is_causal:
            return None
        return self._once("tensor", self._over_all_passes)

    def bias(self, dtype: torch.dtype) -> Tensor | None:
        """`tensor` as a kernel of CUDA takes it: 0 where a query attends, -inf elsewhere, in `dtype`.

        Each row starts at a multiple of ALIGNMENT numbers. PyTorch would make all this anew in every layer.
        """
        if self._sees_all or self.is_causal:
            return None
        return self._once(dtype, lambda: _aligned_bias(self._over_all_passes(), dtype))

    @property
    def block_mask(self) -> "BlockMask | None":
        """`tensor` as FlexAttention takes it, with the blocks that are hidden as a whole."""
        if self._sees_all or self.is_causal:
            return None
        return self._once("block mask", self._block_mask)

    def blocks(self, size: int, dtype: torch.dtype) -> list[MaskBlock]:
        """The mask as blocks of `size` queries, each with the keys that it needs; biases in `dtype`.

        Keys that no query of a block sees are left out at both ends: before its window, and after it.
        """
        starts = range(0, self._query.shape[-1], size)
        return self._once((size, dtype), lambda: [self._block(start, size, dtype) for start in starts])

    def _is_causal_pass(self, number: int) -> bool:
        return self._keys[number] is self._query and self._window is None and not self._sees_all

    def _over_all_passes(self) -> Tensor:
        return visible(self._query, self._all_keys(), self._window)

    def _all_keys(self) -> Tensor:
        """Positions of the keys of all passes, (S,) or (B, S)."""
        keys = self._keys
        if any(positions.dim() == 2 for positions in keys):
            batch = max(len(positions) for positions in keys if positions.dim() == 2)
            keys = [positions.expand(batch, -1) for positions in keys]
        return torch.cat(list(keys), -1)

    def _block_mask(self) -> "BlockMask":
        from torch.nn.attention.flex_attention import create_block_mask

        query, key, window = self._query, self._all_keys(), self._window

        def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            query_position = query[i] if query.dim() == 1 else query[b, i]
            key_position = key[j] if key.dim() == 1 else key[b, j]
            return _sees(query_position, key_position, window)

        batch = max([len(x) for x in (query, key) if x.dim() == 2], default=None)
        return create_block_mask(sees, batch, None, query.shape[-1], key.shape[-1], query.device.type)

    def _block(self, start: int, size: int, dtype: torch.dtype) -> MaskBlock:
        queries = slice(start, min(start + size, self._query.shape[-1]))
        keys, biases = [], []
        for number, positions in enumerate(self._keys):
            if self._sees_all:
                keys.append((number, slice(0, positions.shape[-1])))
                continue
            if self._is_causal_pass(number):
                seen = slice(0, queries.stop)
                form = {"dtype": dtype, "device": positions.device}
                bias = torch.full((queries.stop - start, queries.stop), -torch.inf, **form).triu_(start + 1)
            else:
                mask = self._once(number, lambda p=positions: visible(self._query, p, self._window))
                mask = mask[..., queries, :]
                some = mask.flatten(0, -2).any(0).nonzero()
                if not len(some):
                    continue
                seen = slice(int(some[0]), int(some[-1]) + 1)
                mask = mask[..., seen]
                bias = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)
            keys.append((number, seen))
            biases.append(bias)
        return MaskBlock(queries, keys, _joined(biases))

    def _once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """`make()`, kept for the next time.

        A compiler finds by itself what is made twice, and refuses side effects under activation
        checkpointing.
        """
        if torch.compiler.is_compiling():
            return make()
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def _aligned_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where the mask is true, -inf elsewhere, as a part of a tensor with longer rows."""
    keys = mask.shape[-1]
    row = -(-keys // ALIGNMENT) * ALIGNMENT
    bias = torch.zeros(*mask.shape[:-1], row, dtype=dtype, device=mask.device)[..., :keys]
    return bias.masked_fill_(~mask, -torch.inf)


def _joined(biases: Sequence[Tensor]) -> Tensor | None:
    """Biases of several passes, concatenated along the keys."""
    if len(biases) < 2:
        return biases[0] if biases else None
    batched = next((bias for bias in biases if bias.dim() == 4), None)
    if batched is not None:
        biases = [bias.expand(*batched.shape[:2], -1, -1) for bias in biases]
    return torch.cat(list(biases), dim=-1)


def visible(query_positions: Tensor, key_positions: Tensor, window: int | None) -> Tensor:
    """Whether a query attends to a key: at its own position or before, at most `window` positions.

    (n,) or (B, n) and (S,) or (B, S) -> (n, S), or (B, 1, n, S) where sequences differ.
    """
    mask = _sees(query_positions[..., :, None], key_positions[..., None, :], window)
    return mask if mask.dim() == 2 else mask[:, None]


def _sees(query: Tensor, key: Tensor, window: int | None) -> Tensor:
    """`visible` of any positions that broadcast."""
    mask = query >= key
    if window is None:
        return mask
    # Padding must see something, or its softmax would be NaN.
    return mask & ((query - key < window) | (query == PADDING))
