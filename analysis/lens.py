"""The logit lens: predictions from hidden states after each repeat or block (nostalgebraist, 2020).

Shapes: B batch, T tokens, C = n_embd, V = vocab_size, R passes.
"""

from collections.abc import Iterable
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from analysis.hooks import Layer, forward_passes, watch_blocks, watch_passes
from analysis.statistics import GroupedMeans
from distributed import Precision
from models.active_tokens import ActiveTokens
from models.kv_cache import LayerKeys, PassKeys
from models.language_model import LanguageModel
from models.losses import IGNORED

# loss: cross entropy, nats per token. accuracy: the target is the most likely token. agreement: the full
# model has the same most likely token. divergence: KL(full model || this depth), nats.
MEASURES = ("loss", "accuracy", "agreement", "divergence")
CHUNK = 2**25  # logits held at once


class HiddenStates:
    """Hidden states of all tokens of one forward pass, (B * T, C), by depth.

    `repeat r`: the input of pass r + 1; a halted token keeps its last state. The end blocks are applied to it
    (attending to states of the same depth, as if all tokens stopped after r passes) unless through_end_blocks
    is False. With `layers` also `<layer>, repeat r`, the output of each block, without the end blocks.
    """

    def __init__(self, model: LanguageModel, layers: bool, through_end_blocks: bool) -> None:
        self._model, self._layers, self._through = model, layers, through_end_blocks
        self._current: Tensor | None = None  # (B * T, C)
        self.by_depth: dict[str, Tensor] = {}

    def watch(self) -> ExitStack:
        """A context that collects the states of a forward pass; call `reset` before the next one."""
        stack = ExitStack()
        if self._layers:
            stack.enter_context(watch_blocks(self._model, self._after_block))
        stack.enter_context(watch_passes(self._model, self._after_pass))
        return stack

    def reset(self) -> None:
        self._current, self.by_depth = None, {}

    def _after_block(self, layer: Layer, repeat: int, x: Tensor, tokens: ActiveTokens) -> None:
        current = self._updated(x, tokens)
        if layer.part != "end":
            self._current = current  # halted tokens keep the state of their last block
        name = layer.name if layer.part != "middle" else f"{layer.name}, repeat {repeat}"
        self.by_depth[name] = current

    def _after_pass(self, repeat: int, x: Tensor, tokens: ActiveTokens) -> None:
        self._current = self._updated(x, tokens)
        self.by_depth[f"repeat {repeat}"] = self._through_end_blocks(self._current, tokens)

    def _updated(self, x: Tensor, tokens: ActiveTokens) -> Tensor:
        """The states of all tokens (B * T, C), with x for the active ones."""
        flat = x.detach().flatten(0, -2)
        if self._current is None or tokens.count == len(self._current):
            return flat
        return self._current.to(flat.dtype).index_copy(0, tokens.flat_index, flat)

    def _through_end_blocks(self, current: Tensor, tokens: ActiveTokens) -> Tensor:
        if not self._through:
            return current
        everyone = ActiveTokens(tokens.grid)
        keys = PassKeys(self._model.config.attention_window_length)
        x = current.view(*everyone.shape, -1)
        for index, block in enumerate(self._model.transformer.h_end):
            # Calling the block would trigger the hooks.
            x = block.forward(x, everyone, LayerKeys(keys, ("end", index), 1, all_passes=False))
        return x.flatten(0, -2)


@torch.no_grad()
def logit_lens(
    model: LanguageModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    precision: Precision | None,
    layers: bool = False,
    through_end_blocks: bool = True,
    **routing: Any,
) -> dict[str, dict[str, float]]:
    """Means of MEASURES over all tokens by depth, in the order of the forward pass.

    The arguments are those of `hooks.forward_passes` and `HiddenStates`. Raises Failure if there is no batch.
    """
    states, means = HiddenStates(model, layers, through_end_blocks), {}
    with states.watch():
        for _, targets, output in forward_passes(model, batches, precision, predict=True, **routing):
            final = output["logits"].flatten(0, -2)
            for name, x in states.by_depth.items():
                means.setdefault(name, GroupedMeans(1, len(MEASURES)))
                for start in range(0, len(x), step := max(1, CHUNK // final.shape[-1])):
                    part = slice(start, start + step)
                    with precision.autocast() if precision else nullcontext():
                        logits = model.lm_head(model.transformer.ln_f(x[part]))
                    measured = measure(logits, final[part], targets.flatten()[part])
                    means[name].add(torch.zeros(len(measured), dtype=torch.long), measured)
            states.reset()
    return {
        name: dict(zip(MEASURES, of_depth.means[0].tolist(), strict=True)) for name, of_depth in means.items()
    }


def measure(logits: Tensor, final: Tensor, targets: Tensor) -> Tensor:
    """MEASURES of each token, (N, 4), NaN without a target.

    logits: of this depth, (N, V). final: of the full model, (N, V). targets: (N,).
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    here, there = logits.to(dtype).log_softmax(-1), final.to(dtype).log_softmax(-1)
    best = here.argmax(-1)
    loss = F.nll_loss(here, targets, ignore_index=IGNORED, reduction="none")
    right = (best == targets).to(dtype)
    known = targets != IGNORED
    divergence = (there.exp() * (there - here)).sum(-1)
    columns = (
        loss.masked_fill(~known, torch.nan),
        right.masked_fill(~known, torch.nan),
        (best == there.argmax(-1)).to(dtype),
        divergence,
    )
    return torch.stack(columns, -1)
