"""The micro-batches that one process trains on, made ahead by a thread."""

from collections.abc import Iterator

import torch

from config.training import TrainConfig
from data.algorithmic import NOT_DUE
from data.batches import Batches, prefetch
from data.windows import Windows
from distributed.share import Share
from optim.train import MicroBatch


def training_batches(
    windows: Windows, config: TrainConfig, share: Share, step: int, device: torch.device
) -> Iterator[MicroBatch]:
    """Those of all steps from `step` on, as far as they fall to `share`."""
    source = Batches(windows, config.batch_size, config.acc_steps, config.data_seed)

    def make(key: tuple[int, int]) -> MicroBatch:
        inputs, targets = source.get(*key, share.rows)
        weight = 1.0
        if len(targets) < config.batch_size and (targets == NOT_DUE).any():
            _, whole = source.get(*key)
            counted = (targets != NOT_DUE).sum() / (whole != NOT_DUE).sum()
            weight = counted.item() * config.batch_size / len(targets)
            if weight == 0.0:  # the mean over no target is not a number: it is to count for nothing
                targets[0, 0] = 0
        if device.type == "cuda":
            inputs, targets = inputs.pin_memory(), targets.pin_memory()
        return MicroBatch(inputs, targets, weight)

    return prefetch(
        make,
        (
            (step, share.first + number)
            for step in range(step, config.iterations)
            for number in range(share.acc_steps)
        ),
    )
