"""Cross entropy of tokens: from all their logits at once, or a chunk of tokens at a time.

Shapes: N tokens, C = n_embd, V = vocab_size.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

IGNORED = -1  # a target that no loss counts

# Numbers in the logits of a chunk. On a CPU they should stay near its caches, on a GPU keep it busy; but with
# few tokens to a chunk, adding to the (V, C) gradient of the head would take longer than computing it.
CHUNK_NUMBERS = {"cpu": 2**21, "cuda": 2**26}
FEWEST_TOKENS = 256


def exact(x: Tensor) -> Tensor:
    """In float32 at least: losses and probabilities are not made in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """The plain path: (N, V), (N,) -> nats, a mean over the targets that count, or (N,), 0 where IGNORED."""
    return F.cross_entropy(exact(logits), targets, ignore_index=IGNORED, reduction=reduction)


def chunk_tokens(vocab_size: int, device: torch.device) -> int:
    """How many tokens a chunk has, whatever the number of all."""
    numbers = CHUNK_NUMBERS.get(device.type, CHUNK_NUMBERS["cpu"])
    return max(FEWEST_TOKENS, numbers // vocab_size)


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    token_weights: Tensor | None = None,
    chunk: int | None = None,
    predict: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """sum_n token_weights_n * CE_n of logits x @ weight.T, without ever having more than a chunk of them.

    x (N, C), weight (V, C), targets (N,), where IGNORED counts nothing, token_weights (N,), None: ones.
    chunk: tokens at a time, None: `chunk_tokens`. Returns that sum, which has gradients with respect to x,
    weight and token_weights (once); every token's CE (N,), which has none: in nats, in float32 at least; and,
    if asked to predict, every token's likeliest id (N,), else None.

    As in F.linear, autocast decides the format of the matrix products; the gradients of the chunks add up in
    float32 at least. What is kept for the backward pass is these gradients, of the size of x and weight.
    """
    if chunk is None:
        chunk = chunk_tokens(len(weight), x.device)
    product = torch.promote_types(x.dtype, weight.dtype)
    if torch.is_autocast_enabled(x.device.type) and product != torch.float64:
        product = torch.get_autocast_dtype(x.device.type)
    recording = torch.is_grad_enabled()  # inside the function it never is
    return _LinearCrossEntropy.apply(x, weight, targets, token_weights, chunk, product, recording, predict)


class _LinearCrossEntropy(torch.autograd.Function):
    """Each chunk's gradient is made with its loss, while its logits are there: nothing is computed twice."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        token_weights: Tensor | None,
        chunk: int,
        product: torch.dtype,
        recording: bool,
        predict: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        work = torch.promote_types(product, torch.float32)
        of_x, of_weight = recording and ctx.needs_input_grad[0], recording and ctx.needs_input_grad[1]
        grad_x = torch.empty_like(x) if of_x else None
        grad_weight = torch.zeros_like(weight, dtype=work) if of_weight else None
        counted = targets != IGNORED
        target = torch.where(counted, targets, 0)[:, None]  # any that exists
        scale = counted.to(work)
        if token_weights is not None:
            scale = torch.where(counted, token_weights.to(work), 0.0)
        each = x.new_empty(len(x), dtype=work)
        likeliest = torch.empty_like(targets) if predict else None
        with torch.autocast(x.device.type, enabled=False):
            head = weight.to(product)
            for start in range(0, len(x), chunk):
                part = slice(start, min(start + chunk, len(x)))
                logits = F.linear(x[part].to(product), head)
                if predict:
                    likeliest[part] = logits.argmax(-1)
                log_p = logits.log_softmax(-1, dtype=work)
                each[part] = -log_p.gather(1, target[part]).squeeze(1)
                if not (of_x or of_weight):
                    continue
                # d CE / d logits = softmax - one-hot. The tokens' weights meet it as factors of the rows of
                # the narrow side, x or its gradient, which are C numbers where these are V.
                slope = log_p.exp_().scatter_add_(1, target[part], -torch.ones_like(log_p[:, :1])).to(product)
                if of_x:
                    grad_x[part] = (slope @ head) * scale[part, None]
                if of_weight:
                    # A sum over all tokens of the chunk, before loss scaling: too large for float16.
                    summed = work if product == torch.float16 else product
                    weighted = (x[part] * scale[part, None]).to(summed)
                    if summed == work:
                        grad_weight.addmm_(slope.to(work).T, weighted)
                    else:
                        grad_weight += slope.T @ weighted
        each = torch.where(counted, each, 0.0)
        ctx.save_for_backward(grad_x, grad_weight, each)
        ctx.formats = weight.dtype, token_weights.dtype if token_weights is not None else None
        ctx.mark_non_differentiable(each, *([likeliest] if predict else []))
        return (each * scale).sum(), each, likeliest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight, each = ctx.saved_tensors
        weight_format, token_format = ctx.formats
        of_tokens = (grad * each).to(token_format) if ctx.needs_input_grad[3] else None
        grad_x = None if grad_x is None else grad_x * grad
        grad_weight = None if grad_weight is None else (grad_weight * grad).to(weight_format)
        return grad_x, grad_weight, None, of_tokens, None, None, None, None
