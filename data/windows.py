"""Where batches are cut from: token files, or a mixture of several corpora.

Shapes: B windows, T tokens. A batch is (inputs, targets), int64, (B, T) each, the targets one token later; a
target of -1 counts for nothing.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from errors import Failure

Batch = tuple[Tensor, Tensor]


class Windows(Protocol):
    """count: how many windows there are. length: T. epoch_size: how many of them an epoch takes."""

    count: int
    length: int
    epoch_size: int

    def gather(self, indices: np.ndarray) -> Batch:
        """The windows with these indices (B,). Raises Failure for a token beyond the vocabulary."""

    def epoch(self, generator: np.random.Generator) -> np.ndarray:
        """Which windows an epoch takes, in its order: (epoch_size,)."""


class TokenWindows:
    """Arrays of tokens cut into windows that do not overlap; window i predicts tokens iT+1 .. iT+T.

    arrays: of a split's files; no window reaches from one into the next. vocab_size: what is gathered is
    checked against it, if given (a mapped file can be damaged meanwhile).
    """

    def __init__(
        self, arrays: Sequence[np.ndarray], sequence_length: int, vocab_size: int | None = None
    ) -> None:
        self.length = sequence_length
        self._vocab_size = vocab_size
        counts = [(len(array) - 1) // sequence_length for array in arrays]  # incomplete ones are dropped
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
            f"{file} holds token {read.max()}, but the vocabulary has {self._vocab_size:,}: it was "
            "damaged; bring it again or, where it was prepared here, delete the meta.json beside it"
        )


class MixedWindows:
    """Several sources of windows, each with a share of every epoch in proportion to its weight.

    An epoch is as long as the source that is used up first allows; of the others it takes a fresh part.
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
