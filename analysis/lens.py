"""The logit lens: what would be predicted from a representation on its way (nostalgebraist, 2020).

Shapes: B batch, T tokens, C = n_embd, V = vocab_size, R passes.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from analysis.hooks import Layer, watch_blocks, watch_passes
from analysis.streaming import GroupedMeans
from distributed import Precision
from errors import Failure
from models.active_tokens import Rows
from models.heads import IGNORED
from models.key_values import ForwardMemory
from models.language_model import LanguageModel

# loss: cross entropy, nats per token. accuracy: the target is the likeliest token. agreement: the likeliest
# token is that of the whole model. divergence: KL(whole model || this depth), nats.
MEASURES = ("loss", "accuracy", "agreement", "divergence")
CHUNK = 2**25  # logits held at once


class Depths:
    """Representations of all tokens of one forward pass, by depth.

    After pass r each token has its representation as the next pass would take it; one that has halted keeps
    its last. `repeat r`: that, through the end blocks (each depth attends to itself there, as it would if all
    tokens stopped after r passes) unless through_end_blocks is False. With layers also `<layer>, repeat r`,
    after each block, without the end blocks.
    """

    def __init__(self, model: LanguageModel, layers: bool, through_end_blocks: bool) -> None:
        self._model, self._layers, self._through = model, layers, through_end_blocks
        self._current: Tensor | None = None  # (B * T, C)
        self.found: dict[str, Tensor] = {}

    def watch(self) -> ExitStack:
        """A context in which forward passes are looked at; `start` before each."""
        stack = ExitStack()
        if self._layers:
            stack.enter_context(watch_blocks(self._model, self._after_block))
        stack.enter_context(watch_passes(self._model, self._after_pass))
        return stack

    def start(self) -> None:
        self._current, self.found = None, {}

    def _after_block(self, layer: Layer, repeat: int, x: Tensor, rows: Rows) -> None:
        current = self._put(x, rows)
        if layer.part != "end":
            self._current = current  # of tokens that take no pass, what the last block left
        part = layer.name if layer.part != "middle" else f"{layer.name}, repeat {repeat}"
        self.found[part] = current

    def _after_pass(self, repeat: int, x: Tensor, rows: Rows) -> None:
        self._current = self._put(x, rows)
        self.found[f"repeat {repeat}"] = self._ended(self._current, rows)

    def _put(self, x: Tensor, rows: Rows) -> Tensor:
        """All tokens, those of `rows` replaced: (B * T, C)."""
        flat = x.detach().flatten(0, -2)
        if self._current is None or rows.total == len(self._current):
            return flat
        return self._current.to(flat.dtype).index_copy(0, rows.tokens, flat)

    def _ended(self, current: Tensor, rows: Rows) -> Tensor:
        if not self._through:
            return current
        everyone = Rows(rows.grid)
        memory = ForwardMemory(self._model.config.attention_window_length)
        x = current.view(*everyone.shape, -1)
        for index, block in enumerate(self._model.transformer.h_end):
            # Not by calling the block: that would be looked at as a block of the forward pass.
            x = block.forward(x, everyone, memory.own_pass(("end", index)))
        return x.flatten(0, -2)


@torch.no_grad()
def look(
    model: LanguageModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    precision: Precision | None,
    layers: bool = False,
    through_end_blocks: bool = True,
    **routing: Any,
) -> dict[str, dict[str, float]]:
    """MEASURES by depth, in the order of the forward pass: means over all tokens.

    batches: (inputs, targets), (B, T) each. precision: None for the model's own numbers. Raises Failure where
    there is no batch.
    """
    depths, means, autocast = Depths(model, layers, through_end_blocks), {}, _autocast(precision)
    for inputs, targets in batches:
        if precision is not None:
            inputs, targets = inputs.to(precision.device), targets.to(precision.device)
        depths.start()
        with autocast(), depths.watch():
            final = model(inputs, targets=targets, get_logits=True, **routing)["logits"].flatten(0, -2)
        for name, x in depths.found.items():
            if name not in means:
                means[name] = GroupedMeans(1, len(MEASURES))
            for start in range(0, len(x), step := max(1, CHUNK // final.shape[-1])):
                part = slice(start, start + step)
                with autocast():
                    logits = model.lm_head(model.transformer.ln_f(x[part]))
                measured = measure(logits, final[part], targets.flatten()[part])
                means[name].add(torch.zeros(len(measured), dtype=torch.long), measured)
    if not means:
        raise Failure("there is nothing to measure on: no batch came from the data")
    return {
        name: dict(zip(MEASURES, of_depth.means[0].tolist(), strict=True)) for name, of_depth in means.items()
    }


def measure(logits: Tensor, final: Tensor, targets: Tensor) -> Tensor:
    """(N, 4): the MEASURES of each token, NaN where it has no target. logits, final (N, V); targets (N,)."""
    work = torch.promote_types(logits.dtype, torch.float32)
    here, there = logits.to(work).log_softmax(-1), final.to(work).log_softmax(-1)
    best = here.argmax(-1)
    loss = F.nll_loss(here, targets, ignore_index=IGNORED, reduction="none")
    right = (best == targets).to(work)
    known = targets != IGNORED
    divergence = (there.exp() * (there - here)).sum(-1)
    columns = (
        loss.masked_fill(~known, torch.nan),
        right.masked_fill(~known, torch.nan),
        (best == there.argmax(-1)).to(work),
        divergence,
    )
    return torch.stack(columns, -1)


def _autocast(precision: Precision | None):
    from contextlib import nullcontext

    return precision.autocast if precision else nullcontext
