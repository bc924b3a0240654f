"""Random draws of training as functions of where training stands: there is no random state to save."""

import numpy as np
import torch

PURPOSES = ("initialisation", "forward", "validation", "sample")


def derive_seed(seed: int, purpose: str, step: int = 0, micro_batch: int = 0) -> int:
    """One 63-bit seed for each (seed, purpose, step, micro-batch)."""
    sequence = np.random.SeedSequence([seed, PURPOSES.index(purpose), step, micro_batch])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_torch(seed: int, purpose: str, step: int = 0, micro_batch: int = 0) -> None:
    """Make torch's draws from here on, on every device, those of (seed, purpose, step, micro-batch)."""
    torch.manual_seed(derive_seed(seed, purpose, step, micro_batch))
