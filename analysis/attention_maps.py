"""Attention maps: the probabilities of attention, their entropy, and Figure 6's mean over text.

Fused kernels return no probabilities, so they are computed again, a chunk of queries at a time.
Shapes: B batch, H heads, n queries, S keys, D head size, c queries of a chunk, T tokens, R passes.
"""

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analysis.hooks import Attended, Layer, forward_passes, watch_attention
from distributed import Precision
from errors import Failure, UsageError
from files import read_json, write_atomically, write_json
from models.config import ModelConfig
from models.kv_cache import Visible
from models.language_model import LanguageModel
from tables import aligned_table

CHUNK = 2**24  # probabilities held at once
ARRAY = "attention"  # its name in the .npz
AVERAGE = (
    "attention[head, repeat, token]: the probability with which the last token of a window attends, in its "
    "last repeat, to a token's key of a repeat, in one softmax over all of them; the mean over windows"
)


def log_probabilities(
    queries: Tensor, seen: Visible, chunk: int = CHUNK, first: int = 0
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Log-probabilities of attention: softmax with scale 1/sqrt(D), in float32 at least.

    Args:
        queries: (B, H, n, D), rotated.
        chunk: how many probabilities to hold at once, about.
        first: the first query to look at.

    Yields:
        a slice of the queries, their log-probabilities (B, H, c, S), -inf where masked, and the mask (c, S)
        or (B, 1, c, S), True where a query sees a key.
    """
    batch, heads, count, size = queries.shape
    dtype = torch.promote_types(queries.dtype, torch.float32)
    keys = seen.concatenated()[0].to(dtype).mT
    n_keys = keys.shape[-1]
    step = max(1, chunk // (batch * heads * n_keys))
    positions = torch.arange(n_keys, device=queries.device)
    for start in range(first, count, step):
        part = slice(start, min(start + step, count))
        if seen.mask.tensor is not None:
            visible = seen.mask.tensor[..., part, :]
        else:  # causal: query i sees the first i + 1 keys; else every query sees all keys
            last = torch.arange(part.start, part.stop, device=queries.device)[:, None]
            visible = positions <= (last if seen.mask.is_causal else n_keys)
        scores = queries[:, :, part].to(dtype) @ keys / size**0.5
        yield part, scores.masked_fill(~visible, -torch.inf).log_softmax(-1), visible


def entropies(queries: Tensor, seen: Visible, chunk: int = CHUNK) -> tuple[Tensor, Tensor]:
    """Entropy of each query's attention in nats, (B, H, n), and how many keys the query sees, (B, H, n)."""
    nats = queries.new_empty(queries.shape[:3], dtype=torch.promote_types(queries.dtype, torch.float32))
    counts = torch.empty_like(nats)
    for part, logs, visible in log_probabilities(queries, seen, chunk):
        nats[:, :, part] = -(logs.exp() * logs.masked_fill(~visible, 0.0)).sum(-1)
        counts[:, :, part] = visible.sum(-1).to(counts.dtype)
    return nats, counts


class LastTokenAttention:
    """Mean attention map (H, R, T) of a window's last token in its last pass, in one middle layer (Figure 6).

    The softmax is over the keys of all tokens in all passes, so that a head's probabilities sum to 1 over
    passes and tokens together. The mean over windows is taken in float64, position by position. With a
    sliding attention window, the positions before it count as 0.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        """layer: the index of a middle layer, from 0."""
        self.layer = Layer("middle", layer)
        self._repeats = config.repeats
        self._sum = torch.zeros((), dtype=torch.float64)
        self.windows = 0

    def see(self, call: Attended) -> None:
        """Add one call, for `watch_attention`. Raises UsageError unless every token took every pass."""
        if call.repeat < self._repeats:
            return
        batch, _, n_keys, _ = call.seen.concatenated()[0].shape
        if call.tokens.index is not None or n_keys != self._repeats * call.tokens.grid.length:
            raise UsageError("attention to all passes exists only where every token takes every pass")
        last = call.queries.shape[2] - 1
        ((_, logs, _),) = log_probabilities(call.queries, call.seen, first=last)
        added = logs[:, :, 0].exp().double().sum(0).unflatten(-1, (self._repeats, -1)).cpu()
        self._sum = self._sum + added
        self.windows += batch

    @property
    def mean(self) -> Tensor:
        """(H, R, T)."""
        return self._sum / self.windows


def measure_last_token(
    model: LanguageModel,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    precision: Precision | None,
    layer: int,
    **routing: Any,
) -> LastTokenAttention:
    """One forward pass over all batches, (B, T) with the same T, of a model with cross-repeat attention.

    The arguments are those of `hooks.forward_passes`; layer: the index of a middle layer.
    Raises UsageError where tokens leave early, Failure where there is no batch.
    """
    attention = LastTokenAttention(model.config, layer)
    with watch_attention(model, attention.see, only=attention.layer):
        for _ in forward_passes(model, batches, precision, **routing):
            pass
    return attention


def choose_layer(config: ModelConfig, layer: int | None) -> int:
    """The middle layer asked for; None: the last. Raises UsageError if the model has no such layer."""
    count = config.layers[1]
    if layer is not None and not 0 <= layer < count:
        raise UsageError(f"--layer {layer}: the middle has layers 0 to {count - 1}")
    return count - 1 if layer is None else layer


def choose_heads(available: Sequence[int], heads: Sequence[int] | None) -> list[int]:
    """The heads asked for; None: all. Raises UsageError for an unknown head, or one given twice."""
    if heads is None:
        return list(available)
    shown = " ".join(map(str, heads))
    if not set(heads) <= set(available):
        raise UsageError(f"--heads {shown}: there are heads {', '.join(map(str, available))}")
    if len(set(heads)) < len(heads):
        raise UsageError(f"--heads {shown}: give each head once")
    return list(heads)


def write_attention(path: Path, about: dict[str, Any], attention: np.ndarray) -> dict[str, Any]:
    """Write an attention map (heads, R, T) to `path` (.npz) and its description, which is returned, as .json.

    about: the description, with the chosen `heads`.
    """
    content = {
        **about,
        "average": AVERAGE,
        "by_repeat": {
            str(head): mean.sum(-1).tolist() for head, mean in zip(about["heads"], attention, strict=True)
        },
        "arrays": path.name,
    }
    write_atomically(path, lambda file: np.savez_compressed(file, **{ARRAY: attention}))
    write_json(path.with_suffix(".json"), content)
    return content


def read_attention(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Read an attention map (heads, R, T) and its description. path: of either file.

    Raises UsageError if a file is missing, Failure if one is damaged.
    """
    array_path, about_path = path.with_suffix(".npz"), path.with_suffix(".json")
    for part in (array_path, about_path):
        if not part.is_file():
            raise UsageError(f"{part} is missing; python get_attention.py --checkpoint ... writes it")
    try:
        about = read_json(about_path)
        with np.load(array_path, allow_pickle=False) as content:
            attention = content[ARRAY]
        about["model"], about["windows"]
        expected = len(about["heads"]), about["n_repeat"], about["sequence_length"]
        if attention.shape != expected:
            raise ValueError
    except (ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile) as error:
        raise Failure(
            f"{array_path} or {about_path.name} is damaged, or was not written by get_attention.py; delete "
            "both and run it again"
        ) from error
    return attention, about


def describe_attention(content: dict[str, Any]) -> str:
    """A table: the share of each head's attention to the keys of each repeat. content: the .json."""
    headings = ("head", *map(str, range(1, content["n_repeat"] + 1)))
    rows = [(head, *(f"{share:.4f}" for share in shares)) for head, shares in content["by_repeat"].items()]
    title = f"middle layer {content['layer']}, share of attention by repeat of the keys:"
    return f"{title}\n{aligned_table([headings, *rows], 'r')}"
