"""Which tokens a pass computes, where they stand, and how they lie in memory.

All work except attention is done row by row. A pass can therefore hold any of a batch's tokens: as a
rectangle (B, n, C) where every sequence has n of them, else one behind the other, (N, C). Only attention
needs a rectangle, and pads the rows for it.

Shapes: B batch, T tokens of the input, n or N tokens of a pass, H heads, D head size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

FAR = 2**30  # the position of padding: behind every token, so that no token sees it


class Grid(NamedTuple):
    """The input of a forward pass: B x T tokens.

    positions: (T,) where all sequences stand alike, else (B, T). rotation: of these positions, or None.
    """

    batch: int
    length: int
    positions: Tensor
    rotation: tuple[Tensor, Tensor] | None


class Rows:
    """The tokens that take a pass, sequence by sequence, each in the order of its positions.

    shape: (B, n) or (N,), what their representations have before C. positions: (T,), (B, n), or, of uneven
    sequences, padded with FAR. rotation: cosines and sines that broadcast to (*shape, D/2). counts: rows of
    each sequence. token: for each row its place b * T + t in the grid; None when the rows are the grid.
    """

    def __init__(
        self,
        grid: Grid,
        token: Tensor | None = None,
        counts: Sequence[int] | None = None,
        origin: Tensor | None = None,
    ) -> None:
        """origin: for each row its place among the rows that these were chosen from."""
        self.grid, self.token, self._origin = grid, token, origin
        self._place: Tensor | None = None
        if token is None:
            self.counts = [grid.length] * grid.batch
            self.shape: tuple[int, ...] = (grid.batch, grid.length)
            self.positions, self.rotation = grid.positions, grid.rotation
            return
        self.counts = list(counts)
        where = token % grid.length if grid.positions.dim() == 1 else token
        positions = grid.positions.flatten()[where]
        rotation = grid.rotation and tuple(table.flatten(0, -2)[where] for table in grid.rotation)
        widest = max(self.counts)
        if min(self.counts) == widest:
            self.shape = (grid.batch, widest)
            self.positions = positions.view(self.shape)
            self.rotation = rotation and tuple(table.unflatten(0, self.shape) for table in rotation)
        else:
            self.shape = (len(token),)
            self.rotation = rotation
            self._place = _places(self.counts, token.device)
            padded = positions.new_full((grid.batch * widest,), FAR)
            self.positions = padded.index_copy(0, self._place, positions).view(grid.batch, widest)

    @property
    def total(self) -> int:
        return sum(self.counts)

    @property
    def tokens(self) -> Tensor:
        """Places in the grid, (total,)."""
        if self.token is None:
            return torch.arange(self.total, device=self.grid.positions.device)
        return self.token

    def choose(self, index: Tensor) -> "Rows":
        """The k rows of each sequence at index (B, k), ascending. Only of rows that form a rectangle."""
        batch, count = index.shape
        first = torch.arange(batch, device=index.device)[:, None] * self.shape[1]
        origin = (first + index).flatten()
        return Rows(self.grid, self.tokens[origin], [count] * batch, origin)

    def whole(self) -> "Rows":
        """All of the rows."""
        return Rows(self.grid) if self.token is None else Rows(self.grid, self.token, self.counts)

    def keep(self, mask: Tensor) -> "Rows":
        """The rows where mask, of this shape, is true: any number of each sequence."""
        origin = mask.flatten().nonzero().squeeze(1)
        if len(origin) == self.total:
            return self.whole()
        token = self.tokens[origin]
        counts = torch.bincount(token // self.grid.length, minlength=self.grid.batch)
        return Rows(self.grid, token, counts.tolist(), origin)

    def take(self, x: Tensor) -> Tensor:
        """x (*shape of the rows these were chosen from, ...) -> (*shape, ...)."""
        if self._origin is None:
            return x
        return x.flatten(0, len(x.shape) - 2).index_select(0, self._origin).unflatten(0, self.shape)

    def within(self, others: "Rows") -> Tensor:
        """For each of these rows its place among `others`, which hold them all: (total,)."""
        if others.token is None:
            return self.tokens
        place = self.tokens.new_zeros(self.grid.batch * self.grid.length)
        place[others.token] = torch.arange(others.total, device=place.device)
        return place[self.tokens]

    def to_batch(self, x: Tensor) -> Tensor:
        """x (*shape, H, D) -> (B, H, n, D), for attention."""
        if self._place is not None:
            padded = x.new_zeros(self.positions.numel(), *x.shape[1:]).index_copy(0, self._place, x)
            x = padded.unflatten(0, self.positions.shape)
        return x.transpose(1, 2)

    def from_batch(self, x: Tensor) -> Tensor:
        """The way back: (B, H, n, D) -> (*shape, H, D)."""
        x = x.transpose(1, 2)
        return x if self._place is None else x.flatten(0, 1).index_select(0, self._place)

    def last(self, x: Tensor) -> Tensor:
        """x (*shape, C) -> (B, 1, C): the last row of each sequence."""
        if self._place is None:
            return x[:, -1:]
        ends = torch.tensor(self.counts, device=x.device).cumsum(0) - 1
        return x.index_select(0, ends)[:, None]


def _places(counts: Sequence[int], device: torch.device) -> Tensor:
    """Rows one behind the other -> their places in a (B, widest) grid: (sum of counts,)."""
    count = torch.tensor(counts, device=device)
    starts = count.cumsum(0) - count
    shift = torch.arange(len(counts), device=device) * max(counts) - starts
    return torch.arange(sum(counts), device=device) + shift.repeat_interleave(count)


def latest(outputs: Sequence[tuple[Rows, Tensor]], rows: Rows) -> Tensor:
    """Each token's representation after the last pass that it took: (*rows.shape, C).

    outputs: by pass, the rows that took it and what they became; every one of `rows` took the first. A
    scatter: each pass writes down where a token's newest row is, and one gather reads them.
    """
    if len(outputs) == 1:
        return outputs[0][1]
    newest = rows.tokens.new_zeros(rows.grid.batch * rows.grid.length)
    start = 0
    for taken, _ in outputs:
        newest[taken.tokens] = torch.arange(start, start + taken.total, device=newest.device)
        start += taken.total
    everything = torch.cat([x.flatten(0, -2) for _, x in outputs])
    return everything.index_select(0, newest[rows.tokens]).unflatten(0, rows.shape)
