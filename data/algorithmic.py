"""Corpora that are generated: tasks whose answers are known, with more of the same out of distribution.

A window is one sample; its loss counts where an answer is due, and nowhere else. Sample i of a split is a
function of (task, split, i): nothing is stored, and no two epochs of training are alike in order.

Shapes: B windows, T tokens; x (n,) a sample's input, y (n,) its answers.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from data.corpus import Corpus
from data.tokenizers import Words
from errors import Failure, UsageError

TRAINING_SAMPLES = 1 << 20  # of an epoch
TEST_SAMPLES = 1024  # of every other split
NOT_DUE = -1  # a target that no loss counts


class Task(ABC):
    """A task. words: its vocabulary, the padding first. splits: train, val and those out of distribution."""

    name: ClassVar[str]
    words: ClassVar[tuple[str, ...]]
    splits: ClassVar[tuple[str, ...]]
    about: ClassVar[str]

    @abstractmethod
    def longest(self, split: str) -> int:
        """Tokens of the longest sample."""

    @abstractmethod
    def sample(self, split: str, generator: np.random.Generator) -> tuple[Sequence[int], Sequence[int]]:
        """x and y of one sample: ids, and the answer due at each place, NOT_DUE where none is."""


class Counting(Task):
    """Counting by induction (Chang & Bisk 2024): at each `a` the answer is how many there have been.

    inductive: begin a a a -> 1 2 3. shifted: the count starts from a given number, 7 a a a -> 8 9 10.
    Trained on 1 to 50 of them, tested on 51 to 200. So that larger numbers are known words, a third of the
    training samples is the order of numbers alone: 120 121 122 -> 121 122 123.
    """

    name = "counting"
    about = "counting, inductive and from a given start: 1-50 in training, 51-200 out of distribution"
    TRAINED, LARGEST = 50, 200
    words = ("pad", "begin", "a", *map(str, range(LARGEST + 1)))
    splits = ("train", "val", "inductive", "inductive_ood", "shifted", "shifted_ood")
    A, ZERO = 2, 3  # ids of `a` and of the number 0

    def longest(self, split: str) -> int:
        return 1 + (self.LARGEST if split.endswith("_ood") else self.TRAINED)

    def sample(self, split: str, generator: np.random.Generator) -> tuple[Sequence[int], Sequence[int]]:
        first, last = (self.TRAINED + 1, self.LARGEST) if split.endswith("_ood") else (1, self.TRAINED)
        count = int(generator.integers(first, last + 1))
        kind = split.removesuffix("_ood")
        if kind in ("train", "val"):
            kind = ("inductive", "shifted", "order")[generator.integers(3 if kind == "train" else 2)]
        if kind == "inductive":
            return [1] + [self.A] * count, [NOT_DUE, *self._numbers(1, count)]
        start = int(generator.integers(0, self.LARGEST - count + 1))
        following = self._numbers(start + 1, count)
        if kind == "shifted":
            return [self.ZERO + start] + [self.A] * count, [NOT_DUE, *following]
        return self._numbers(start, count), following

    def _numbers(self, first: int, count: int) -> list[int]:
        return list(range(self.ZERO + first, self.ZERO + first + count))


class PHop(Task):
    """p-hop induction (Sanford, Hsu & Telgarsky 2024): at each letter, follow the induction head p times.

    One hop from place i leads to the place behind the latest earlier occurrence of x_i, that is to the
    largest j <= i with x_{j-1} = x_i; the answer is the letter p hops away, due where there are so many. p is
    told by as many `hop` before the letters. Trained on p = 1 to 4 in 16 to 64 letters of four; out of
    distribution are 128 letters (length_ood) and p = 5 to 8 (hops_ood).
    """

    name = "phop"
    about = "p-hop induction: p 1-4 and 16-64 letters in training, 128 letters or p 5-8 out of distribution"
    words = ("pad", "hop", "begin", "a", "b", "c", "d")
    splits = ("train", "val", "length_ood", "hops_ood")
    HOP, BEGIN, LETTERS = 1, 2, 3  # ids; LETTERS of the first one

    def longest(self, split: str) -> int:
        return {"length_ood": 4 + 1 + 128, "hops_ood": 8 + 1 + 64}.get(split, 4 + 1 + 64)

    def sample(self, split: str, generator: np.random.Generator) -> tuple[Sequence[int], Sequence[int]]:
        hops = int(generator.integers(5, 9) if split == "hops_ood" else generator.integers(1, 5))
        length = {"length_ood": 128, "hops_ood": 64}.get(split) or int(generator.integers(16, 65))
        letters = (self.LETTERS + generator.integers(0, 4, length)).tolist()
        x = [self.HOP] * hops + [self.BEGIN, *letters]
        return x, [NOT_DUE] * (hops + 1) + hop_answers(letters, hops)


def hop_answers(letters: Sequence[int], hops: int) -> list[int]:
    """The letter `hops` hops from each place; NOT_DUE where there are fewer."""
    target, latest = [], {}
    for place, letter in enumerate(letters):
        if place:
            latest[letters[place - 1]] = place  # the place behind an occurrence of that letter
        target.append(latest.get(letter))
    answers = []
    for place in range(len(letters)):
        reached: int | None = place
        for _ in range(hops):
            reached = None if reached is None else target[reached]
        answers.append(NOT_DUE if reached is None else letters[reached])
    return answers


TASKS: dict[str, Task] = {task.name: task for task in (Counting(), PHop())}


class TaskCorpus(Corpus):
    """A task as a corpus."""

    def __init__(self, task: Task) -> None:
        self.name, self.folder, self._task = task.name, Path(task.name), task
        self.meta = {"corpus": task.name, "tokenizer": Words(task.words).to_meta(), "source": task.about}

    @property
    def test_splits(self) -> tuple[str, ...]:
        return self._task.splits[2:]

    def size(self, split: str) -> int:
        return self._samples(split) * self._task.longest(split)

    def windows(self, split: str, sequence_length: int, vocab_size: int | None = None):
        """Samples padded to the sequence length; to what they need where that is more, in test splits."""
        needed = self._task.longest(split)
        if sequence_length < needed and split in ("train", "val"):
            raise Failure(
                f"a sample of {self.name} takes up to {needed} tokens; give --sequence_length {needed} or "
                "more"
            )
        return TaskWindows(self._task, split, max(sequence_length, needed), self._samples(split))

    def _samples(self, split: str) -> int:
        return TRAINING_SAMPLES if split == "train" else TEST_SAMPLES


class TaskWindows:
    """Samples as `data.windows.Windows`: window i is sample i of its split."""

    def __init__(self, task: Task, split: str, length: int, count: int) -> None:
        self.length, self.count, self.epoch_size = length, count, count
        self._task, self._split = task, split
        self._seed = [*task.name.encode(), *split.encode()]

    def gather(self, indices: np.ndarray):
        import torch

        inputs = torch.zeros(len(indices), self.length, dtype=torch.long)
        targets = torch.full((len(indices), self.length), NOT_DUE)
        for row, index in enumerate(indices.tolist()):
            generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([*self._seed, index])))
            x, y = self._task.sample(self._split, generator)
            inputs[row, : len(x)], targets[row, : len(y)] = torch.tensor(x), torch.tensor(y)
        return inputs, targets

    def epoch(self, generator: np.random.Generator) -> np.ndarray:
        return generator.permutation(self.count)


def open_task(name: str, tokenizer: str | None) -> TaskCorpus:
    """The corpus of a task. Raises UsageError for a tokeniser: its words are its tokens."""
    if tokenizer is not None:
        raise UsageError(f"--tokenizer {tokenizer}: {name} is generated in tokens of its own; leave it out")
    return TaskCorpus(TASKS[name])
