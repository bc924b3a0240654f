"""FlexAttention (Dong et al. 2024, arXiv:2412.05496) for attention to all passes: hidden blocks are left out.

On GPUs it is compiled, forward and backward pass, into kernels that look up in a block mask which keys a
block of queries sees. CPUs compute the same, not compiled, and the forward pass alone: there the backward
pass is that of PyTorch's kernel for CPUs, given FlexAttention's result and log-sum-exp.

Shapes: B batch, H heads, n queries, S keys, D head size.
"""

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_mask, flex_attention

from models.attention_kernels import Result, attend, attend_backward


def attend_to_blocks(
    queries: Tensor, keys: Tensor, values: Tensor, mask: BlockMask | None, scale: float
) -> Result:
    """Attention (B, H, n, D) where the mask allows it, and what `attend_to_blocks_backward` takes.

    mask: None where query i sees the first i + 1 keys.
    """
    if mask is None:
        return attend(queries, keys, values, None, scale)
    if queries.device.type == "cpu":
        with warnings.catch_warnings():  # that it is not compiled
            warnings.simplefilter("ignore")
            y, other = flex_attention(
                queries.detach(), keys, values, block_mask=mask, scale=scale, return_aux=AuxRequest(lse=True)
            )
        assert other.lse is not None
        return y, other.lse
    return with_graph(_compiled(), queries, keys, values, block_mask=mask, scale=scale)


def attend_to_blocks_backward(
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: BlockMask | None,
    y: Tensor,
    *saved: Tensor,
    scale: float,
) -> Result:
    """Gradients of queries, keys and values."""
    if mask is None:
        return attend_backward(grad, queries, keys, values, None, y, *saved, scale=scale)
    if queries.device.type == "cpu":
        count = {"B": len(queries), "H": 1, "Q_LEN": queries.shape[2], "KV_LEN": keys.shape[2]}
        seen = create_mask(mask.mask_mod, **count, device="cpu")
        bias = torch.zeros(seen.shape, dtype=queries.dtype).masked_fill_(~seen, -torch.inf)
        return attend_backward(grad, queries, keys, values, bias, y, *saved, scale=scale)
    return gradients_of_graph(grad, *saved)


def with_graph(function: Callable[..., Tensor], *inputs: Tensor, **settings: object) -> Result:
    """function(*inputs), followed by what `gradients_of_graph` takes: the same with its graph, and inputs."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        y = function(*leaves, **settings)
    return y.detach(), y, *leaves


def gradients_of_graph(grad: Tensor, y: Tensor, *leaves: Tensor) -> Result:
    """The gradients of the inputs of `with_graph`. Once: the graph is freed."""
    return torch.autograd.grad(y, leaves, grad)


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    """One graph for any number of tokens and passes."""
    return torch.compile(flex_attention, dynamic=True)
