"""Multi-head attention, and what every kind of attention is given.

Shapes: *rows.shape as in `models.active_tokens`, C = n_embd, H = n_head, D = C / H.
"""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from models.active_tokens import Rows
from models.attention_op import attend
from models.config import ModelConfig
from models.key_values import Store
from models.positions import rotate


class Context(NamedTuple):
    """Representations that offer keys and values in place of the rows' own: x (*rows.shape, C)."""

    x: Tensor
    rows: Rows


class MultiHeadAttention(nn.Module):
    """Multi-head softmax attention with scale 1/sqrt(D); what it may look at is the store's affair."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout, self.fast = config.dropout, config.attention == "fast"
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # rows: q, k, v
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rows: Rows, store: Store, context: Context | None = None) -> Tensor:
        """x (*rows.shape, C) -> (*rows.shape, C). context: what keys and values are made of, if not x."""
        q, k, v = self.project(x, rows, context)
        key_rows = rows if context is None else context.rows
        k = rotate(k, key_rows.rotation)
        seen = store.add((key_rows.to_batch(k), key_rows.to_batch(v)), key_rows, rows)
        if not rows.total:
            return x
        queries = rows.to_batch(rotate(q, rows.rotation))
        dropout = self.dropout if self.training else 0.0
        y = attend(queries, *seen, fast=self.fast, dropout=dropout)
        return self.resid_dropout(self.c_proj(rows.from_batch(y).flatten(-2)))

    def project(self, x: Tensor, rows: Rows, context: Context | None = None) -> list[Tensor]:
        """Queries of `rows`, and keys and values of the context's rows or these, all before their rotation.

        Each (*shape of its rows, H, D). Where there are no rows, the queries mean nothing.
        """
        if context is None:
            return self._heads(self.c_attn(x), 3)
        return self._apart(x, context.x) if rows.total else self._heads(self.c_attn(context.x), 3)

    def _heads(self, projected: Tensor, parts: int) -> list[Tensor]:
        """(..., parts * C) -> parts times (..., H, D)."""
        return [part.unflatten(-1, (self.n_head, -1)) for part in projected.chunk(parts, dim=-1)]

    def _apart(self, x: Tensor, context: Tensor) -> list[Tensor]:
        """Queries of x, keys and values of `context`.

        Under autocast a part of the weight is converted at each call, the whole only once: so this is for
        when there are queries to save.
        """
        width = self.c_proj.in_features
        weight, bias = self.c_attn.weight, self.c_attn.bias
        of_query, of_rest = (None, None) if bias is None else (bias[:width], bias[width:])
        query = self._heads(F.linear(x, weight[:width], of_query), 1)
        return query + self._heads(F.linear(context, weight[width:], of_rest), 2)
