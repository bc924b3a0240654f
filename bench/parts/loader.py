"""Batches of a token file, against a DataLoader that collates item by item in four workers."""

import tempfile
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bench.isolated import apart
from bench.plan import Case, Plan, Row
from bench.rows import row
from bench.timing import in_turn, rate, ratio
from data import open_corpus
from data.batches import Batches

VOCABULARY = 320


class Items(Dataset):
    """One window an item, as the released code loads them."""

    def __init__(self, tokens: np.ndarray, length: int) -> None:
        self.tokens, self.length = tokens, length

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        start = index * self.length
        read = self.tokens[start : start + self.length + 1].astype(np.int64)
        return torch.from_numpy(read[:-1]), torch.from_numpy(read[1:])


def time_loaders(batch: int, length: int, count: int, repeats: int) -> list[list[float]]:
    """Seconds of `count` batches: ours, and those of a DataLoader, the start of its workers included."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = open_corpus("pydoc", data_dir=Path(folder), vocab_size=VOCABULARY, sequence_length=length)
        ours = Batches(corpus.windows("train", length, VOCABULARY), batch, 1, seed=0)
        warnings.filterwarnings("ignore", "This DataLoader will create")  # 4, as is usual, on any machine
        items = Items(corpus.arrays("train")[0], length)
        theirs = DataLoader(
            items,
            batch_size=batch,
            shuffle=True,
            num_workers=4,
            drop_last=True,
            multiprocessing_context="fork",
        )

        def take_ours() -> None:
            for step in range(count):
                ours.get(step, 0)

        def take_theirs() -> None:
            for number, _ in enumerate(theirs, start=1):
                if number == count:
                    break

        return in_turn([take_ours, take_theirs], repeats)


def measure(batch: int, length: int, count: int, plan: Plan) -> list[Row]:
    ours, theirs = apart(time_loaders, batch, length, count, min(plan.repeats, 5)).result
    return [
        row("loader", f"batches of {batch} x {length}", "batches/s", rate(count, ours),
            dataloader_per_s=rate(count, theirs).median, dataloader_over_ours=ratio(ours, theirs).median)
    ]  # fmt: skip


def cases(plan: Plan) -> list[Case]:
    batch, length, count = plan.pick((64, 256, 200), (64, 256, 50), (4, 16, 8))
    return [Case(f"batches of {batch} x {length}", partial(measure, batch, length, count, plan))]
