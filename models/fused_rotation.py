"""The rotation of rotary positions as one operation, for what runs eagerly on CUDA: forward and backward.

`models.embeddings.rotate` is the formula. As PyTorch operations it takes about ten launches a tensor, whose
intermediate results in float32 pass through the GPU's memory; here queries and keys take one launch together
where Triton is installed (CUDA builds of PyTorch bring it), otherwise a complex product. Both read and write
the format of the input and compute in that of the tables, and both are deterministic.

A rotation's gradient is rotated by the negative angle, so that only the tables are kept for it. The gradient
of queries, keys and values is written where the projection's backward reads it, without a concatenation.

Shapes: P parts of a projection, H heads, D head size; ... leading dimensions, (B, n) or (N,).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models import triton_kernels
from models.triton_kernels import has_kernel

NUMBERS_OF_A_PROGRAM = 2048  # of a part, at most: more would not fit the registers of four warps


class FusedRotation(torch.autograd.Function):
    """x (..., P * H, D) -> P parts (..., H, D), the first `rotated` of them rotated, the others views of x.

    cos, sin: (rows, D/2), as for `turn`. No second derivatives.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, parts: int, rotated: int
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos, sin)
        ctx.rotated = rotated
        sources = x.chunk(parts, dim=-2)
        targets = [source.new_empty(source.shape) for source in sources[:rotated]]
        turn(sources[:rotated], targets, cos, sin, rotated)
        return (*targets, *sources[rotated:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        *leading, heads, size = grads[0].shape
        grad = grads[0].new_empty(*leading, len(grads) * heads, size)
        turn(grads, grad.chunk(len(grads), dim=-2), cos, sin, ctx.rotated, inverse=True)
        return grad, None, None, None, None


def turn(
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
    cos: Tensor,
    sin: Tensor,
    rotated: int,
    inverse: bool = False,
) -> None:
    """Write the rotation of each source (..., H, D) into its target; after the first `rotated`, a copy of it.

    cos, sin: (rows, D/2), contiguous; token i of all leading dimensions takes row i % rows. inverse: by the
    negative angle.
    """
    if not sources[0].numel():
        return
    form = turn_by_kernel if has_kernel(sources[0]) else turn_by_product
    form(sources, targets, cos, sin, rotated, inverse)


def turn_by_product(
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
    cos: Tensor,
    sin: Tensor,
    rotated: int,
    inverse: bool,
) -> None:
    """`turn` without Triton: a pair of numbers is a complex number, times exp(i * angle)."""
    factor = torch.complex(cos, -sin if inverse else sin)[:, None]  # (rows, 1, D/2)
    for source, target in zip(sources[:rotated], targets[:rotated], strict=True):
        work = source.to(cos.dtype, memory_format=torch.contiguous_format).contiguous()
        pairs = torch.view_as_complex(work.view(-1, len(cos), source.shape[-2], cos.shape[-1], 2))
        target.copy_(torch.view_as_real(pairs * factor).view(source.shape))
    for source, target in zip(sources[rotated:], targets[rotated:], strict=True):
        target.copy_(source)


def turn_by_kernel(
    sources: Sequence[Tensor],
    targets: Sequence[Tensor],
    cos: Tensor,
    sin: Tensor,
    rotated: int,
    inverse: bool,
) -> None:
    """`turn` in one launch."""
    *_, length, heads, size = sources[0].shape
    sources = [source if source.stride(-1) == 1 else source.contiguous() for source in sources]
    # Of batch, token, head; packed tokens are a batch of one.
    strides = tuple((0, *x.stride()[:-1])[-3:] for x in (*sources, *targets))
    block, all_heads = (1 << (number - 1).bit_length() for number in (size, heads))  # powers of two
    block_heads = min(all_heads, max(1, NUMBERS_OF_A_PROGRAM // block))
    triton_kernels.turn_token[sources[0].shape[:-2].numel(), all_heads // block_heads](
        (*sources, *targets), strides, cos, sin, length, len(cos), len(sources), rotated, inverse,
        heads, size, block_heads, block,
    )  # fmt: skip
