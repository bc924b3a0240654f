"""What CUDA computes by kernels that a CPU does not have, computed on the CPU with the same results.

Shapes: B batch, H heads, n queries, S keys, D head size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

aten = torch.ops.aten


def attention_on_cuda(on_cpu: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """F.scaled_dot_product_attention with the kernels that CUDA chooses, without cuDNN, from compute
    capability 8.0 on: flash attention without a mask, else memory-efficient attention with it as a bias."""

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
    ) -> Tensor:
        if query.device.type != "cuda":
            return on_cpu(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)
        if torch.is_autocast_enabled("cuda"):
            query, key, value = (x.to(torch.get_autocast_dtype("cuda")) for x in (query, key, value))
        bias = None if attn_mask is None else _bias(attn_mask, query.dtype)
        with torch.autocast("cuda", enabled=False):
            return _attend(query, key, value, bias, dropout_p, is_causal, scale)

    return attend


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.where(mask, 0.0, torch.full((), -torch.inf, dtype=dtype, device=mask.device))


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    dropout: float,
    is_causal: bool,
    scale: float | None,
) -> Tensor:
    sizes = {query.shape[-1], value.shape[-1]}
    fits = all(size % 8 == 0 for size in sizes) and query.dtype != torch.float64
    if not fits or (dropout and not _on_meta(query)):  # dropout of the fused kernels has other random numbers
        return torch._scaled_dot_product_attention_math(
            query, key, value, bias, dropout, is_causal, scale=scale
        )[0]
    if bias is None and len(sizes) == 1 and query.dtype != torch.float32:
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout, is_causal, scale=scale)[0]
    if bias is not None:
        width = bias.shape[-1]
        if width % 8:
            bias = F.pad(bias, (0, 8 - width % 8))[..., :width]
        bias = bias.expand(*query.shape[:3], width)
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, torch.is_grad_enabled(), dropout, is_causal, scale=scale
    )[0]


def _on_meta(tensor: Tensor) -> bool:
    return getattr(tensor, "inner", tensor).device.type == "meta"


def _scores(query: Tensor, key: Tensor, bias: Tensor | None, is_causal: bool, scale: float | None) -> Tensor:
    """In float32, with -inf where a key is hidden: (B, H, n, S)."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = scale * (query.float() @ key.float().mT)
    if is_causal:
        length, count = scores.shape[-2:]
        if length != count:
            raise NotImplementedError("causal attention of as many queries as keys only")
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
    return scores if bias is None else scores + bias.float()


def _forward(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float, is_causal: bool,
    scale: float | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output (B, H, n, D), in memory (B, n, H, D) as the kernels leave it, and log-sum-exp (B, H, n)."""
    if dropout:
        raise NotImplementedError("the fused kernels' dropout")
    scores = _scores(query, key, bias, is_causal, scale)
    log_sum = scores.logsumexp(-1)
    shares = torch.exp(scores - log_sum.nan_to_num(neginf=0.0)[..., None])
    output = (shares @ value.float()).to(query.dtype)
    return output.transpose(1, 2).contiguous().transpose(1, 2), log_sum


def _backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, output: Tensor,
    log_sum: Tensor, is_causal: bool, scale: float | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of query, key, value and bias, from an output and log-sum-exp that may be of more keys."""
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = _scores(query, key, bias, is_causal, scale)
    log_sum = log_sum[..., : scores.shape[-2], None].nan_to_num(neginf=0.0)
    shares = torch.exp(scores - log_sum)
    grad, output = grad.float(), output.float()
    grad_value = shares.mT @ grad
    grad_scores = shares * (grad @ value.float().mT - (grad * output).sum(-1, keepdim=True))
    grads = factor * (grad_scores @ key.float()), factor * (grad_scores.mT @ query.float()), grad_value
    return *(each.to(query.dtype) for each in grads), grad_scores.to(query.dtype)


def _flash(
    query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0, is_causal: bool = False,
    return_debug_mask: bool = False, *, scale: float | None = None,
) -> tuple[Any, ...]:  # fmt: skip
    output, log_sum = _forward(query, key, value, None, dropout_p, is_causal, scale)
    state, unused = torch.zeros(2, dtype=torch.uint64), torch.zeros((), dtype=torch.uint64)
    return output, log_sum, None, None, query.shape[2], key.shape[2], state, unused, query.new_empty(0)


def _flash_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, logsumexp: Tensor,
    cum_seq_q: Any, cum_seq_k: Any, max_q: int, max_k: int, dropout_p: float, is_causal: bool,
    philox_seed: Tensor, philox_offset: Tensor, *, scale: float | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    return _backward(grad_out, query, key, value, None, out, logsumexp, is_causal, scale)[:3]


def _efficient(
    query: Tensor, key: Tensor, value: Tensor, attn_bias: Tensor | None, compute_log_sumexp: bool,
    dropout_p: float = 0.0, is_causal: bool = False, *, scale: float | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    output, log_sum = _forward(query, key, value, attn_bias, dropout_p, is_causal, scale)
    if compute_log_sumexp:  # the kernel's rows are multiples of 32
        log_sum = F.pad(log_sum, (0, -log_sum.shape[-1] % 32), value=torch.inf)
    else:
        log_sum = log_sum[..., :0]
    seed = torch.zeros((), dtype=torch.int64)
    return output, log_sum, seed, seed.clone()


def _efficient_backward(
    grad_out_: Tensor, query: Tensor, key: Tensor, value: Tensor, attn_bias: Tensor | None, out: Tensor,
    logsumexp: Tensor, philox_seed: Tensor, philox_offset: Tensor, dropout_p: float,
    grad_input_mask: list[bool], is_causal: bool = False, *, scale: float | None = None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    grads = _backward(grad_out_, query, key, value, attn_bias, out, logsumexp, is_causal, scale)
    return tuple(each if asked else None for each, asked in zip(grads, grad_input_mask, strict=True))


def _softmax(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """float16 in, float32 out: one kernel on CUDA."""

    def forward(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
        return function(x.float() if half_to_float else x, dim, False)

    return forward


def _softmax_backward(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def backward(grad: Tensor, output: Tensor, dim: int, input_dtype: torch.dtype) -> Tensor:
        return function(grad, output, dim, grad.dtype).to(input_dtype)

    return backward


def _product(first: Tensor, second: Tensor, out_dtype: torch.dtype) -> Tensor:
    return first.to(out_dtype) @ second.to(out_dtype)


def _rms_norm_backward(
    grad_out: Tensor, input: Tensor, normalized_shape: list[int], rstd: Tensor, weight: Tensor | None,
    output_mask: list[bool],
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    last = tuple(range(-len(normalized_shape), 0))
    grad, normalised = grad_out.float(), input.float() * rstd
    scaled = grad if weight is None else grad * weight
    grad_input = rstd * (scaled - normalised * (scaled * normalised).mean(last, keepdim=True))
    leading = tuple(range(input.dim() - len(normalized_shape)))
    grad_weight = (grad * normalised).sum(leading)
    grads = (grad_input, input), (grad_weight, weight)
    return tuple(
        each.to(like.dtype) if asked and like is not None else None
        for (each, like), asked in zip(grads, output_mask, strict=True)
    )


ONLY_ON_CUDA: dict[Any, Callable[..., Any]] = {
    aten._scaled_dot_product_flash_attention.default: _flash,
    aten._scaled_dot_product_flash_attention_backward.default: _flash_backward,
    aten._scaled_dot_product_efficient_attention.default: _efficient,
    aten._scaled_dot_product_efficient_attention_backward.default: _efficient_backward,
    aten.mm.dtype: _product,
    aten._fused_rms_norm_backward.default: _rms_norm_backward,
    aten._softmax.default: _softmax(aten._softmax.default),
    aten._log_softmax.default: _softmax(aten._log_softmax.default),
    aten._softmax_backward_data.default: _softmax_backward(aten._softmax_backward_data.default),
    aten._log_softmax_backward_data.default: _softmax_backward(aten._log_softmax_backward_data.default),
}
