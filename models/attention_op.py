"""The attention operation: one softmax over the visible keys of one or several passes.

Shapes: B batch, H heads, n queries, S visible keys, D head size; in a block of queries q queries and k keys.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from hardware import cpu_multiplies_bfloat16
from models.kv_cache import KeysValues, Visible
from models.masks import MaskBlock

# Measured on a CPU with AVX512-BF16.
FEWEST_QUERIES = 16  # below, as in decoding, keys and values would be copied for little computation
FEWEST_SCORES, FEWEST_SCORES_IN_TRAINING = 2**20, 2**16
LONG, SHORT_BLOCK, LONG_BLOCK = 1024, 128, 256  # queries


def attention_op(
    queries: Tensor, visible: Visible, *, fast: bool, dropout: float = 0.0, scale: float | None = None
) -> Tensor:
    """Attend to the keys and values of all passes: queries (B, H, n, D) -> (B, H, n, D).

    Args:
        fast: use `cpu_matmul_attention` where it is faster (`--attention fast`).
        dropout: of attention probabilities.
        scale: of scores; None: 1 / sqrt(D).
    """
    scale = queries.shape[-1] ** -0.5 if scale is None else scale
    if visible.stored is not None:  # never with dropout
        keys, values = visible.passes[0]
        return visible.stored.attend(queries.to(keys.dtype), keys, values.to(keys.dtype), visible.mask, scale)
    dtype = _dtype(queries)
    if fast and not dropout and _cpu_matmul_is_faster(queries, visible.passes, dtype):
        passes = [[tensor.to(dtype) for tensor in keys_values] for keys_values in visible.passes]
        return cpu_matmul_attention(queries.to(dtype), Visible(passes, visible.mask), scale)
    keys, values = visible.concatenated()
    mask = visible.mask
    # A compiler leaves out by itself what is made anew in each layer.
    as_bias = queries.device.type == "cuda" and not torch.compiler.is_compiling()
    attn_mask = mask.bias(dtype) if as_bias else mask.tensor
    return F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=attn_mask, is_causal=mask.is_causal, dropout_p=dropout, scale=scale
    )


def _dtype(queries: Tensor) -> torch.dtype:
    """The format in which autocast computes attention."""
    device = queries.device.type
    autocast = torch.is_autocast_enabled(device) and queries.dtype != torch.float64
    return torch.get_autocast_dtype(device) if autocast else queries.dtype


def _cpu_matmul_is_faster(queries: Tensor, passes: Sequence[KeysValues], dtype: torch.dtype) -> bool:
    """On CPUs that multiply bfloat16, for enough scores. Compiling its many kernels would take minutes."""
    if queries.device.type != "cpu" or dtype != torch.bfloat16 or torch.compiler.is_compiling():
        return False
    if not cpu_multiplies_bfloat16() or not torch.backends.mkldnn.is_available():
        return False
    batch, heads, length, _ = queries.shape
    scores = batch * heads * length * sum(keys.shape[2] for keys, _ in passes)
    fewest = FEWEST_SCORES_IN_TRAINING if torch.is_grad_enabled() else FEWEST_SCORES
    return length >= FEWEST_QUERIES and scores >= fewest


def cpu_matmul_attention(queries: Tensor, visible: Visible, scale: float) -> Tensor:
    """`attention_op` as matrix products, block by block of queries: see `_CPUMatmulAttention`."""
    size = LONG_BLOCK if len(visible.passes) == 1 or queries.shape[2] >= LONG else SHORT_BLOCK
    blocks = visible.mask.blocks(size, queries.dtype)
    return _CPUMatmulAttention.apply(scale, blocks, queries, *(x for one in visible.passes for x in one))


class _CPUMatmulAttention(torch.autograd.Function):
    """softmax(scale Q K^T + bias) V; the backward pass recomputes the probabilities.

    PyTorch's attention kernel for CPUs gains nothing by bfloat16, matrix products do. A product in bfloat16
    rounds its result: a score of 20 to the nearest eighth. Softmax ignores a constant, and only scores near a
    query's largest matter: so the row maximum is subtracted before rounding, which limits the error. Likewise
    the mean (y . grad y) is subtracted from the gradients of probabilities before they are rounded.
    """

    @staticmethod
    def forward(ctx: Any, scale: float, blocks: Sequence[MaskBlock], *tensors: Tensor) -> Tensor:
        queries, *keys_values = tensors
        batch, heads, length, _ = queries.shape
        # (B, n, H, D) in memory, which the output projection takes without a copy.
        y = queries.new_empty(batch, length, heads, keys_values[1].shape[-1]).transpose(1, 2)
        half = torch.finfo(queries.dtype).bits < 32
        maximum = queries.new_empty(batch, heads, length, 1) if half else None
        for block in blocks:
            q, k, v = _of_block(block, queries, keys_values)
            if maximum is not None:
                scores = _biased_product(block.bias, None, q, k, scale)
                maximum[:, :, block.queries] = scores.amax(-1, keepdim=True).unflatten(0, y.shape[:2])
            p = _biased_product(block.bias, _rows(maximum, block), q, k, scale).softmax(-1)
            y[:, :, block.queries] = torch.bmm(p, v.flatten(0, 1)).unflatten(0, y.shape[:2])
        ctx.scale, ctx.blocks = scale, blocks
        ctx.save_for_backward(maximum, y, *tensors)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        maximum, y, queries, *keys_values = ctx.saved_tensors
        mean = None if maximum is None else (grad * y).sum(-1, keepdim=True)
        grad_queries = torch.empty_like(queries)
        # Many blocks add to the gradients of a key: summed in float32 at least.
        sums = [torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) for x in keys_values]
        for block in ctx.blocks:
            q, k, v = _of_block(block, queries, keys_values)
            grad_y = grad[:, :, block.queries].contiguous()
            p = _biased_product(block.bias, _rows(maximum, block), q, k, ctx.scale).softmax(-1)
            grad_p = _biased_product(None, _rows(mean, block), grad_y, v)
            grad_scores = torch.ops.aten._softmax_backward_data(grad_p, p, -1, p.dtype)
            grad_queries[:, :, block.queries] = _product(grad_scores, k, ctx.scale)
            grad_k, grad_v = _product(grad_scores.mT, q, ctx.scale), _product(p.mT, grad_y)
            sizes = [keys.stop - keys.start for _, keys in block.keys]
            parts = zip(block.keys, grad_k.split(sizes, dim=2), grad_v.split(sizes, dim=2), strict=True)
            for (number, keys), of_keys, of_values in parts:
                sums[2 * number][:, :, keys] += of_keys
                sums[2 * number + 1][:, :, keys] += of_values
        return None, None, grad_queries, *(s.to(x.dtype) for s, x in zip(sums, keys_values, strict=True))


def _of_block(block: MaskBlock, queries: Tensor, keys_values: Sequence[Tensor]) -> list[Tensor]:
    """The block's queries, and its keys and values of all passes: (B, H, q or k, D) each."""
    parts = [
        torch.cat([keys_values[2 * number + kind][:, :, keys] for number, keys in block.keys], dim=2)
        for kind in range(2)
    ]
    return [queries[:, :, block.queries].contiguous(), *parts]


def _rows(x: Tensor | None, block: MaskBlock) -> Tensor | None:
    return None if x is None else x[:, :, block.queries]


def _biased_product(
    bias: Tensor | None, subtracted: Tensor | None, a: Tensor, b: Tensor, scale: float = 1.0
) -> Tensor:
    """bias - subtracted + scale * a @ b^T, rounded once: a (B, H, q, D), b (B, H, k, D) -> (B * H, q, k).

    subtracted: (B, H, q, 1).
    """
    shape = *a.shape[:3], b.shape[2]
    total = a.new_zeros(()) if bias is None else bias
    if subtracted is not None:
        total = total - subtracted
    if subtracted is None or total.shape != shape:  # it is not a tensor of our own, of that size
        total = total.expand(shape).clone(memory_format=torch.contiguous_format)
    return total.flatten(0, 1).baddbmm_(a.flatten(0, 1), b.flatten(0, 1).mT, alpha=scale)


def _product(a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """scale * a @ b: (B * H, q, k), (B, H, k, D) -> (B, H, q, D)."""
    product = torch.baddbmm(b.new_empty(()), a, b.flatten(0, 1), beta=0, alpha=scale)
    return product.unflatten(0, b.shape[:2])
