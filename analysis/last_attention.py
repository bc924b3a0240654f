"""What the last token looks at in its last repeat (the paper's Figure 6), averaged over windows of text.

Shapes: B windows of a batch, H heads, D head size, T tokens, R passes, S = R * T keys.
"""

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from analysis.attention import log_probabilities
from analysis.hooks import Attended, Layer, watch_attention
from distributed import Precision
from errors import Failure, UsageError
from models.config import ModelConfig
from models.language_model import LanguageModel


class LastAttention:
    """Mean attention of one middle layer, (H, R, T), summed in float64: as large for one window as for all.

    The query is that of the last token of a window in pass R. Its probabilities are of one softmax over all
    keys that it sees: those of tokens 1..T, itself among them, in passes 1..R, so that for each head they sum
    to one over passes and tokens together. Their mean is over windows, place by place. With an attention
    window, what lies before it counts as 0.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        """layer: of the middle, from 0."""
        self.layer = Layer("middle", layer)
        self._repeats = config.repeats
        self._total: Tensor | None = None
        self.windows = 0

    def see(self, call: Attended) -> None:
        """For `watch_attention`. Raises UsageError where not every token took every pass."""
        if call.repeat < self._repeats:
            return
        kept, mask = call.seen.kept, call.seen.mask
        batch, _, n_keys, _ = kept[0].shape
        if call.rows.token is not None or n_keys != self._repeats * call.rows.grid.length:
            raise UsageError("only where every token takes every pass is there attention to all passes")
        # Without a mask it sees all keys, as the last of causal queries does.
        seen = call.seen._replace(mask=None if mask is None else mask[..., -1:, :], causal=False)
        ((_, logs, _),) = log_probabilities(call.queries[:, :, -1:], seen)
        found = logs[:, :, 0].exp().double().sum(0).unflatten(-1, (self._repeats, -1)).cpu()
        self._total = found if self._total is None else self._total + found
        self.windows += batch

    @property
    def mean(self) -> Tensor:
        """(H, R, T)."""
        return self._total / self.windows


@torch.no_grad()
def gather(
    model: LanguageModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    precision: Precision | None,
    layer: int,
    **routing: Any,
) -> LastAttention:
    """One forward pass of a model with cross-repeat attention over batches (inputs, _), (B, T) all of one T.

    precision: None for the model's own numbers. Raises Failure where there is no batch.
    """
    found = LastAttention(model.config, layer)
    with watch_attention(model, found.see, only=found.layer):
        for inputs, _ in batches:
            if precision is not None:
                inputs = inputs.to(precision.device)
            with precision.autocast() if precision else nullcontext():
                model(inputs, **routing)
    if not found.windows:
        raise Failure("there is nothing to measure on: no batch came from the data")
    return found


def choose_layer(config: ModelConfig, layer: int | None) -> int:
    """The last one of the middle, if none is given. Raises UsageError for one that is not there."""
    count = config.layers[1]
    if layer is not None and not 0 <= layer < count:
        raise UsageError(f"--layer {layer}: the middle has layers 0 to {count - 1}")
    return count - 1 if layer is None else layer
