"""PyTorch's attention kernels with their backward functions, called directly.

`F.scaled_dot_product_attention` chooses among these, but gives neither the log-sum-exp of scores nor a
backward function for gradients that are summed elsewhere (`models.pass_store`). CPUs have the same in one
operation, so that all of it is tested there, in float64 too.

Shapes: B batch, H heads, n queries, S keys, D head size.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

aten = torch.ops.aten

HALF = (torch.float16, torch.bfloat16)
Result = tuple[Tensor, ...]


def attend(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, scale: float) -> Result:
    """softmax(scale Q K^T + bias) V, (B, H, n, D), followed by what `attend_backward` takes.

    bias: (n, S) or (B, 1, n, S) in the queries' format, with rows at multiples of 16 bytes; None: query i
    sees the first i + 1 keys.
    """
    causal = bias is None
    if queries.device.type == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu(
            queries, keys, values, 0.0, causal, attn_mask=bias, scale=scale
        )
    if causal and queries.dtype in HALF:
        result = aten._scaled_dot_product_flash_attention(queries, keys, values, 0.0, True, scale=scale)
        return result[0], result[1], *result[6:8]
    return aten._scaled_dot_product_efficient_attention(
        queries, keys, values, _expanded(bias, queries, keys), True, 0.0, causal, scale=scale
    )


def attend_backward(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    y: Tensor,
    logsumexp: Tensor,
    *random: Tensor,
    scale: float,
) -> Result:
    """Gradients of queries, keys and values."""
    causal = bias is None
    if queries.device.type == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, queries, keys, values, y, logsumexp, 0.0, causal, attn_mask=bias, scale=scale
        )
    if causal and queries.dtype in HALF:
        sizes = queries.shape[2], keys.shape[2]
        return aten._scaled_dot_product_flash_attention_backward(
            grad, queries, keys, values, y, logsumexp, None, None, *sizes, 0.0, True, *random, scale=scale
        )
    wanted = [True, True, True, False]  # not that of the bias
    bias = _expanded(bias, queries, keys)
    return aten._scaled_dot_product_efficient_attention_backward(
        grad, queries, keys, values, bias, y, logsumexp, *random, 0.0, wanted, causal, scale=scale
    )[:3]


def _expanded(bias: Tensor | None, queries: Tensor, keys: Tensor) -> Tensor | None:
    """(B, H, n, S), as the kernel wants it."""
    return None if bias is None else bias.expand(*queries.shape[:3], keys.shape[2])


class Form(NamedTuple):
    """A way to attend to the keys of all passes."""

    attend: Callable[..., Result]
    backward: Callable[..., Result]


FORMS = {"masked": Form(attend, attend_backward)}
