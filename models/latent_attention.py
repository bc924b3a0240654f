"""Multi-Head Latent Attention (DeepSeek-AI 2024, DeepSeek-V2, Section 2.1, arXiv:2405.04434).

Shapes: *rows.shape as in `models.active_tokens`, B batch, n rows of a pass, S visible tokens, C = n_embd,
H = n_head, L = kv_lora_rank, E = qk_rope_head_dim.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.active_tokens import Rows
from models.attention import Context
from models.attention_op import attend
from models.config import ModelConfig
from models.key_values import Store, Visible
from models.positions import rotate


class LatentAttention(nn.Module):
    """Keys and values of all heads are made from one latent of L numbers, and that is what a cache keeps.

    A token offers its latent, down-projected from its representation and normed, and one key of E numbers,
    turned by its position, which all heads share. A head's key is qk_nope_head_dim numbers made from the
    latent, then the shared key; its value is v_head_dim numbers made from the latent. Queries come through a
    latent of their own, of q_lora_rank, and have the same two parts; the scale is 1 / sqrt(size of a key).

    With a store that forgets, keys and values are made once and shared by the passes that look at them. A
    lasting store keeps (latent, shared key), L + E numbers a token. Rows of many tokens (a prompt) make keys
    and values from those; the row of a single new token does not (`_absorbed`), to the same result.

    As in DeepSeek's code, the up-projections have no biases, whatever the configuration says of the others.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout, self.fast = config.dropout, config.attention == "fast"
        self.latent_sizes = [config.kv_lora_rank, config.qk_rope_head_dim]
        self.query_sizes = [config.qk_nope_head_dim, config.qk_rope_head_dim]
        self.head_sizes = [config.qk_nope_head_dim, config.v_head_dim]  # that a head makes from the latent
        self.scale = sum(self.query_sizes) ** -0.5
        self.q_down = nn.Linear(config.n_embd, config.q_lora_rank, bias=config.bias)
        self.q_norm = nn.RMSNorm(config.q_lora_rank, eps=1e-5)
        self.q_up = nn.Linear(config.q_lora_rank, self.n_head * sum(self.query_sizes), bias=False)
        self.kv_down = nn.Linear(config.n_embd, sum(self.latent_sizes), bias=config.bias)
        self.kv_norm = nn.RMSNorm(config.kv_lora_rank, eps=1e-5)
        self.kv_up = nn.Linear(config.kv_lora_rank, self.n_head * sum(self.head_sizes), bias=False)
        self.c_proj = nn.Linear(self.n_head * config.v_head_dim, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rows: Rows, store: Store, context: Context | None = None) -> Tensor:
        """x (*rows.shape, C) -> (*rows.shape, C). context: what latents are made of, if not x."""
        source, key_rows = (x, rows) if context is None else context
        latents = key_rows.to_batch(self._latents(source, key_rows))
        seen = store.add((latents,) if store.lasting else self._padded(latents), key_rows, rows)
        if not rows.total:
            return x
        queries = rows.to_batch(self._queries(x, rows))
        if store.lasting and rows.grid.length == 1:
            y = self._absorbed(queries, seen.whole())
        else:
            passes = [self._padded(*kept) for kept in seen.passes] if store.lasting else seen.passes
            queries = F.pad(queries, (0, passes[0][0].shape[-1] - queries.shape[-1]))
            dropout = self.dropout if self.training else 0.0
            y = attend(queries, passes, seen.sights, fast=self.fast, dropout=dropout, scale=self.scale)
            y = y[..., : self.head_sizes[1]]
        return self.resid_dropout(self.c_proj(rows.from_batch(y).flatten(-2)))

    def _latents(self, x: Tensor, rows: Rows) -> Tensor:
        """x (*rows.shape, C) -> latents and shared keys (*rows.shape, 1, L + E)."""
        latent, key = self.kv_down(x).unsqueeze(-2).split(self.latent_sizes, dim=-1)
        return torch.cat((_normed(self.kv_norm, latent), rotate(key, rows.rotation)), dim=-1)

    def _queries(self, x: Tensor, rows: Rows) -> Tensor:
        """x (*rows.shape, C) -> (*rows.shape, H, size of a key)."""
        heads = self.q_up(_normed(self.q_norm, self.q_down(x))).unflatten(-1, (self.n_head, -1))
        still, turning = heads.split(self.query_sizes, dim=-1)
        return torch.cat((still, rotate(turning, rows.rotation)), dim=-1)

    def _keys_values(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, S, L + E) -> keys (B, H, S, size of a key), values (B, H, S, v_head_dim)."""
        latent, shared = latents.split(self.latent_sizes, dim=-1)
        heads = self.kv_up(latent.squeeze(1)).unflatten(-1, (self.n_head, -1)).transpose(1, 2)
        keys, values = heads.split(self.head_sizes, dim=-1)
        return torch.cat((keys, shared.expand(-1, self.n_head, -1, -1)), dim=-1), values

    def _padded(self, latents: Tensor) -> list[Tensor]:
        """Keys and values (B, H, S, D) of one size: the shorter ones with zeros behind.

        The fast kernels want that. Attention over several passes then takes two thirds of the time, forward
        and backward on a CPU.
        """
        keys_values = self._keys_values(latents)
        size = max(tensor.shape[-1] for tensor in keys_values)
        return [F.pad(tensor, (0, size - tensor.shape[-1])) for tensor in keys_values]

    def _absorbed(self, queries: Tensor, seen: Visible) -> Tensor:
        """The same for one query of each head, without making keys and values: n is 1.

        A key's part from the latent c is U c, so q . U c = (U^T q) . c: queries times U^T look at the latents
        themselves. Values are V c, so their weighted mean is V times that of the latents. All heads look at
        the same latents: to the kernel they are the H queries of one head.
        """
        (latents,) = seen.kept
        up_keys, up_values = self.kv_up.weight.unflatten(0, (self.n_head, -1)).split(self.head_sizes, dim=1)
        still, turning = queries.squeeze(2).split(self.query_sizes, dim=-1)  # (B, H, ...)
        into_latents = torch.einsum("bhk,hkl->bhl", still, up_keys)
        means = F.scaled_dot_product_attention(
            torch.cat((into_latents, turning), dim=-1)[:, None],
            latents,
            latents[..., : self.latent_sizes[0]],
            attn_mask=seen.mask,
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.scale,
        )
        return torch.einsum("bhl,hvl->bhv", means[:, 0], up_values)[:, :, None]


def _normed(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """norm(x) in the format of x, computed in that of the weights: autocast leaves the kernel two formats."""
    return norm(x.to(torch.promote_types(x.dtype, norm.weight.dtype))).to(x.dtype)
