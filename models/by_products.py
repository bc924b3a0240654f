"""Attention as matrix products with a softmax between them, a run of queries at a time.

For half precision on CPUs that multiply it: PyTorch's kernel there gains nothing by it, products do.

Shapes: B batch, H heads, n queries, S_i keys of the i-th pass, D size of a head; of a run, q queries and k
keys, those of all passes one behind the other.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.masks import Run, Sights

# Queries of a run, as measured: shorter runs leave out more keys, longer ones have larger products.
SHORT_RUN, LONG_RUN = 128, 256
LONG = 1024  # queries


def by_products(queries: Tensor, passes: Sequence[Sequence[Tensor]], sights: Sights, scale: float) -> Tensor:
    """`attend`, a run of queries at a time: see `_ByProducts`."""
    step = LONG_RUN if len(passes) == 1 or queries.shape[2] >= LONG else SHORT_RUN
    runs = sights.runs(step, queries.dtype)
    return _ByProducts.apply(scale, runs, queries, *(tensor for one in passes for tensor in one))


class _ByProducts(torch.autograd.Function):
    """softmax(Q K^T) V; backward makes the probabilities again instead of keeping them.

    A product in half precision rounds its result: a score of 20 to the next eighth. What counts are the
    scores near a query's highest, and softmax does not mind a number taken off all of them. So the highest is
    found first, and scores are made again less that: the product adds up in float32, and what it rounds is
    then small where it counts. Backward has that number, and makes scores once. The gradients of the
    probabilities, too, matter only in how they differ from their mean, which is that of y times y: it is
    taken off them in the product.
    """

    @staticmethod
    def forward(ctx: Any, scale: float, runs: Sequence[Run], *tensors: Tensor) -> Tensor:
        queries, *kept = tensors
        batch, heads, length, _ = queries.shape
        # In the layout that the projection behind attention takes without a copy.
        y = queries.new_empty(batch, length, heads, kept[1].shape[-1]).transpose(1, 2)
        half = torch.finfo(queries.dtype).bits < 32
        highest = queries.new_empty(batch, heads, length, 1) if half else None
        for run in runs:
            asking, keys, values = _of_run(run, queries, kept)
            if half:
                scores = _sums(run.bias, None, asking, keys, scale)
                highest[:, :, run.queries] = scores.amax(-1, keepdim=True).unflatten(0, y.shape[:2])
            p = _sums(run.bias, _part(highest, run), asking, keys, scale).softmax(-1)
            y[:, :, run.queries] = torch.bmm(p, _flat(values)).unflatten(0, y.shape[:2])
        ctx.settings = scale, runs
        ctx.save_for_backward(highest, y, *tensors)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale, runs = ctx.settings
        highest, y, queries, *kept = ctx.saved_tensors
        mean = None if highest is None else (grad * y).sum(-1, keepdim=True)
        of_queries = torch.empty_like(queries)
        gradients = _Gradients(kept, len(runs))
        for run in runs:
            asking, keys, values = _of_run(run, queries, kept)
            of_y = grad[:, :, run.queries].contiguous()
            p = _sums(run.bias, _part(highest, run), asking, keys, scale).softmax(-1)
            of_values = torch.bmm(p.mT, _flat(of_y)).unflatten(0, y.shape[:2])
            of_p = _sums(None, _part(mean, run), of_y, values)
            of_scores = torch.ops.aten._softmax_backward_data(of_p, p, -1, p.dtype)
            of_queries[:, :, run.queries] = _scaled(of_scores, keys, scale)
            gradients.add(run, (_scaled(of_scores.mT, asking, scale), of_values))
        return None, None, of_queries, *gradients.take()


class _Gradients:
    """Those of keys and values, which many runs see: added up in float32 at least."""

    def __init__(self, kept: Sequence[Tensor], n_runs: int) -> None:
        self._kept, self._alone = kept, n_runs == 1
        self._sums: list[Tensor | None] = [None] * len(kept)

    def add(self, run: Run, gradients: Sequence[Tensor]) -> None:
        """gradients: of the run's keys and of its values, (B, H, k, D)."""
        sizes = [keys.stop - keys.start for _, keys in run.keys]
        for kind, gradient in enumerate(gradients):
            parts = gradient.split(sizes, dim=2)
            for (number, keys), part in zip(run.keys, parts, strict=True):
                place = 2 * number + kind
                if self._alone and part.shape == self._kept[place].shape:
                    self._sums[place] = part
                    continue
                if self._sums[place] is None:
                    work = torch.promote_types(part.dtype, torch.float32)
                    self._sums[place] = torch.zeros_like(self._kept[place], dtype=work)
                self._sums[place][:, :, keys] += part

    def take(self) -> list[Tensor]:
        return [
            torch.zeros_like(kept) if found is None else found.to(kept.dtype)
            for kept, found in zip(self._kept, self._sums, strict=True)
        ]


def _flat(x: Tensor) -> Tensor:
    """(B, H, n, D) -> (B * H, n, D)."""
    return x.flatten(0, 1)


def _of_run(run: Run, queries: Tensor, kept: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, and the keys and values of all passes that they see: (B, H, q or k, D) each."""
    keys, values = (
        torch.cat([kept[2 * number + kind][:, :, keys] for number, keys in run.keys], dim=2)
        for kind in range(2)
    )
    return queries[:, :, run.queries].contiguous(), keys, values


def _part(x: Tensor | None, run: Run) -> Tensor | None:
    return None if x is None else x[:, :, run.queries]


def _sums(
    bias: Tensor | None, less: Tensor | None, asking: Tensor, keys: Tensor, scale: float = 1.0
) -> Tensor:
    """bias - less + scale * asking @ keys^T, added up before anything is rounded: (B * H, q, k).

    less: (B, H, q, 1). asking (B, H, q, D), keys (B, H, k, D).
    """
    shape = *asking.shape[:3], keys.shape[2]
    sums = asking.new_zeros(()) if bias is None else bias
    if less is not None:
        sums = sums - less
    if less is None or sums.shape != shape:  # it is not memory of our own, of that size
        sums = sums.expand(shape).clone(memory_format=torch.contiguous_format)
    return _flat(sums).baddbmm_(_flat(asking), _flat(keys).mT, alpha=scale)


def _scaled(scores: Tensor, of: Tensor, scale: float) -> Tensor:
    """scale * scores (B * H, q, k) @ of (B, H, k, D): (B, H, q, D)."""
    product = torch.baddbmm(of.new_empty(()), scores, _flat(of), beta=0, alpha=scale)
    return product.unflatten(0, of.shape[:2])
