"""Attention over the keys and values of one or several passes: the plain form, and faster ones.

Shapes: B batch, H heads, n queries, S_i keys of the i-th pass, D size of a head.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from hardware import cpu_multiplies_bfloat16
from models.by_patches import by_patches
from models.by_products import by_products
from models.masks import Sights

# Measured on a CPU.
SHORT, LONG = 256, 512  # queries
FEWEST_QUERIES = 16
FEWEST_SCORES, FEWEST_SCORES_IN_TRAINING = 2**20, 2**16

Pass = tuple[Tensor, Tensor]  # keys (B, H, S_i, D), values alike
Form = Callable[[Tensor, Sequence[Pass], Sights, float], Tensor]


def attend(
    queries: Tensor,
    passes: Sequence[Pass],
    sights: Sights,
    *,
    fast: bool,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """One softmax over the visible keys of all passes: queries (B, H, n, D) -> (B, H, n, D).

    dropout: of probabilities. scale: of scores, None: 1 / sqrt(D). fast: by a faster form, where there is one
    and it pays: on CPUs, without dropout, not in a compiled step.
    """
    scale = queries.shape[-1] ** -0.5 if scale is None else scale
    # Compiled, faster forms would be hundreds of kernels, which takes minutes to compile.
    if not fast or dropout or queries.device.type != "cpu" or torch.compiler.is_compiling():
        return _plain(queries, passes, sights, dropout, scale)
    work = _format(queries)
    form = faster(queries, passes, work)
    if form is None:
        return _plain(queries, passes, sights, dropout, scale)
    return form(queries.to(work), [(k.to(work), v.to(work)) for k, v in passes], sights, scale)


def faster(queries: Tensor, passes: Sequence[Pass], work: torch.dtype) -> Form | None:
    """The form that is faster in the format `work` than the plain one on this CPU, if any."""
    if work == torch.bfloat16 and cpu_multiplies_bfloat16() and torch.backends.mkldnn.is_available():
        return by_products if _products_pay(queries, passes) else None
    return by_patches if _patches_pay(queries, passes) else None


def _products_pay(queries: Tensor, passes: Sequence[Pass]) -> bool:
    """As measured: from a million scores on; where there is a backward pass, from fewer.

    Not for a few queries, as in decoding, for which keys and values would be copied and little is computed.
    """
    batch, heads, length, _ = queries.shape
    scores = batch * heads * length * sum(keys.shape[2] for keys, _ in passes)
    fewest = FEWEST_SCORES_IN_TRAINING if torch.is_grad_enabled() else FEWEST_SCORES
    return length >= FEWEST_QUERIES and scores >= fewest


def _patches_pay(queries: Tensor, passes: Sequence[Pass]) -> bool:
    """As measured, forward and backward: for long texts, and shorter ones if there are several.

    Not for one long pass alone, of which PyTorch's kernel leaves out what is hidden by itself.
    """
    batch, length = len(queries), queries.shape[2]
    enough = length >= LONG or (length >= SHORT and batch * length >= 2 * LONG)
    return enough and (len(passes) > 1 or length < 2 * LONG)


def _format(queries: Tensor) -> torch.dtype:
    """In which autocast would have the plain form's kernel compute."""
    if not torch.is_autocast_enabled("cpu") or queries.dtype == torch.float64:
        return queries.dtype
    return torch.get_autocast_dtype("cpu")


def _plain(queries: Tensor, passes: Sequence[Pass], sights: Sights, dropout: float, scale: float) -> Tensor:
    keys, values = joined(passes)
    return F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=sights.whole_mask, is_causal=sights.all_causal,
        dropout_p=dropout, scale=scale,
    )  # fmt: skip


def joined(passes: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The tensors of several passes, each kind one behind the other."""
    return (
        list(passes[0])
        if len(passes) == 1
        else [torch.cat(part, dim=2) for part in zip(*passes, strict=True)]
    )
