"""Windows of token files, and the batches of training and evaluation made of them.

Shapes: B windows, T tokens. A batch is (inputs, targets), int64, (B, T) each, the targets one token later; a
target of -1 is not counted.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from errors import Failure

Batch = tuple[Tensor, Tensor]
Key = TypeVar("Key")
Value = TypeVar("Value")


class Windows(Protocol):
    """Windows of `length` tokens that a split is cut into; an epoch draws epoch_size of the `count`."""

    count: int
    length: int
    epoch_size: int

    def gather(self, indices: np.ndarray) -> Batch:
        """The windows at indices (B,), as a batch. Raises Failure for a token beyond the vocabulary."""

    def epoch(self, generator: np.random.Generator) -> np.ndarray:
        """Indices of an epoch's windows in random order (epoch_size,)."""


class TokenWindows:
    """Token files cut into windows that do not overlap; window i predicts tokens iT+1 .. iT+T.

    arrays: one per file; no window crosses from one into the next. vocab_size: if given, every batch is
    checked against it, as a mapped file can be damaged after it was opened.
    """

    def __init__(
        self, arrays: Sequence[np.ndarray], sequence_length: int, vocab_size: int | None = None
    ) -> None:
        self.length = sequence_length
        self._vocab_size = vocab_size
        counts = [
            (len(array) - 1) // sequence_length for array in arrays
        ]  # the incomplete last window is dropped
        self.count = self.epoch_size = sum(counts)
        self._arrays = list(arrays)
        self._firsts = np.cumsum([0, *counts[:-1]])  # index of the first window of each array

    def gather(self, indices: np.ndarray) -> Batch:
        read = np.empty((len(indices), self.length + 1), dtype=np.int64)
        owners = np.searchsorted(self._firsts, indices, side="right") - 1
        for owner in np.unique(owners):
            mine = owners == owner
            spans = np.lib.stride_tricks.sliding_window_view(self._arrays[owner], self.length + 1)
            read[mine] = spans[(indices[mine] - self._firsts[owner]) * self.length]
        self._require_known(read, owners)
        both = torch.from_numpy(read)
        return both[:, :-1], both[:, 1:]

    def epoch(self, generator: np.random.Generator) -> np.ndarray:
        return generator.permutation(self.count)

    def _require_known(self, read: np.ndarray, owners: np.ndarray) -> None:
        if self._vocab_size is None or read.max() < self._vocab_size:
            return
        owner = self._arrays[owners[read.max(axis=1).argmax()]]
        file = getattr(owner, "filename", None) or "the array of tokens"
        raise Failure(
            f"{file} holds token {read.max()}, but the vocabulary has {self._vocab_size:,}: it is damaged; "
            "copy it here again or, if it was prepared here, delete the meta.json in its folder"
        )


class MixedWindows:
    """Windows of several corpora, drawn in proportion to their weights.

    An epoch ends when the first corpus is used up; of the others it takes another random part each time.
    """

    def __init__(self, sources: Sequence[Windows], weights: Sequence[float]) -> None:
        self.length = sources[0].length
        self._sources = list(sources)
        counts = [source.count for source in sources]
        self.count = sum(counts)
        self._firsts = np.cumsum([0, *counts[:-1]])
        total = sum(weights)
        rounds = min(count * total / weight for count, weight in zip(counts, weights, strict=True))
        self._shares = [max(1, int(rounds * weight / total)) for weight in weights]
        self.epoch_size = sum(self._shares)

    def gather(self, indices: np.ndarray) -> Batch:
        owners = np.searchsorted(self._firsts, indices, side="right") - 1
        inputs = torch.empty(len(indices), self.length, dtype=torch.long)
        targets = torch.empty_like(inputs)
        for owner in np.unique(owners):
            mine = owners == owner
            parts = self._sources[owner].gather(indices[mine] - self._firsts[owner])
            inputs[torch.from_numpy(mine)], targets[torch.from_numpy(mine)] = parts
        return inputs, targets

    def epoch(self, generator: np.random.Generator) -> np.ndarray:
        chosen = [
            first + source.epoch(generator)[:share]
            for first, source, share in zip(self._firsts, self._sources, self._shares, strict=True)
        ]
        return generator.permutation(np.concatenate(chosen))


class MicroBatch(NamedTuple):
    """inputs, targets (B, T). counted: the targets that are counted.

    If counted is 0, one target is set all the same, as the mean over none is NaN: training weighs by counted.
    """

    inputs: Tensor
    targets: Tensor
    counted: int


class Batches:
    """Training batches as a pure function of (seed, step, micro-batch), so that any run can resume anywhere.

    Each epoch is a permutation of all windows, drawn from (seed, epoch). Sample i of a run is number i mod n
    of epoch i // n, so a batch may span two epochs. Example with 5 windows and 2 sequences a step: steps 0
    and 1 take samples 0-3 of epoch 0, step 2 takes its sample 4 and sample 0 of epoch 1.
    """

    def __init__(self, windows: Windows, batch_size: int, acc_steps: int, seed: int) -> None:
        self._windows = windows
        self._batch_size = batch_size
        self._acc_steps = acc_steps
        self._seed = seed
        self._permutations: dict[int, np.ndarray] = {}

    def indices(self, step: int, micro_batch: int) -> np.ndarray:
        """Indices of the micro-batch's windows (B,)."""
        first = (step * self._acc_steps + micro_batch) * self._batch_size
        samples = np.arange(first, first + self._batch_size)
        epochs, places = np.divmod(samples, self._windows.epoch_size)
        chosen = np.empty_like(samples)
        for epoch in np.unique(epochs):
            chosen[epochs == epoch] = self._permutation(int(epoch))[places[epochs == epoch]]
        return chosen

    def get(self, step: int, micro_batch: int, rows: slice = slice(None)) -> Batch:
        """A micro-batch, or the given rows of it."""
        return self._windows.gather(self.indices(step, micro_batch)[rows])

    def prefetched(self, steps: range, numbers: range, rows: slice, pin: bool) -> Iterator[MicroBatch]:
        """Yields the rows of micro-batches `numbers` of each step; a thread loads one step ahead.

        pin: to memory that CUDA copies from while it computes.
        """

        def load(key: tuple[int, int]) -> MicroBatch:
            inputs, targets = self.get(*key, rows)
            counted = int((targets >= 0).sum())
            if not counted:
                targets[0, 0] = 0
            if pin:
                inputs, targets = inputs.pin_memory(), targets.pin_memory()
            return MicroBatch(inputs, targets, counted)

        keys = ((step, number) for step in steps for number in numbers)
        return prefetch(load, keys, depth=max(2, len(numbers)))

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._permutations:
            generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, epoch])))
            for old in [known for known in self._permutations if known < epoch - 1]:
                del self._permutations[old]
            self._permutations[epoch] = self._windows.epoch(generator)
        return self._permutations[epoch]


class EvaluationBatches:
    """Batches of windows in a given order; the last one may be smaller. windows: their number."""

    def __init__(self, windows: Windows, indices: np.ndarray, batch_size: int) -> None:
        self._windows = windows
        self.windows = len(indices)
        self._parts = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Batch]:
        return prefetch(self._windows.gather, self._parts)

    def share(self, rank: int, size: int) -> Iterator[tuple[int, Batch]]:
        """This rank's batches and their numbers: every size-th one, from number `rank` onwards.

        All ranks get the same number of batches, as they may run the network together: a number past the end
        comes with the first batch, which must not be counted.
        """
        numbers = [number + rank for number in range(0, len(self), size)]
        parts = [self._parts[number if number < len(self) else 0] for number in numbers]
        yield from zip(numbers, prefetch(self._windows.gather, parts), strict=True)


def contiguous_batches(windows: Windows, batch_size: int, max_tokens: int | None = None) -> EvaluationBatches:
    """Batches of all windows in order, or of the first ones with max_tokens tokens (at least one window)."""
    count = windows.count
    if max_tokens is not None:
        count = min(count, max(1, max_tokens // windows.length))
    return EvaluationBatches(windows, np.arange(count), batch_size)


def spread_batches(windows: Windows, batch_size: int, max_tokens: int) -> EvaluationBatches:
    """Batches of evenly spaced windows with max_tokens tokens (at least one window), or of all windows."""
    count = min(windows.count, max(1, max_tokens // windows.length))
    return EvaluationBatches(windows, np.arange(count) * windows.count // count, batch_size)


def validation_subset(windows: Windows, batch_size: int, n_batches: int, seed: int) -> EvaluationBatches:
    """n_batches full batches of random windows; fewer if the set is smaller.

    They depend on the seed alone, so that losses at different steps can be compared.
    """
    chosen = np.random.default_rng(seed).permutation(windows.count)[: n_batches * batch_size]
    return EvaluationBatches(windows, np.sort(chosen), batch_size)


def prefetch(function: Callable[[Key], Value], keys: Iterable[Key], depth: int = 2) -> Iterator[Value]:
    """function(key) of each key in order, computed in a thread up to `depth` keys ahead."""
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
