"""What this machine's processor can do."""

from functools import cache

import torch


@cache
def cpu_multiplies_bfloat16() -> bool:
    """Whether the processor has AMX or AVX512-BF16: elsewhere bfloat16 is emulated, slower than float32."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
