"""Batches as pure functions of where training stands, and windows for evaluation.

Shapes: B batch, T tokens. A batch is (inputs, targets), int64, (B, T) each: `data.windows`.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from data.windows import Batch, Windows

Key = TypeVar("Key")
Value = TypeVar("Value")


class Batches:
    """Training batches: micro-batch m of step s is the same, whoever asks, whenever.

    Each epoch is a fresh permutation of all windows, drawn from (seed, epoch). Samples are numbered through:
    sample i of the run is the (i mod n)-th of epoch i // n, so a batch may lie in two epochs. Example with 5
    windows and 2 sequences a step: steps 0, 1 take places 0-3 of epoch 0, step 2 takes place 4 and place 0 of
    epoch 1.
    """

    def __init__(self, windows: Windows, batch_size: int, acc_steps: int, seed: int) -> None:
        self._windows = windows
        self._batch_size = batch_size
        self._acc_steps = acc_steps
        self._seed = seed
        self._permutations: dict[int, np.ndarray] = {}

    def indices(self, step: int, micro_batch: int) -> np.ndarray:
        """Which windows the micro-batch holds (B,)."""
        first = (step * self._acc_steps + micro_batch) * self._batch_size
        samples = np.arange(first, first + self._batch_size)
        epochs, places = np.divmod(samples, self._windows.epoch_size)
        chosen = np.empty_like(samples)
        for epoch in np.unique(epochs):
            chosen[epochs == epoch] = self._permutation(int(epoch))[places[epochs == epoch]]
        return chosen

    def get(self, step: int, micro_batch: int, rows: slice = slice(None)) -> Batch:
        """rows: of its sequences, those that are wanted."""
        return self._windows.gather(self.indices(step, micro_batch)[rows])

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._permutations:
            generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, epoch])))
            for old in [known for known in self._permutations if known < epoch - 1]:
                del self._permutations[old]
            self._permutations[epoch] = self._windows.epoch(generator)
        return self._permutations[epoch]


class EvaluationBatches:
    """Windows in a given order, batch_size at a time; the last batch may be smaller. Has a length.

    windows: how many there are.
    """

    def __init__(self, windows: Windows, indices: np.ndarray, batch_size: int) -> None:
        self._windows = windows
        self.windows = len(indices)
        self._parts = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Batch]:
        return prefetch(self._windows.gather, self._parts)

    def share(self, rank: int, size: int) -> Iterator[tuple[int, Batch]]:
        """Every size-th batch, from number `rank` on, and its number.

        All ranks get equally many, for they may have to run the network together: past the end the number is
        len(self) or more, and the batch the first one, not to be counted.
        """
        numbers = [number + rank for number in range(0, len(self), size)]
        parts = [self._parts[number if number < len(self) else 0] for number in numbers]
        yield from zip(numbers, prefetch(self._windows.gather, parts), strict=True)


def contiguous_batches(windows: Windows, batch_size: int, max_tokens: int | None = None) -> EvaluationBatches:
    """All windows in order; with max_tokens only the first ones that it covers, at least one."""
    count = windows.count
    if max_tokens is not None:
        count = min(count, max(1, max_tokens // windows.length))
    return EvaluationBatches(windows, np.arange(count), batch_size)


def spread_batches(windows: Windows, batch_size: int, max_tokens: int) -> EvaluationBatches:
    """As many windows as max_tokens covers, at least one, at equal distances over the whole set; or all."""
    count = min(windows.count, max(1, max_tokens // windows.length))
    return EvaluationBatches(windows, np.arange(count) * windows.count // count, batch_size)


def validation_subset(windows: Windows, batch_size: int, n_batches: int, seed: int) -> EvaluationBatches:
    """n_batches full batches of windows from all over the set (fewer batches where it is smaller).

    The same windows for one seed, so that losses at different steps can be compared.
    """
    chosen = np.random.default_rng(seed).permutation(windows.count)[: n_batches * batch_size]
    return EvaluationBatches(windows, np.sort(chosen), batch_size)


def prefetch(function: Callable[[Key], Value], keys: Iterable[Key], depth: int = 2) -> Iterator[Value]:
    """function(key) of each key in order, computed by a thread up to `depth` ahead of whoever takes them."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting: deque = deque()
        try:
            for key in keys:
                waiting.append(pool.submit(function, key))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
