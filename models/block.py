"""The pre-norm transformer block that every variant is built from, and all blocks of a model.

Shapes: *tokens.shape as in `models.active_tokens`, C = n_embd.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn
from torch.nn import functional as F

from models.active_tokens import ActiveTokens
from models.attention import ATTENTIONS, KeySource
from models.config import ModelConfig
from models.kv_cache import LayerKeys, recomputation_pays, recomputed

if TYPE_CHECKING:
    from models.block_graphs import BlockGraphs


def layer_norm(config: ModelConfig) -> nn.LayerNorm:
    """LayerNorm with eps 1e-5; with a bias if the configuration asks for biases."""
    return nn.LayerNorm(config.n_embd, eps=1e-5, bias=config.bias)


class MLP(nn.Module):
    """C -> 4C -> C with the exact (erf) GELU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C) -> (..., C)."""
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x))))


class Block(nn.Module):
    """x + attention(ln_1(x)), then x + mlp(ln_2(x)) (pre-norm: Xiong et al. 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln_1 = layer_norm(config)
        self.attn = ATTENTIONS[config.variant.attention](config)
        self.ln_2 = layer_norm(config)
        self.mlp = MLP(config)
        self._checkpointed = config.activation_checkpointing == "block"
        self.graphs: BlockGraphs | None = None  # compiled stages, for training

    def forward(
        self, x: Tensor, tokens: ActiveTokens, keys: LayerKeys, source: KeySource | None = None
    ) -> Tensor:
        """x (*tokens.shape, C) -> (*tokens.shape, C).

        source: keys and values are made from ln_1 of its representations instead of x's.
        """
        if not self.is_recomputed(keys):
            return self._run([keys], x, tokens, source)
        key_tokens = tokens if source is None else source.tokens
        return recomputed(self._run, [keys], key_tokens, tokens, x, tokens, source)

    def is_recomputed(self, keys: LayerKeys) -> bool:
        """Whether the backward pass computes the block a second time."""
        return self._checkpointed and recomputation_pays(self.training, keys)

    def _run(
        self, keys: Sequence[LayerKeys], x: Tensor, tokens: ActiveTokens, source: KeySource | None
    ) -> Tensor:
        if self.graphs is not None and self.training and self.graphs.apply_to(tokens, source):
            return self.graphs.run([self], keys, x, tokens, source)
        if source is not None:
            source = KeySource(self.ln_1(source.x), source.tokens)
        x = x + self.attn(self.ln_1(x), tokens, keys[0], source)
        return x + self.mlp(self.ln_2(x)) if tokens.count else x  # without tokens only keys were to be cached


def run_blocks(blocks: nn.ModuleList, keys: Sequence[LayerKeys], x: Tensor, tokens: ActiveTokens) -> Tensor:
    """x (*tokens.shape, C) through blocks, one after another -> the same. keys: of each block."""
    listed = cast("list[Block]", list(blocks))
    graphs = listed[0].graphs if listed else None
    if graphs is not None and graphs.apply_to_all(listed, tokens, keys[0]):
        return graphs.run(listed, keys, x, tokens)
    for block, layer_keys in zip(blocks, keys, strict=True):
        x = block(x, tokens, layer_keys)
    return x


class Transformer(nn.ModuleDict):
    """The blocks of a model with its token embedding and norms, by their names in published checkpoints."""

    wte: nn.Embedding
    h_begin: nn.ModuleList
    h_mid: nn.ModuleList
    h: nn.ModuleList  # instead of h_mid, in a transformer without repeats
    ln_mid: nn.Module
    h_end: nn.ModuleList
    ln_f: nn.Module
    mod: nn.ModuleList  # routers, in variants that route

    def __init__(self, config: ModelConfig) -> None:
        n_begin, n_mid, n_end = config.layers
        middle = "h_mid" if config.variant.repeats else "h"
        super().__init__({
            "wte": nn.Embedding(config.vocab_size, config.n_embd),
            "h_begin": _blocks(config, n_begin),
            middle: _blocks(config, n_mid),
            "ln_mid": layer_norm(config) if config.has_ln_mid else nn.Identity(),
            "h_end": _blocks(config, n_end),
            "ln_f": layer_norm(config),
        })  # fmt: skip

    @property
    def middle(self) -> nn.ModuleList:
        """The blocks that are repeated."""
        return self.h_mid if "h_mid" in self else self.h


def _blocks(config: ModelConfig, count: int) -> nn.ModuleList:
    return nn.ModuleList(Block(config) for _ in range(count))
