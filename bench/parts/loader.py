"""Batches of a token file, against a DataLoader that collates item by item in four workers."""

import tempfile
import time
import warnings
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bench.isolated import apart
from bench.plan import Case, Plan, Row
from bench.rows import row
from bench.timing import rate, ratio, spread
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
    """Seconds in each round: of `count` batches of ours; of as many of a DataLoader, from its first one on;
    and of the start of its workers and that first batch."""
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

        rounds: list[list[float]] = [[], [], []]
        for _ in range(1 + repeats):  # in turn; the first round warms up
            times = [time.perf_counter()]
            for step in range(count):
                ours.get(step, 0)
            times.append(time.perf_counter())
            batches = iter(theirs)
            next(batches)
            times.append(time.perf_counter())
            for _ in range(count):
                next(batches)
            times.append(time.perf_counter())
            del batches  # ends its workers
            mine, start, rest = (after - before for before, after in pairwise(times))
            for seconds, one in zip(rounds, (mine, rest, start), strict=True):
                seconds.append(one)
        return [seconds[1:] for seconds in rounds]


def measure(batch: int, length: int, count: int, plan: Plan) -> list[Row]:
    ours, theirs, start = apart(time_loaders, batch, length, count, min(plan.repeats, 5)).result
    return [
        row("loader", f"batches of {batch} x {length}", "batches/s", rate(count, ours),
            dataloader_per_s=rate(count, theirs).median, dataloader_over_ours=ratio(ours, theirs).median,
            dataloader_start_s=spread(start).median)
    ]  # fmt: skip


def cases(plan: Plan) -> list[Case]:
    batch, length, count = plan.pick((64, 256, 200), (64, 256, 50), (4, 16, 8))
    return [Case(f"batches of {batch} x {length}", partial(measure, batch, length, count, plan))]
