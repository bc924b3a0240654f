"""Repeaters: how often the shared middle blocks run, and which keys each pass attends to.

A repeater takes the representations after the begin blocks and returns those to predict from. It owns no
weights: it works on the parts that the language model holds, so that every parameter keeps the name it has in
published checkpoints. Those that stop tokens early are in `models.mixture_of_repeats` and `models.halting`.

Shapes: *tokens.shape as in `models.active_tokens`, C = n_embd, R = n_repeat.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from models.active_tokens import ActiveTokens
from models.block import run_blocks
from models.kv_cache import KVCache, LayerKeys, PassKeys, layer_keys, recomputation_pays, recomputed

if TYPE_CHECKING:
    from models.mixture_of_repeats import Routing


@dataclass(frozen=True)
class Middle:
    """The parts that a repeater works with; None where a variant has none (ln_mid: the identity; no routers).

    training: whether the model is in training mode. checkpointed: whether the backward pass recomputes
    passes.
    """

    blocks: nn.ModuleList
    n_repeat: int
    ln_mid: nn.Module
    after_pass: "AfterPass"
    depth_embedding: nn.Module | None
    routers: Sequence[nn.Module]
    routing: "Routing | None"
    halting_gate: nn.Module | None
    halt_threshold: float
    training: bool
    checkpointed: bool

    def keys(self, cache: PassKeys | KVCache, repeat: int, all_passes: bool) -> list[LayerKeys]:
        """For each block, the keys that pass `repeat` attends to: of this pass, or of passes 1..repeat."""
        return layer_keys(cache, "middle", len(self.blocks), repeat, all_passes)

    def run_pass(self, x: Tensor, tokens: ActiveTokens, keys: Sequence[LayerKeys]) -> Tensor:
        """x (*tokens.shape, C) through all blocks and ln_mid."""
        return self.run(self._blocks, keys, tokens, tokens, x, tokens)

    def run(
        self,
        function: Callable[..., Tensor],
        keys: Sequence[LayerKeys],
        key_tokens: ActiveTokens,
        query_tokens: ActiveTokens,
        *args: Any,
    ) -> Tensor:
        """function(keys, *args): one pass, under activation checkpointing where that is asked for."""
        if self.checkpointed and recomputation_pays(self.training, keys[0]):
            return recomputed(function, keys, key_tokens, query_tokens, *args)
        return function(keys, *args)

    def with_depth(self, x: Tensor, repeat: int) -> Tensor:
        """x before pass `repeat` (1-based), with the embedding of the R - repeat passes left."""
        return x if self.depth_embedding is None else x + self.depth_embedding(self.n_repeat - repeat)

    def _blocks(self, keys: Sequence[LayerKeys], x: Tensor, tokens: ActiveTokens) -> Tensor:
        return self.ln_mid(run_blocks(self.blocks, keys, x, tokens))


@dataclass(frozen=True)
class RepeaterOutput:
    """The result of a repeater.

    Attributes:
        exits: representations (*tokens.shape, C) to predict from: one, or for PonderNet one after every pass.
        passes: the active tokens of each pass.
        scores: of each router, the tokens it saw and their scores.
        penalty: added to the training loss for depth, per token; a scalar or None.
        unhalted: tokens of each pass that had not halted, where halted ones are computed too; else empty.
    """

    exits: list[Tensor]
    passes: list[ActiveTokens]
    scores: list[tuple[ActiveTokens, Tensor]]
    penalty: Tensor | None = None
    unhalted: Sequence[Tensor] = ()

    @property
    def counts(self) -> Sequence[int | Tensor]:
        """Tokens that took each pass."""
        return self.unhalted or [tokens.count for tokens in self.passes]

    def routing_by_position(self, n_repeat: int, positions_per_token: int) -> dict[str, Tensor]:
        """router_scores (B, R - 1, T), NaN where a router did not see a token, and passes (B, T) it took."""
        grid, device = self.passes[0].grid, self.passes[0].flat_index.device
        passes = torch.zeros(grid.batch, grid.length, dtype=torch.long, device=device)
        for number, active in enumerate(self.passes, start=1):  # a token of a pass took all before it
            passes.view(-1).index_fill_(0, active.flat_index, number)
        scores = torch.full((n_repeat - 1, grid.batch, grid.length), torch.nan, device=device)
        for number, (active, score) in enumerate(self.scores):
            scores[number].view(-1)[active.flat_index] = score.detach().flatten().float()
        last = slice(positions_per_token - 1, None, positions_per_token)  # of a token and its pauses
        return {"router_scores": scores.transpose(0, 1)[..., last], "passes": passes[:, last]}


class AfterPass(nn.Module):
    """The identity: where hooks find each token's representation after a pass (`analysis`).

    Every repeater but stick breaking calls it after each pass that it computes.
    """

    def forward(self, x: Tensor, tokens: ActiveTokens, repeat: int) -> Tensor:
        """x (*tokens.shape, C), before the depth embedding of the next pass; repeat: 1-based."""
        return x


class Repeater(Protocol):
    """Runs the middle: x (*tokens.shape, C) -> `RepeaterOutput`."""

    def __call__(
        self, x: Tensor, tokens: ActiveTokens, middle: Middle, cache: PassKeys | KVCache
    ) -> RepeaterOutput: ...


class Once:
    """The standard transformer: every block runs once."""

    def __call__(
        self, x: Tensor, tokens: ActiveTokens, middle: Middle, cache: PassKeys | KVCache
    ) -> RepeaterOutput:
        x = middle.run_pass(x, tokens, middle.keys(cache, 1, all_passes=False))
        return RepeaterOutput([middle.after_pass(x, tokens, 1)], [tokens], [])


class Universal:
    """Block Universal Transformer: R passes, each of which attends to itself (T keys).

    every_exit: predict from the representations after every pass (PonderNet), not only after the last.
    """

    def __init__(self, every_exit: bool = False) -> None:
        self._every_exit = every_exit

    def __call__(
        self, x: Tensor, tokens: ActiveTokens, middle: Middle, cache: PassKeys | KVCache
    ) -> RepeaterOutput:
        exits = []
        for repeat in range(1, middle.n_repeat + 1):
            x = middle.run_pass(x, tokens, middle.keys(cache, repeat, all_passes=False))
            x = middle.after_pass(x, tokens, repeat)
            exits.append(x)
        return RepeaterOutput(exits if self._every_exit else exits[-1:], [tokens] * middle.n_repeat, [])


class CrossRepeat:
    """CoTFormer: pass r attends to the keys and values of passes 1..r (Eq. 3; r * T keys).

    With a depth embedding and ln_mid this is the LN-CoTFormer: the embedding of R - r is added before pass r,
    and the LayerNorm follows every pass, the last one too.
    """

    def __call__(
        self, x: Tensor, tokens: ActiveTokens, middle: Middle, cache: PassKeys | KVCache
    ) -> RepeaterOutput:
        for repeat in range(1, middle.n_repeat + 1):
            keys = middle.keys(cache, repeat, all_passes=True)
            x = middle.run_pass(middle.with_depth(x, repeat), tokens, keys)
            x = middle.after_pass(x, tokens, repeat)
        return RepeaterOutput([x], [tokens] * middle.n_repeat, [])
