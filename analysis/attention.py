"""Attention probabilities, which the fused attention of the models does not give: computed again, by chunks.

Shapes: B batch, H heads, n queries, S keys, D head size, c queries of a chunk.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from models.key_values import Visible

CHUNK = 2**24  # probabilities held at once


def log_probabilities(
    queries: Tensor, seen: Visible, chunk: int = CHUNK
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(which queries, log-probabilities (B, H, c, S), what is visible, (c, S) or (B, 1, c, S)), in chunks.

    queries (B, H, n, D), rotated. Softmax with scale 1/sqrt(D) over the visible keys, in float32 at least; a
    log-probability of what is not visible is -inf. chunk: about how many of them are held at once.
    """
    batch, heads, count, size = queries.shape
    n_keys = seen.kept[0].shape[2]
    work = torch.promote_types(queries.dtype, torch.float32)
    keys = seen.kept[0].to(work).transpose(-1, -2)
    step = max(1, chunk // (batch * heads * n_keys))
    place = torch.arange(n_keys, device=queries.device)
    for start in range(0, count, step):
        part = slice(start, min(start + step, count))
        if seen.mask is not None:
            visible = seen.mask[..., part, :]
        else:  # causal: the i-th query sees the first i keys; else it sees all of them
            last = torch.arange(part.start, part.stop, device=queries.device)[:, None]
            visible = place <= (last if seen.causal else n_keys)
        scores = queries[:, :, part].to(work) @ keys / size**0.5
        yield part, scores.masked_fill(~visible, -torch.inf).log_softmax(-1), visible


def entropies(queries: Tensor, seen: Visible, chunk: int = CHUNK) -> tuple[Tensor, Tensor]:
    """Entropy in nats of each query's attention (B, H, n), and the number of keys it sees, alike."""
    found = queries.new_empty(queries.shape[:3], dtype=torch.promote_types(queries.dtype, torch.float32))
    counts = torch.empty_like(found)
    for part, logs, visible in log_probabilities(queries, seen, chunk):
        found[:, :, part] = -(logs.exp() * logs.masked_fill(~visible, 0.0)).sum(-1)
        counts[:, :, part] = visible.sum(-1).to(counts.dtype)
    return found, counts
