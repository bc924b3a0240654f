"""Cross entropy, of the logits of all tokens at once or a chunk of tokens at a time; the usual loss head.

F.linear_cross_entropy (torch 2.13) is no substitute: on a CPU it took 4 to 24 times as long, it breaks a
compiled graph, and it returns neither predictions nor per-token losses weighted for PonderNet.

A loss head takes representations to logits, predictions and loss: `LastPassHead` here, PonderNet's in
`models.halting`.

Shapes: B batch, T tokens, N of them in any arrangement, C = n_embd, V = vocab_size.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from models.config import ModelConfig

if TYPE_CHECKING:
    from models.language_model import LanguageModel

IGNORED = -1  # a target that no loss counts

# Logits of a chunk. On a CPU they should fit its caches, on a GPU keep it busy; but small chunks make slow
# products, and the (V, C) gradient of the head is added up once per chunk: on a GPU a micro-batch of 2,048
# tokens is one chunk with GPT-2's vocabulary, a quarter of a GiB in bfloat16, and nothing is added.
CHUNK_NUMBERS = {"cpu": 2**21, "cuda": 2**27}
FEWEST_TOKENS = 256
# Numbers computed from them at a time: on a CPU, each tensor from 32 MiB on is newly mapped memory, which
# costs more than filling it.
PART_NUMBERS = {"cpu": 2**21, "cuda": 2**26}


def exact(x: Tensor) -> Tensor:
    """In float32 at least: losses and probabilities are not made in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def cross_entropy(logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """The plain path: (N, V), (N,) -> nats, a mean over the targets that count, or (N,), 0 where IGNORED."""
    return F.cross_entropy(exact(logits), targets, ignore_index=IGNORED, reduction=reduction)


def chunk_tokens(vocab_size: int, device: torch.device, product: torch.dtype) -> int:
    """How many tokens a chunk has, whatever the number of all. product: the format of its logits."""
    # In float32 larger products are faster; in training that is too little for the memory that they take.
    fewest = FEWEST_TOKENS * (1 if torch.is_grad_enabled() or product.itemsize < 4 else 2)
    return max(fewest, _numbers(CHUNK_NUMBERS, device) // vocab_size)


def product_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """Of x @ weight.T, as F.linear computes it: autocast decides."""
    product = torch.promote_types(x.dtype, weight.dtype)
    if torch.is_autocast_enabled(x.device.type) and product != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return product


def _numbers(table: Mapping[str, int], device: torch.device) -> int:
    return table.get(device.type, table["cpu"])


def _parts(count: int, width: int, device: torch.device) -> Iterator[slice]:
    """`count` rows of `width` numbers, as many at a time as PART_NUMBERS allows."""
    step = max(1, _numbers(PART_NUMBERS, device) // width)
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


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
    if asked to predict, every token's most likely id (N,), else None.

    Matrix products are computed in `product_dtype`; the gradients of chunks are summed in float32 at least.
    Saved for the backward pass are these gradients, of the sizes of x and weight.
    """
    product = product_dtype(x, weight)
    if chunk is None:
        chunk = chunk_tokens(len(weight), x.device, product)
    recording = torch.is_grad_enabled()  # always off inside the function
    return _LinearCrossEntropy.apply(x, weight, targets, token_weights, chunk, product, recording, predict)


class _LinearCrossEntropy(torch.autograd.Function):
    """Each chunk's gradient is computed with its loss, while its logits exist: nothing is computed twice."""

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
        needs_x, needs_weight = recording and ctx.needs_input_grad[0], recording and ctx.needs_input_grad[1]
        grad_x = torch.empty_like(x) if needs_x else None
        grad_weight: Tensor | None = None
        counted = targets != IGNORED
        target = torch.where(counted, targets, 0)[:, None]  # any valid id
        scale = counted.to(work)
        if token_weights is not None:
            scale = torch.where(counted, token_weights.to(work), 0.0)
        each = x.new_empty(len(x), dtype=work)
        predictions = torch.empty_like(targets) if predict else None
        with torch.autocast(x.device.type, enabled=False):
            head = weight.to(product)
            buffer = None  # shared by all chunks
            for start in range(0, len(x), chunk):
                part = slice(start, min(start + chunk, len(x)))
                logits = torch.mm(
                    x[part].to(product), head.T, out=None if buffer is None else buffer[: len(x[part])]
                )
                if not torch.compiler.is_compiling():
                    buffer = logits if buffer is None else buffer
                best = None if predictions is None else predictions[part]
                with_gradients = needs_x or needs_weight
                each[part] = _scored(logits, target[part], work, best, logits if with_gradients else None)
                grad_logits = logits  # overwritten
                # Token weights multiply rows of x or of its gradient, C numbers each, instead of V logits.
                if grad_x is not None:
                    grad_x[part] = (grad_logits @ head) * scale[part, None]
                if needs_weight:
                    grad_weight = _add_product(grad_weight, grad_logits, x[part] * scale[part, None], work)
        if needs_weight and grad_weight is None:  # without tokens
            grad_weight = torch.zeros_like(weight, dtype=work)
        each = torch.where(counted, each, 0.0)
        ctx.save_for_backward(grad_x, grad_weight, each)
        ctx.formats = weight.dtype, token_weights.dtype if token_weights is not None else None
        ctx.mark_non_differentiable(each, *([predictions] if predict else []))
        return (each * scale).sum(), each, predictions

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight, each = ctx.saved_tensors
        weight_format, token_format = ctx.formats
        grad_tokens = (grad * each).to(token_format) if ctx.needs_input_grad[3] else None
        grad_x = None if grad_x is None else grad_x * grad
        grad_weight = None if grad_weight is None else (grad_weight * grad).to(weight_format)
        return grad_x, grad_weight, None, grad_tokens, None, None, None, None


def _scored(
    logits: Tensor, target: Tensor, work: torch.dtype, predictions: Tensor | None, grad_logits: Tensor | None
) -> Tensor:
    """CE of logits (n, V) at target (n, 1), in `work`: (n,).

    predictions (n,): receives the most likely ids. grad_logits: receives d CE / d logits = softmax - one-hot;
    None or `logits` itself.
    """
    each = logits.new_empty(len(logits), dtype=work)
    if predictions is None and _runs_fused(logits):
        from models import triton_kernels

        if triton_kernels.has_kernel(logits):
            triton_kernels.score(logits, target.squeeze(1), each, grad_logits is not None)
            return each
    count, width = logits.shape
    for part in _parts(count, width, logits.device):
        these, at = logits[part], target[part]
        p = these.softmax(-1, dtype=work)
        if predictions is None:
            score, chance = these.amax(-1, keepdim=True), p.amax(-1, keepdim=True)
        else:
            # Probabilities are faster here for half precision, and have the same maximum: neighbouring
            # logits are too far apart for their probabilities to become equal.
            best = (these if these.dtype == work else p).argmax(-1, keepdim=True)
            predictions[part] = best.squeeze(1)
            score, chance = these.gather(1, best), p.gather(1, best)
        # exp(score - logsumexp) is the largest probability, at least 1 / V: its logarithm is exact.
        log_sum = score.to(work) - chance.log()
        each[part] = (log_sum - these.gather(1, at)).squeeze(1)
        if grad_logits is not None:
            grad_logits[part] = p.scatter_add_(1, at, -torch.ones_like(p[:, :1]))
    return each


def _runs_fused(logits: Tensor) -> bool:
    return logits.is_cuda and not torch.compiler.is_compiling()


def _add_product(total: Tensor | None, grad_logits: Tensor, x: Tensor, work: torch.dtype) -> Tensor:
    """total (V, C), None: zero, + grad_logits (n, V).T @ x (n, C), in `work`; total is overwritten."""
    if grad_logits.is_cuda and grad_logits.dtype != work:
        # In and out of one kernel, whose sums are in float32 and stay so; PyTorch has it on CUDA only.
        product = torch.mm(grad_logits.T, x.to(grad_logits.dtype), out_dtype=work)
        return product if total is None else total.add_(product)
    if total is None:
        total = x.new_zeros(grad_logits.shape[1], x.shape[1], dtype=work)
    # A sum over all tokens of the chunk, before loss scaling, would overflow float16.
    form = work if grad_logits.dtype == torch.float16 else grad_logits.dtype
    x = x.to(form)
    if form == work:
        return total.addmm_(grad_logits.to(form).T, x)
    count, width = total.shape
    for part in _parts(count, width, total.device):
        total[part] += torch.mm(grad_logits[:, part].T, x).to(work)
    return total


class Scores(NamedTuple):
    """The output of a head.

    logits: (..., V), or None where they were not needed.
    loss, cross_entropy: scalars in nats per token; None without targets.
    passes: expected passes through the middle, a mean over tokens; None where the head is the last pass's.
    predictions: the most likely ids, or None.
    """

    logits: Tensor | None = None
    loss: Tensor | None = None
    cross_entropy: Tensor | None = None
    passes: Tensor | None = None
    predictions: Tensor | None = None


class LastPassHead:
    """Cross entropy of the predictions after the last block, a mean over the targets that count."""

    def __init__(self, config: ModelConfig) -> None:
        self._chunked = config.loss == "chunked"

    def __call__(
        self,
        model: "LanguageModel",
        exits: Sequence[Tensor],
        targets: Tensor | None,
        training: bool,
        get_logits: bool,
        get_predictions: bool = False,
    ) -> Scores:
        (x,) = exits
        x = model.transformer.ln_f(x)
        if targets is not None and self._chunked and not get_logits:
            total, _, predictions = linear_cross_entropy(
                x.flatten(0, -2), model.lm_head.weight, targets.flatten(), predict=get_predictions
            )
            loss = total / (targets != IGNORED).sum()
            if predictions is not None:
                predictions = predictions.view_as(targets)
            return Scores(None, loss, loss, predictions=predictions)
        logits = model.lm_head(x)
        predictions = logits.argmax(-1) if get_predictions else None
        if targets is None:
            return Scores(logits, None, None, predictions=predictions)
        loss = cross_entropy(logits.flatten(0, -2), targets.flatten())
        return Scores(logits, loss, loss, predictions=predictions)
