"""PyTorch's attention kernels with their backward functions, called directly.

`F.scaled_dot_product_attention` chooses among these, but gives neither the log-sum-exp of scores nor a
backward function for gradients that are summed elsewhere (`models.pass_store`). CPUs have the same in one
operation, so that all of it is tested there, in float64 too.

Shapes: B batch, H heads, n queries, S keys, D head size.
"""

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


def attend_by_pass(queries: Tensor, keys: Tensor, values: Tensor, bias: None, scale: float) -> Result:
    """The same for the keys of R passes of the queries' tokens, (R * B, H, n, D), without a mask.

    Each pass is a sequence of a batch: query i sees the first i + 1 keys of each, and no hidden ones are
    computed. The softmax over all passes is a mean of those over each, weighted by the sums of exponentials.
    """
    passes = len(keys) // len(queries)
    y, logsumexp, *random = attend(_repeated(queries, passes), keys, values, None, scale)
    if passes == 1:
        return y, logsumexp, *random
    of_pass = logsumexp.unflatten(0, (passes, -1))  # (R, B, H, n)
    logs = of_pass.log_softmax(0)
    weights = torch.exp(logs, out=torch.empty_like(logs, dtype=y.dtype))
    joined = _sum_over_passes(y, passes, weights.transpose(2, 3)[..., None])
    return joined, of_pass[0] - logs[0], *random


def attend_by_pass_backward(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: None,
    y: Tensor,
    logsumexp: Tensor,
    *random: Tensor,
    scale: float,
) -> Result:
    """Gradients of queries, keys and values: the kernel's, given the result and log-sum-exp of all passes.

    It computes probabilities as exp(scores - log-sum-exp), which are then those of the joint softmax, and
    their gradients from y . grad, which is what that softmax subtracts.
    """
    passes = len(keys) // len(queries)
    grad, queries, y = (_repeated(x, passes) for x in (grad, queries, y))
    logsumexp = logsumexp.repeat(passes, 1, 1)
    grads = attend_backward(grad, queries, keys, values, None, y, logsumexp, *random, scale=scale)
    return _sum_over_passes(grads[0], passes), *grads[1:]


def _repeated(x: Tensor, passes: int) -> Tensor:
    """x (B, H, n, D), in memory (B, n, H, D), for each pass: (R * B, H, n, D)."""
    return x if passes == 1 else x.transpose(1, 2).repeat(passes, 1, 1, 1).transpose(1, 2)


def _sum_over_passes(x: Tensor, passes: int, weights: Tensor | None = None) -> Tensor:
    """x (R * B, H, n, D), times weights (R, B, n, H, 1) -> (B, H, n, D), in memory (B, n, H, D)."""
    if passes == 1:
        return x
    parts = x.transpose(1, 2).unflatten(0, (passes, -1))
    return (parts if weights is None else parts * weights).sum(0).transpose(1, 2)
