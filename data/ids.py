"""How wide a token id is on disk."""

import numpy as np


def id_dtype(vocab_size: int) -> np.dtype:
    """Little-endian unsigned: 16 bits where they reach, else 32."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
