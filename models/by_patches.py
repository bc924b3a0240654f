"""Attention to what is seen of each pass by itself, with PyTorch's kernel, joined by the passes' log-sum-exp.

Shapes: B batch, H heads, n queries, S_i keys of the i-th pass, D size of a head.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.masks import Patch, Sights

# Measured on a CPU: shorter runs of queries leave out more keys, but make the kernel's products too small.
FEWEST_QUERIES, MOST_RUNS = 32, 16


def by_patches(queries: Tensor, passes: Sequence[Sequence[Tensor]], sights: Sights, scale: float) -> Tensor:
    """`attend`, a run of queries at a time: see `_ByPatches`."""
    tensors = [queries, *(tensor for one in passes for tensor in one)]
    step = max(FEWEST_QUERIES, queries.shape[2] // MOST_RUNS)
    work = torch.promote_types(queries.dtype, torch.float32)
    patches = [sights.patches(number, step, work) for number in range(len(passes))]
    return _ByPatches.apply(scale, step, work, patches, *tensors)


class _ByPatches(torch.autograd.Function):
    """For queries that see several patches: sum_i exp(L_i - L) times attention to the i-th alone.

    L_i is the logsumexp of its scores, L that of all. Backward the kernel is given the whole's result and L
    in place of the patch's own: what it then takes for its probabilities, exp(score - L), are those of the
    whole softmax, so that the gradients of the patch's keys and values come out right at once, and the
    queries' as a sum over patches.

    PyTorch's kernel for CPUs computes what a mask hides, and for short texts also what is_causal hides: a
    run of queries is therefore given no more keys than one of them sees. It gains nothing by half precision
    on the processors that we could measure; so its arithmetic is in float32, and what is kept for the
    backward pass stays as it was. Keys and values are used where they are: none is copied for later passes.
    """

    @staticmethod
    def forward(
        ctx: Any, scale: float, step: int, work: torch.dtype, patches: Sequence[Sequence[Patch | None]],
        *tensors: Tensor,
    ) -> Tensor:  # fmt: skip
        queries, *kept = [tensor.to(work) for tensor in tensors]
        y = torch.empty_like(queries)
        whole = queries.new_empty(queries.shape[:3])
        for run, seen in _runs(queries, patches, step):
            found = [
                torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                    queries[:, :, run], kept[2 * number][:, :, keys], kept[2 * number + 1][:, :, keys],
                    attn_mask=bias, scale=scale,
                )
                for number, (keys, bias, _) in seen
            ]  # fmt: skip
            if len(found) == 1:
                y[:, :, run], whole[:, :, run] = found[0]
                continue
            found = [_without(patch.blind, *one) for one, (_, patch) in zip(found, seen, strict=True)]
            sums = torch.stack([each for _, each in found])
            whole[:, :, run] = total = sums.logsumexp(0)
            shares = (sums - total).exp_()[..., None]
            y[:, :, run] = sum(part * share for (part, _), share in zip(found, shares, strict=True))
        ctx.settings = scale, step, work, patches
        y = y.to(tensors[0].dtype)
        ctx.save_for_backward(*tensors, y, whole)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale, step, work, patches = ctx.settings
        *tensors, y, whole = ctx.saved_tensors
        queries, *kept = [tensor.to(work) for tensor in tensors]
        grad, y = grad.to(work), y.to(work)
        of_queries = torch.empty_like(queries)
        of_kept: list[Tensor | None] = [None] * len(kept)
        # From the last run to the first: the last sees most keys, and what it gives is added to.
        for run, seen in reversed(list(_runs(queries, patches, step))):
            parts = []
            for number, (keys, bias, _) in seen:
                at = 2 * number
                part, *found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                    grad[:, :, run], queries[:, :, run], kept[at][:, :, keys], kept[at + 1][:, :, keys],
                    y[:, :, run], whole[:, :, run], 0.0, False, attn_mask=bias, scale=scale,
                )  # fmt: skip
                parts.append(part)
                for place, new in enumerate(found, start=at):
                    if of_kept[place] is None:
                        if new.shape == kept[place].shape:
                            of_kept[place] = new
                            continue
                        of_kept[place] = torch.zeros_like(kept[place])
                    of_kept[place][:, :, keys] += new
            of_queries[:, :, run] = parts[0] if len(parts) == 1 else sum(parts)
        of_kept = [torch.zeros_like(k) if new is None else new for k, new in zip(kept, of_kept, strict=True)]
        every = zip((of_queries, *of_kept), tensors, strict=True)
        return None, None, None, None, *(found.to(tensor.dtype) for found, tensor in every)


def _without(blind: Tensor | None, part: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """A patch's result without the queries that see nothing there, for which the kernel's sum is 0."""
    if blind is None:
        return part, sums
    return part.masked_fill(blind[..., None], 0.0), sums.masked_fill(blind, -torch.inf)


def _runs(
    queries: Tensor, patches: Sequence[Sequence[Patch | None]], step: int
) -> Iterator[tuple[slice, list[tuple[int, Patch]]]]:
    """(which queries, [(which pass, what they see of it)])."""
    for place, patches_of_run in enumerate(zip(*patches, strict=True)):
        seen = [(number, patch) for number, patch in enumerate(patches_of_run) if patch is not None]
        yield slice(place * step, min((place + 1) * step, queries.shape[2])), seen
