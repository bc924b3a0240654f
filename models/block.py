"""The pre-norm block that every variant is built from: a kind of attention, an MLP, their norms.

Shapes: *rows.shape as in `models.active_tokens`, C = n_embd.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from models.active_tokens import Rows
from models.attention import Context, MultiHeadAttention
from models.checkpointing import pays, recomputed
from models.config import ModelConfig
from models.key_values import Store
from models.latent_attention import LatentAttention

ATTENTIONS = {"mha": MultiHeadAttention, "mla": LatentAttention}


def layer_norm(config: ModelConfig) -> nn.LayerNorm:
    """LayerNorm with eps 1e-5; it has a bias only if the configuration asks for biases."""
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

    def forward(self, x: Tensor, rows: Rows, store: Store, context: Context | None = None) -> Tensor:
        """x (*rows.shape, C) -> (*rows.shape, C).

        context: keys and values are those of ln_1 of its representations instead of x's.
        """
        if not (self._checkpointed and pays(self.training, store)):
            return self._run([store], x, rows, context)
        key_rows = rows if context is None else context.rows
        return recomputed(self._run, [store], key_rows, rows, x, rows, context)

    def _run(self, stores: Sequence[Store], x: Tensor, rows: Rows, context: Context | None) -> Tensor:
        (store,) = stores
        if context is not None:
            context = Context(self.ln_1(context.x), context.rows)
        x = x + self.attn(self.ln_1(x), rows, store, context)
        return x + self.mlp(self.ln_2(x)) if rows.total else x  # else only its context was to be kept
