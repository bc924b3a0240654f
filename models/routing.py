"""Who goes on: the two ways to decide which tokens take the next pass.

Shapes: *rows.shape as in `models.active_tokens`, R = n_repeat.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.active_tokens import Rows
from models.config import ModelConfig


class Router(nn.Module):
    """One vector w: the score of a token is sigmoid(w . x) (paper, Section 4.1)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.mod_router = nn.Linear(config.n_embd, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (*rows.shape, C) -> scores (*rows.shape), in float32 at least: in bfloat16 many would tie."""
        work = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(work), self.mod_router.weight.to(work)).squeeze(-1).sigmoid()


class Routing(Protocol):
    """Decides after each of the passes 1..R-1 which of its tokens take the next."""

    def choose(self, repeat: int, scores: Tensor, rows: Rows) -> Rows:
        """scores (*rows.shape) of the rows that took pass `repeat` -> those of them that go on."""


class TopK:
    """The highest scores of each sequence, a given number of its tokens: how the models are trained.

    Whether a token is among them depends on tokens behind it. This is not causal: it cannot write text token
    by token, and a perplexity measured with it sees a little of the future.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        """tokens: of a sequence, how many take each of the passes 1..R (`capacities.tokens_per_pass`)."""
        self._tokens = tokens

    def choose(self, repeat: int, scores: Tensor, rows: Rows) -> Rows:
        count = self._tokens[repeat]
        # A compiled step does not compare: it would need another graph for each answer.
        if not torch.compiler.is_compiling() and count == self._tokens[repeat - 1]:
            return rows.whole()
        if scores.dim() != 2:
            raise ValueError("top-k routing needs sequences of equal length; use thresholds")
        return rows.choose(scores.topk(count, dim=1, sorted=False).indices.sort(dim=1).values)


class Threshold:
    """A token goes on if its score reaches the router's threshold: causal, whatever else is in the batch."""

    def __init__(self, thresholds: Sequence[float]) -> None:
        """thresholds: R - 1 of them; at 0 every token goes on, above 1 none does."""
        self._thresholds = thresholds

    def choose(self, repeat: int, scores: Tensor, rows: Rows) -> Rows:
        threshold = self._thresholds[repeat - 1]
        if threshold <= 0.0:
            return rows.whole()
        return rows.keep(scores >= threshold)
