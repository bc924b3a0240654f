"""Embeddings besides that of the tokens: rotary positions, depth (passes left), pause tokens.

Shapes: D head size, H heads, C = n_embd, R = n_repeat, P = n_pause; ... any leading dimensions.
"""

import torch
from torch import Tensor, nn

from models.config import ModelConfig

Rotation = tuple[Tensor, ...]  # cosines and sines of positions


class NoPositions(nn.Module):
    """No position embedding: order comes from the causal mask alone."""

    def __init__(self, head_size: int) -> None:
        super().__init__()

    def forward(self, positions: Tensor) -> None:
        return None


class Rotary(nn.Module):
    """Rotary position embedding (Su et al. 2024): the pair (2i, 2i+1) turns by position * 10000^(-2i/D)."""

    def __init__(self, head_size: int) -> None:
        super().__init__()
        self.head_size = head_size

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Integer positions (...) -> cosines and sines, each (..., D/2), in float64.

        Computed once per forward pass, for any length.
        """
        pair = torch.arange(0, self.head_size, 2, dtype=torch.float64, device=positions.device)
        angle = positions[..., None].double() * 10000.0 ** (-pair / self.head_size)
        return angle.cos(), angle.sin()


POSITIONS = {"rotary": Rotary, "none": NoPositions}


def rotate(x: Tensor, rotation: Rotation | None) -> Tensor:
    """Rotate queries or keys x (..., H, D) by their positions; unchanged where rotation is None.

    rotation: cosines and sines that broadcast to (..., D/2), the same for every head. Computed in float32 at
    least: in bfloat16 the angles of late positions would lose their last digits.
    """
    if rotation is None:
        return x
    work = torch.promote_types(x.dtype, torch.float32)
    cos, sin = (table.to(work).unsqueeze(-2) for table in rotation)
    even, odd = x.to(work).unflatten(-1, (-1, 2)).unbind(-1)  # (..., H, D/2) each
    rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return rotated.flatten(-2).to(x.dtype)


def rotate_parts(
    x: Tensor, rotation: Rotation | None, parts: int, rotated: int, fused: bool = True
) -> list[Tensor]:
    """Split a projection x (..., P * H, D) into P parts (..., H, D); the first `rotated` are rotated.

    fused: on CUDA as one operation, with the same result up to rounding. Where a graph is compiled the
    formula is fused with what surrounds it.
    """
    if fused and rotation is not None and _runs_fused(x):
        from models.fused_rotation import FusedRotation  # imports Triton

        cos, sin = (table.flatten(0, -2) for table in rotation)
        return list(FusedRotation.apply(x, cos, sin, parts, rotated))
    pieces = x.chunk(parts, dim=-2)
    return [*(rotate(piece, rotation) for piece in pieces[:rotated]), *pieces[rotated:]]


def _runs_fused(x: Tensor) -> bool:
    return x.is_cuda and not torch.compiler.is_compiling()


class LinearDepthEmbedding(nn.Module):
    """One learned vector times the number of passes left: the last pass adds nothing (paper, Section 4.2)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embs = nn.Embedding(1, config.n_embd)

    def forward(self, passes_left: int) -> Tensor:
        """R - r before pass r (1-based) -> (C,)."""
        return self.embs.weight[0] * passes_left


class LearnedDepthEmbedding(nn.Module):
    """A learned vector for each number of passes left; row 0 belongs to the last pass."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embs = nn.Embedding(config.n_repeat, config.n_embd)

    def forward(self, passes_left: int) -> Tensor:
        """R - r before pass r (1-based) -> (C,)."""
        return self.embs.weight[passes_left]


DEPTH_EMBEDDINGS: dict[str | None, type[nn.Module]] = {
    "linear_learned": LinearDepthEmbedding,
    "learned": LearnedDepthEmbedding,
}


class PauseTokens(nn.Module):
    """P learned tokens after each token of the text, which is predicted from the last of them (Table 6).

    Goyal et al. 2023, arXiv:2310.02226. The network sees (1 + P) T tokens, at positions 0 to (1 + P) T - 1,
    and `attention_window_length` counts these. Goyal et al. repeat one embedding; here each of the P has its
    own, (P - 1) C weights more: rotary positions only tell distances, so that equal pause tokens could not
    tell which of them is the last.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embs = nn.Embedding(config.n_pause, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """Token embeddings (N, C) -> (N * (1 + P), C), each followed by its pause tokens."""
        pauses = self.embs.weight.expand(len(x), -1, -1)
        return torch.cat((x[:, None], pauses), dim=1).flatten(0, 1)
