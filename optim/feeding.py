"""The micro-batches that one process trains on, made ahead by a thread."""

from collections.abc import Iterator

import torch

from config.training import TrainConfig
from data.algorithmic import NOT_DUE
from data.batches import Batches, prefetch
from data.windows import Windows
from distributed.parallel import RankSlice
from optim.train import MicroBatch


def training_batches(
    windows: Windows, config: TrainConfig, rank_slice: RankSlice, step: int, device: torch.device
) -> Iterator[MicroBatch]:
    """Those of all steps from `step` on, as far as they fall to `rank_slice`."""
    source = Batches(windows, config.batch_size, config.acc_steps, config.data_seed)

    def make(key: tuple[int, int]) -> MicroBatch:
        inputs, targets = source.get(*key, rank_slice.rows)
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
            (step, rank_slice.first_micro_batch + number)
            for step in range(step, config.iterations)
            for number in range(rank_slice.acc_steps)
        ),
    )
