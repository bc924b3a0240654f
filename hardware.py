"""Features of this machine's processor."""

from functools import cache

import torch


@cache
def cpu_multiplies_bfloat16() -> bool:
    """Whether it has AMX or AVX512-BF16. Without, bfloat16 is emulated, slower than float32."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
