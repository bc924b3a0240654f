"""The active tokens of a pass: which tokens it computes, at which positions, and how they lie in memory.

Everything except attention works token by token. A pass can therefore hold any of a batch's tokens: as a
rectangle (B, n, C) where every sequence has n of them, otherwise packed one after another, (N, C). Only
attention needs a rectangle, and pads for it.

Shapes: B batch, T tokens of the input, n or N active tokens, H heads, D head size.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

PADDING = 2**30  # the position of padding: after every token, so that no token attends to it


class InputGrid(NamedTuple):
    """The B x T tokens of a forward pass.

    positions: (T,) where all sequences have the same, otherwise (B, T). rotation: cosines and sines of these
    positions (`models.embeddings.Rotary`), or None.
    """

    batch: int
    length: int
    positions: Tensor
    rotation: tuple[Tensor, ...] | None


class ActiveTokens:
    """The tokens that take a pass, sequence by sequence, each sequence in the order of its positions.

    Attributes:
        grid: the tokens of the input, of which these are some.
        index: (count,) place b * T + t of each token in the grid; None where the whole grid is active.
        counts: active tokens of each sequence.
        shape: (B, n) or (N,), the leading shape of their representations.
        positions: (T,) or (B, n); for sequences of unequal counts padded with PADDING.
        rotation: cosines and sines that broadcast to (*shape, D/2), or None.
    """

    def __init__(
        self,
        grid: InputGrid,
        index: Tensor | None = None,
        counts: Sequence[int] | None = None,
        origin: Tensor | None = None,
    ) -> None:
        """origin: for each token its place among those it was selected from; None: all of them."""
        self.grid, self.index, self._origin = grid, index, origin
        self._slot: Tensor | None = None  # of a packed token in the padded rectangle
        self.shape: tuple[int, ...]
        if index is None or counts is None:
            self.counts = [grid.length] * grid.batch
            self.shape = (grid.batch, grid.length)
            self.positions, self.rotation = grid.positions, grid.rotation
            return
        self.counts = list(counts)
        where = index % grid.length if grid.positions.dim() == 1 else index
        positions = grid.positions.flatten()[where]
        rotation = grid.rotation and tuple(table.flatten(0, -2)[where] for table in grid.rotation)
        longest = max(self.counts)
        if min(self.counts) == longest:
            self.shape = (grid.batch, longest)
            self.positions = positions.view(self.shape)
            self.rotation = rotation and tuple(table.unflatten(0, self.shape) for table in rotation)
        else:
            self.shape = (len(index),)
            self.rotation = rotation
            self._slot = without_waiting(_padded_slots(self.counts, longest), index.device)
            padded = positions.new_full((grid.batch * longest,), PADDING)
            self.positions = replace(padded, self._slot, positions).view(grid.batch, longest)

    @property
    def count(self) -> int:
        """Active tokens of the batch."""
        return sum(self.counts)

    @property
    def flat_index(self) -> Tensor:
        """`index`, written out where the whole grid is active: (count,)."""
        if self.index is None:
            return torch.arange(self.count, device=self.grid.positions.device)
        return self.index

    def select(self, chosen: Tensor) -> "ActiveTokens":
        """The k tokens of each sequence at `chosen` (B, k), ascending places in (B, n)."""
        batch, k = chosen.shape
        first = torch.arange(batch, device=chosen.device)[:, None] * self.shape[1]
        origin = (first + chosen).flatten()
        return ActiveTokens(self.grid, self.flat_index[origin], [k] * batch, origin)

    def filter(self, mask: Tensor) -> "ActiveTokens":
        """The tokens where mask (*shape) is true: any number of each sequence.

        The host must know how many: it waits for the mask, once.
        """
        chosen = mask.flatten().cpu().nonzero().squeeze(1)
        if len(chosen) == self.count:
            return self.all()
        sequence = torch.arange(self.grid.batch).repeat_interleave(torch.tensor(self.counts))
        counts = torch.bincount(sequence[chosen], minlength=self.grid.batch).tolist()
        origin = without_waiting(chosen, mask.device)
        return ActiveTokens(self.grid, self.flat_index[origin], counts, origin)

    def first(self, counts: Sequence[int]) -> "ActiveTokens":
        """The first counts[b] tokens of each sequence b, where the whole grid is active."""
        if min(counts) == self.grid.length:
            return self.all()
        index = without_waiting(_padded_slots(counts, self.grid.length), self.grid.positions.device)
        return ActiveTokens(self.grid, index, counts, index)

    def all(self) -> "ActiveTokens":
        """The same tokens, as a selection of all of them."""
        return (
            ActiveTokens(self.grid)
            if self.index is None
            else ActiveTokens(self.grid, self.index, self.counts)
        )

    def gather(self, x: Tensor) -> Tensor:
        """x (*shape of the tokens these were selected from, ...) -> (*shape, ...)."""
        if self._origin is None:
            return x
        return take(x.flatten(0, len(x.shape) - 2), self._origin).unflatten(0, self.shape)

    def places_in(self, others: "ActiveTokens") -> Tensor:
        """For each of these tokens its place among `others`, which include them all: (count,)."""
        if others.index is None:
            return self.flat_index
        return torch.searchsorted(others.index, self.flat_index)  # both ascend

    def pad(self, x: Tensor) -> Tensor:
        """x (*shape, H, D) -> (B, H, n, D), for attention."""
        if self._slot is not None:
            padded = replace(x.new_zeros(self.positions.numel(), *x.shape[1:]), self._slot, x)
            x = padded.unflatten(0, self.positions.shape)
        return x.transpose(1, 2)

    def unpad(self, x: Tensor) -> Tensor:
        """The inverse of `pad`: (B, H, n, D) -> (*shape, H, D)."""
        x = x.transpose(1, 2)
        return x if self._slot is None else take(x.flatten(0, 1), self._slot)

    def last(self, x: Tensor) -> Tensor:
        """x (*shape, C) -> (B, 1, C): the last token of each sequence."""
        if self._slot is None:
            return x[:, -1:]
        ends = without_waiting(torch.tensor(self.counts).cumsum(0) - 1, x.device)
        return x.index_select(0, ends)[:, None]


class CachePlaces:
    """Places of a layer's tokens in its cache, sequence by sequence, without gaps; the same for many layers.

    Attributes:
        counts: tokens of each sequence.
        positions: (S,) or (B, S), S the most tokens of a sequence, filled up with PADDING. If all tokens were
            written at once, this is their `ActiveTokens.positions` itself.
        newest: how the newest tokens lie: places from a to b of all sequences, (a, b); or their sequences,
            places, and places among the new tokens of their sequence, (count,) each.
    """

    def __init__(
        self, counts: Sequence[int], positions: Tensor | None = None, newest: Sequence[Any] = (0, 0)
    ) -> None:
        self.counts, self._positions, self.newest = counts, positions, newest
        self.longest, self.is_even = max(counts), min(counts) == max(counts)

    @property
    def positions(self) -> Tensor:
        assert self._positions is not None  # there are tokens
        return self._positions

    def extended(self, tokens: ActiveTokens) -> "CachePlaces":
        """These places, and after them those of new tokens. What is made from lists is copied once."""
        counts = [old + more for old, more in zip(self.counts, tokens.counts, strict=True)]
        new = tokens.positions
        even = self.is_even and min(tokens.counts) == max(tokens.counts)
        if even:
            newest = [self.longest, counts[0]]
        else:
            count = torch.tensor(tokens.counts)
            sequence = torch.arange(len(counts)).repeat_interleave(count)
            within = torch.arange(tokens.count) - (count.cumsum(0) - count)[sequence]
            lists = torch.stack((sequence, torch.tensor(self.counts)[sequence] + within, within))
            newest = without_waiting(lists, new.device).unbind()
        if not self.longest:
            return CachePlaces(counts, new, newest)
        old, new = (x.expand(len(counts), -1) for x in (self.positions, new))
        if even:
            return CachePlaces(counts, torch.cat((old, new), dim=1), newest)
        sequence, places, within = newest
        positions = F.pad(old, (0, max(counts) - self.longest), value=PADDING)
        positions[sequence, places] = new[sequence, within]
        return CachePlaces(counts, positions, newest)


def without_waiting(x: Tensor, device: torch.device) -> Tensor:
    """x of the CPU, on `device`. The host goes on: CUDA copies x aside before it returns."""
    return x.to(device, non_blocking=True)


def _padded_slots(counts: Sequence[int], width: int) -> Tensor:
    """Packed tokens -> their places in a (B, width) rectangle: (sum of counts,), on the CPU."""
    count = torch.tensor(counts)
    starts = count.cumsum(0) - count
    shift = torch.arange(len(counts)) * width - starts
    return torch.arange(sum(counts)) + shift.repeat_interleave(count)


def take(x: Tensor, place: Tensor) -> Tensor:
    """Rows of x (N, ...) at distinct places (n,): (n, ...)."""
    return _Take.apply(x, place) if _would_sort(x) else x.index_select(0, place)


def replace(x: Tensor, place: Tensor, new: Tensor) -> Tensor:
    """x (N, ...), its rows at distinct places (n,) replaced by new (n, ...)."""
    return _Replace.apply(x, place, new) if _would_sort(x) else x.index_copy(0, place, new)


def replace_at(x: Tensor, place: Tensor, new: Tensor) -> Tensor:
    """x (*, C), its tokens flattened, with those at `place` replaced by `new`."""
    return replace(x.flatten(0, -2), place, new.flatten(0, -2).to(x.dtype)).view_as(x)


def _would_sort(x: Tensor) -> bool:
    """Whether index_copy, and index_select backward, would sort: in eight kernels, as places might repeat."""
    return x.is_cuda and torch.are_deterministic_algorithms_enabled() and not torch.compiler.is_compiling()


def put_(x: Tensor, place: Tensor, new: Tensor) -> Tensor:
    """x[place] = new for distinct places, in two kernels: of one number the maximum is that number."""
    index = place.view(-1, *[1] * (new.dim() - 1)).expand_as(new)
    return x.scatter_reduce_(0, index, new, "amax", include_self=False)


class _Take(torch.autograd.Function):
    """`take`, in deterministic mode on CUDA."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        ctx.shape = x.shape
        return x.index_select(0, place)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (place,) = ctx.saved_tensors
        return put_(grad.new_zeros(ctx.shape), place, grad), None


class _Replace(torch.autograd.Function):
    """`replace`, in deterministic mode on CUDA."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, place: Tensor, new: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        return put_(x.clone(), place, new)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (place,) = ctx.saved_tensors
        needs_x, _, needs_new = ctx.needs_input_grad
        grad_x = grad.index_fill(0, place, 0) if needs_x else None
        return grad_x, None, grad.index_select(0, place) if needs_new else None


def final_states(by_pass: Sequence[tuple[ActiveTokens, Tensor]], tokens: ActiveTokens) -> Tensor:
    """Each token's representation after the last pass that it took: (*tokens.shape, C).

    by_pass: the active tokens of each pass and their representations after it; all of `tokens` took the
    first. A token's newest representation is its last among those of all passes, which one gather reads.
    """
    if len(by_pass) == 1:
        return by_pass[0][1]
    everything = torch.cat([x.flatten(0, -2) for _, x in by_pass])
    index = torch.cat([active.flat_index for active, _ in by_pass])
    number = torch.arange(len(index), device=index.device)
    newest = index.new_zeros(tokens.grid.batch * tokens.grid.length).scatter_reduce_(0, index, number, "amax")
    if tokens.index is not None:
        newest = newest[tokens.index]
    return take(everything, newest).unflatten(0, tokens.shape)
