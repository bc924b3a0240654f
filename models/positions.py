"""Where a token stands: rotary positions, or none.

Shapes: D head size; ... any leading dimensions, H heads.
"""

import torch
from torch import Tensor, nn


class NoPositions(nn.Module):
    """Order comes from the causal mask alone."""

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
        """positions (...), integers -> cosines and sines, each (..., D/2), in float64.

        Computed once a forward pass, for any length; `rotate` casts them to what it works in.
        """
        pair = torch.arange(0, self.head_size, 2, dtype=torch.float64, device=positions.device)
        angle = positions[..., None].double() * 10000.0 ** (-pair / self.head_size)
        return angle.cos(), angle.sin()


POSITIONS = {"rotary": Rotary, "none": NoPositions}


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
    """Turn queries or keys x (..., H, D) by their positions; without a rotation they stay as they are.

    rotation: cosines and sines that broadcast to (..., D/2), the same for every head.
    Works in float32 at least: in bfloat16 the angles of late positions would lose their last digits.
    """
    if rotation is None:
        return x
    work = torch.promote_types(x.dtype, torch.float32)
    cos, sin = (table.to(work).unsqueeze(-2) for table in rotation)
    even, odd = x.to(work).unflatten(-1, (-1, 2)).unbind(-1)  # (..., H, D/2) each
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).to(x.dtype)
