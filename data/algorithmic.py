"""Algorithmic tasks: generated corpora with exact answers, in and out of distribution.

A window is one sample; the loss counts the positions that have an answer. Sample i of a split is a function
of (task, split, i): nothing is stored.

Shapes: B windows, T tokens; x (n,) a sample's input, y (n,) its answers.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from errors import Failure

if TYPE_CHECKING:
    from data.batches import Batch

TRAINING_SAMPLES = 1 << 20  # per epoch
TEST_SAMPLES = 1024  # in every other split
IGNORE_INDEX = -1  # a target that no loss counts


class Task(ABC):
    """A task. vocabulary: its words, padding first. splits: train, val, then the out-of-distribution ones."""

    name: ClassVar[str]
    vocabulary: ClassVar[tuple[str, ...]]
    splits: ClassVar[tuple[str, ...]]
    description: ClassVar[str]

    @abstractmethod
    def max_length(self, split: str) -> int:
        """Tokens of the longest sample."""

    @abstractmethod
    def sample(self, split: str, generator: np.random.Generator) -> tuple[Sequence[int], Sequence[int]]:
        """One sample: token ids x, and the answer y at each position, IGNORE_INDEX where there is none."""

    def samples(self, split: str) -> int:
        """Samples in a split; for train, in an epoch."""
        return TRAINING_SAMPLES if split == "train" else TEST_SAMPLES


class Counting(Task):
    """Counting by induction (Chang & Bisk 2024): at each `a` the answer is the number of `a` so far.

    inductive: begin a a a -> 1 2 3. shifted: the count starts at a given number, 7 a a a -> 8 9 10.
    Trained on 1 to 50 `a`, tested on 51 to 200. A third of the training samples shows the order of numbers
    alone, 120 121 122 -> 121 122 123, so that larger numbers are known words.
    """

    name = "counting"
    description = "counting, inductive and from a given start: 1-50 in training, 51-200 out of distribution"
    TRAINED, LARGEST = 50, 200
    vocabulary = ("pad", "begin", "a", *map(str, range(LARGEST + 1)))
    splits = ("train", "val", "inductive", "inductive_ood", "shifted", "shifted_ood")
    A, ZERO = 2, 3  # ids of `a` and of the number 0

    def max_length(self, split: str) -> int:
        return 1 + (self.LARGEST if split.endswith("_ood") else self.TRAINED)

    def sample(self, split: str, generator: np.random.Generator) -> tuple[Sequence[int], Sequence[int]]:
        first, last = (self.TRAINED + 1, self.LARGEST) if split.endswith("_ood") else (1, self.TRAINED)
        count = int(generator.integers(first, last + 1))
        kind = split.removesuffix("_ood")
        if kind in ("train", "val"):
            kind = ("inductive", "shifted", "order")[generator.integers(3 if kind == "train" else 2)]
        if kind == "inductive":
            return [1] + [self.A] * count, [IGNORE_INDEX, *self._numbers(1, count)]
        start = int(generator.integers(0, self.LARGEST - count + 1))
        following = self._numbers(start + 1, count)
        if kind == "shifted":
            return [self.ZERO + start] + [self.A] * count, [IGNORE_INDEX, *following]
        return self._numbers(start, count), following

    def _numbers(self, first: int, count: int) -> list[int]:
        return list(range(self.ZERO + first, self.ZERO + first + count))


class PHop(Task):
    """p-hop induction (Sanford, Hsu & Telgarsky 2024): at each letter, apply an induction head p times.

    One hop from position i leads to the position after the latest earlier occurrence of x_i, that is to the
    largest j <= i with x_{j-1} = x_i. The answer is the letter p hops away, if there are p hops. The sample
    begins with p words `hop`. Trained on p = 1 to 4 in 16 to 64 letters out of four; out of distribution are
    128 letters (length_ood) and p = 5 to 8 (hops_ood).
    """

    name = "phop"
    description = (
        "p-hop induction: p 1-4 and 16-64 letters in training, 128 letters or p 5-8 out of distribution"
    )
    vocabulary = ("pad", "hop", "begin", "a", "b", "c", "d")
    splits = ("train", "val", "length_ood", "hops_ood")
    HOP, BEGIN, LETTERS = 1, 2, 3  # ids; LETTERS is that of the first letter

    def max_length(self, split: str) -> int:
        return {"length_ood": 4 + 1 + 128, "hops_ood": 8 + 1 + 64}.get(split, 4 + 1 + 64)

    def sample(self, split: str, generator: np.random.Generator) -> tuple[Sequence[int], Sequence[int]]:
        hops = int(generator.integers(5, 9) if split == "hops_ood" else generator.integers(1, 5))
        length = {"length_ood": 128, "hops_ood": 64}.get(split) or int(generator.integers(16, 65))
        letters = (self.LETTERS + generator.integers(0, 4, length)).tolist()
        x = [self.HOP] * hops + [self.BEGIN, *letters]
        return x, [IGNORE_INDEX] * (hops + 1) + hop_answers(letters, hops)


def hop_answers(letters: Sequence[int], hops: int) -> list[int]:
    """The letter `hops` hops away from each position; IGNORE_INDEX where there are fewer."""
    target, latest = [], {}
    for position, letter in enumerate(letters):
        if position:
            latest[letters[position - 1]] = position  # the position after an occurrence of that letter
        target.append(latest.get(letter))
    answers = []
    for position in range(len(letters)):
        reached: int | None = position
        for _ in range(hops):
            reached = None if reached is None else target[reached]
        answers.append(IGNORE_INDEX if reached is None else letters[reached])
    return answers


TASKS: dict[str, Task] = {task.name: task for task in (Counting(), PHop())}


def task_windows(task: Task, split: str, sequence_length: int) -> "TaskWindows":
    """Samples padded to the sequence length; in test splits to the longest sample if that is longer.

    Raises Failure if samples of train or val do not fit.
    """
    needed = task.max_length(split)
    if sequence_length < needed and split in ("train", "val"):
        raise Failure(
            f"a sample of {task.name} takes up to {needed} tokens; give --sequence_length {needed} or more"
        )
    return TaskWindows(task, split, max(sequence_length, needed))


class TaskWindows:
    """Samples as `data.batches.Windows`: window i is sample i of its split."""

    def __init__(self, task: Task, split: str, length: int) -> None:
        self.length = length
        self.count = self.epoch_size = task.samples(split)
        self._task, self._split = task, split
        self._seed = [*task.name.encode(), *split.encode()]

    def gather(self, indices: np.ndarray) -> "Batch":
        import torch

        inputs = torch.zeros(len(indices), self.length, dtype=torch.long)
        targets = torch.full((len(indices), self.length), IGNORE_INDEX)
        for row, index in enumerate(indices.tolist()):
            generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([*self._seed, index])))
            x, y = self._task.sample(self._split, generator)
            inputs[row, : len(x)], targets[row, : len(y)] = torch.tensor(x), torch.tensor(y)
        return inputs, targets

    def epoch(self, generator: np.random.Generator) -> np.ndarray:
        return generator.permutation(self.count)
