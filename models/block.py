"""The parts every variant is built from: attention, MLP, and the pre-norm block that joins them.

Shapes: B batch, T tokens, C = n_embd, H = n_head, D = C / H.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from models.config import ModelConfig
from models.key_values import LayerStore
from models.positions import rotate


def layer_norm(config: ModelConfig) -> nn.LayerNorm:
    """LayerNorm with eps 1e-5; it has a bias only if the configuration asks for biases."""
    return nn.LayerNorm(config.n_embd, eps=1e-5, bias=config.bias)


class Attention(nn.Module):
    """Multi-head softmax attention with scale 1/sqrt(D); what it may look at is the store's affair."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # rows: q, k, v
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None, store: LayerStore) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        q, k, v = (
            part.unflatten(-1, (self.n_head, -1)).transpose(1, 2)  # (B, H, T, D)
            for part in self.c_attn(x).chunk(3, dim=-1)
        )
        keys, values, mask = store.add(rotate(k, rotation), v)
        y = F.scaled_dot_product_attention(
            rotate(q, rotation),
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None,
            # The function form does not know about evaluation mode: without this it would drop there too.
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).flatten(-2)))


class MLP(nn.Module):
    """C -> 4C -> C with the exact (erf) GELU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x))))


class Block(nn.Module):
    """x + attention(ln_1(x)), then x + mlp(ln_2(x)) (pre-norm: Xiong et al. 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln_1 = layer_norm(config)
        self.attn = Attention(config)
        self.ln_2 = layer_norm(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None, store: LayerStore) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        x = x + self.attn(self.ln_1(x), rotation, store)
        return x + self.mlp(self.ln_2(x))
