"""Attention modules: multi-head attention, and multi-head latent attention (DeepSeek-V2).

Shapes: *tokens.shape as in `models.active_tokens`, B batch, n queries, S visible keys, C = n_embd, H =
n_head, D = C / H; latent attention: L = kv_lora_rank, E = qk_rope_head_dim.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.active_tokens import ActiveTokens
from models.attention_op import attention_op
from models.config import ModelConfig
from models.embeddings import Rotation, rotate_parts
from models.kv_cache import LayerKeys, Visible


class KeySource(NamedTuple):
    """Representations x (*tokens.shape, C) that keys and values are made from in place of the queries'."""

    x: Tensor
    tokens: ActiveTokens


def parts_of(source: KeySource | None) -> tuple[Tensor | None, Rotation | None]:
    """The representations of a source and their rotation."""
    return (None, None) if source is None else (source.x, source.tokens.rotation)


class Attention(nn.Module):
    """Softmax attention in three parts: `prepare` and `output` work token by token, `attend` across tokens.

    Subclasses have `prepare`, `attend`, and the projection c_proj of the output.
    """

    prepare: Callable[..., list[Tensor]]
    attend: Callable[..., Tensor | None]
    c_proj: nn.Linear

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout, self.fast = config.dropout, config.attention == "fast"
        self.fused_rotation = config.attention != "plain"
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, tokens: ActiveTokens, keys: LayerKeys, source: KeySource | None = None
    ) -> Tensor:
        """x (*tokens.shape, C) -> the same. source: what keys and values are made from, if not x."""
        y = self.attend(self.prepare(x, tokens.rotation, *parts_of(source)), tokens, keys, source)
        return x if y is None else self.output(y)

    def output(self, y: Tensor) -> Tensor:
        """Token by token: (..., H * D) -> (..., C)."""
        return self.resid_dropout(self.c_proj(y))


class MultiHeadAttention(Attention):
    """Multi-head attention with scale 1 / sqrt(D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # queries, keys, values
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)

    def prepare(
        self,
        x: Tensor,
        rotation: Rotation | None,
        source_x: Tensor | None = None,
        source_rotation: Rotation | None = None,
    ) -> list[Tensor]:
        """Token by token: rotated queries of x, rotated keys and values of x or of source_x.

        x (..., C), source_x (*, C) -> (..., H, D), then (*, H, D) twice.
        """
        queries, *others = self._projections(x, source_x)
        if not others:  # queries, keys and values of the same representations
            return rotate_parts(queries, rotation, 3, 2, self.fused_rotation)
        return [
            *rotate_parts(queries, rotation, 1, 1, self.fused_rotation),
            *rotate_parts(others[0], source_rotation, 2, 1, self.fused_rotation),
        ]

    def attend(
        self, prepared: Sequence[Tensor], tokens: ActiveTokens, keys: LayerKeys, source: KeySource | None
    ) -> Tensor | None:
        """Across tokens, of what `prepare` made: (*tokens.shape, H * D); None where there are no tokens."""
        q, k, v = prepared
        key_tokens = tokens if source is None else source.tokens
        visible = keys.update((key_tokens.pad(k), key_tokens.pad(v)), key_tokens, tokens)
        if not tokens.count:
            return None
        dropout = self.dropout if self.training else 0.0
        y = attention_op(tokens.pad(q), visible, fast=self.fast, dropout=dropout)  # (B, H, n, D)
        return tokens.unpad(y).flatten(-2)

    def project(self, x: Tensor, source_x: Tensor | None = None) -> list[Tensor]:
        """Queries of x, keys and values of x or of source_x, before rotation: (*their shape, H, D) each."""
        queries, *others = self._projections(x, source_x)
        return [queries, *others[0].chunk(2, dim=-2)] if others else list(queries.chunk(3, dim=-2))

    def _projections(self, x: Tensor, source_x: Tensor | None) -> list[Tensor]:
        """(..., 3H, D): queries, keys and values; or with a source (..., H, D) and (*, 2H, D)."""
        if source_x is None:
            return [self._heads(self.c_attn(x))]
        # Slicing the weight pays only here, where queries are saved: autocast converts each slice anew.
        width = self.c_proj.in_features
        weight, bias = self.c_attn.weight, self.c_attn.bias
        query_bias, other_bias = (None, None) if bias is None else (bias[:width], bias[width:])
        return [
            self._heads(F.linear(x, weight[:width], query_bias)),
            self._heads(F.linear(source_x, weight[width:], other_bias)),
        ]

    def _heads(self, projected: Tensor) -> Tensor:
        """(..., parts * C) -> (..., parts * H, D)."""
        return projected.unflatten(-1, (-1, self.c_proj.in_features // self.n_head))


class LatentAttention(Attention):
    """Multi-head latent attention (DeepSeek-AI 2024, arXiv:2405.04434, Section 2.1).

    Keys and values of all heads are made from one normalised latent of L numbers, and one key of E rotated
    numbers that the heads share. A head's key is qk_nope_head_dim numbers made from the latent, then the
    shared key; its value is v_head_dim numbers made from the latent. Queries come from a latent of
    q_lora_rank numbers; the scale is 1 / sqrt(size of a key).

    A KV cache keeps (latent, shared key), L + E numbers a token. A prompt makes keys and values from these; a
    single new token attends to the latents themselves (`_absorbed`), with the same result. In training, keys
    and values are made once and shared by all passes. As in DeepSeek's code, up-projections have no biases.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.latent_sizes = [config.kv_lora_rank, config.qk_rope_head_dim]
        self.query_sizes = [config.qk_nope_head_dim, config.qk_rope_head_dim]
        self.head_sizes = [config.qk_nope_head_dim, config.v_head_dim]  # made from the latent, per head
        self.scale = sum(self.query_sizes) ** -0.5
        self.q_down = nn.Linear(config.n_embd, config.q_lora_rank, bias=config.bias)
        self.q_norm = nn.RMSNorm(config.q_lora_rank, eps=1e-5)
        self.q_up = nn.Linear(config.q_lora_rank, self.n_head * sum(self.query_sizes), bias=False)
        self.kv_down = nn.Linear(config.n_embd, sum(self.latent_sizes), bias=config.bias)
        self.kv_norm = nn.RMSNorm(config.kv_lora_rank, eps=1e-5)
        self.kv_up = nn.Linear(config.kv_lora_rank, self.n_head * sum(self.head_sizes), bias=False)
        self.c_proj = nn.Linear(self.n_head * config.v_head_dim, config.n_embd, bias=config.bias)

    def prepare(
        self,
        x: Tensor,
        rotation: Rotation | None,
        source_x: Tensor | None = None,
        source_rotation: Rotation | None = None,
    ) -> list[Tensor]:
        """Token by token: queries of x, latents and shared keys of x or of source_x.

        x (..., C), source_x (*, C) -> (..., H, size of a key), (*, 1, L + E).
        """
        queries = self._queries(x, rotation)
        if source_x is None:
            return [queries, self._latents(x, rotation)]
        return [queries, self._latents(source_x, source_rotation)]

    def attend(
        self, prepared: Sequence[Tensor], tokens: ActiveTokens, keys: LayerKeys, source: KeySource | None
    ) -> Tensor | None:
        """Across tokens, of what `prepare` made: (*tokens.shape, H * D); None where there are no tokens."""
        key_tokens = tokens if source is None else source.tokens
        latents = key_tokens.pad(prepared[1])  # (B, 1, n, L + E)
        cached = keys.cache.persistent
        visible = keys.update((latents,) if cached else self._keys_values(latents), key_tokens, tokens)
        if not tokens.count:
            return None
        q = tokens.pad(prepared[0])  # (B, H, n, size of a key)
        if cached and tokens.grid.length == 1:
            y = self._absorbed(q, visible)
        else:
            if cached:
                visible = Visible([self._keys_values(*one) for one in visible.passes], visible.mask)
            q = F.pad(q, (0, visible.passes[0][0].shape[-1] - q.shape[-1]))
            dropout = self.dropout if self.training else 0.0
            y = attention_op(q, visible, fast=self.fast, dropout=dropout, scale=self.scale)
            y = y[..., : self.head_sizes[1]]
        return tokens.unpad(y).flatten(-2)

    def _latents(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """x (..., C) -> latents and shared keys (..., 1, L + E)."""
        latent, key = self.kv_down(x).unsqueeze(-2).split(self.latent_sizes, dim=-1)
        (key,) = rotate_parts(key, rotation, 1, 1, self.fused_rotation)
        return torch.cat((_normalised(self.kv_norm, latent), key), dim=-1)

    def _queries(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """x (..., C) -> (..., H, size of a key)."""
        heads = self.q_up(_normalised(self.q_norm, self.q_down(x))).unflatten(-1, (self.n_head, -1))
        fixed, rotated = heads.split(self.query_sizes, dim=-1)
        (rotated,) = rotate_parts(rotated, rotation, 1, 1, self.fused_rotation)
        return torch.cat((fixed, rotated), dim=-1)

    def _keys_values(self, latents: Tensor) -> Sequence[Tensor]:
        """(B, 1, S, L + E) -> keys and values (B, H, S, D), the narrower of them padded with zeros.

        Attention kernels want one head size: on a CPU, equal sizes take two thirds of the time.
        """
        latent, shared = latents.split(self.latent_sizes, dim=-1)
        heads = self.kv_up(latent.squeeze(1)).unflatten(-1, (self.n_head, -1)).transpose(1, 2)
        keys, values = heads.split(self.head_sizes, dim=-1)
        keys = torch.cat((keys, shared.expand(-1, self.n_head, -1, -1)), dim=-1)
        size = max(keys.shape[-1], values.shape[-1])
        return [F.pad(tensor, (0, size - tensor.shape[-1])) for tensor in (keys, values)]

    def _absorbed(self, queries: Tensor, visible: Visible) -> Tensor:
        """The same for one query (B, H, 1, size of a key), without making keys and values: (B, H, 1, D).

        A key's part from the latent c is U c, and q . U c = (U^T q) . c: so U^T q attends to latents. Values
        are V c, whose weighted mean is V times that of the latents. All heads attend to the same latents, so
        for the kernel they are H queries of one head.
        """
        (latents,) = visible.concatenated()
        up_keys, up_values = self.kv_up.weight.unflatten(0, (self.n_head, -1)).split(self.head_sizes, dim=1)
        fixed, rotated = queries.squeeze(2).split(self.query_sizes, dim=-1)  # (B, H, ...)
        into_latents = torch.einsum("bhk,hkl->bhl", fixed, up_keys)
        means = F.scaled_dot_product_attention(
            torch.cat((into_latents, rotated), dim=-1)[:, None],
            latents,
            latents[..., : self.latent_sizes[0]],
            attn_mask=visible.mask.tensor,
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.scale,
        )
        return torch.einsum("bhl,hvl->bhv", means[:, 0], up_values)[:, :, None]


def _normalised(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """norm(x) in the format of its weight: autocast gives x another one, which the kernel refuses."""
    return norm(x.to(torch.promote_types(x.dtype, norm.weight.dtype))).to(x.dtype)


ATTENTIONS = {"mha": MultiHeadAttention, "mla": LatentAttention}
