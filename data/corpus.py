"""What an opened corpus is to the rest: windows of tokens for each split, and the tokeniser they are in."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from data.tokenizers import Tokenizer, same_tokenizer, tokenizer_from_meta
from errors import UsageError


class Corpus(ABC):
    """name: of the registry. folder: where its files are. meta: what its meta.json says."""

    name: str
    folder: Path
    meta: dict[str, Any]

    @abstractmethod
    def windows(self, split: str, sequence_length: int, vocab_size: int | None = None):
        """The `data.windows.Windows` of a split. Raises Failure where it is too short for one.

        vocab_size: what each batch is checked against, where one is given.
        """

    @abstractmethod
    def size(self, split: str) -> int:
        """Tokens of a split."""

    def describe(self) -> list[str]:
        """Lines for whoever prepared it: its size, and what was left out."""
        lines = [f"{self.folder}: {self.size('train'):,} training and {self.size('val'):,} validation tokens"]
        skipped = self.meta.get("skipped")
        if skipped:
            counted = f"{skipped['records']:,} records and {len(skipped['files']):,} files"
            lines.append(f"left out: {counted}, among them")
            lines += [*skipped["files"], *skipped["examples"]][:10]
        return lines

    @property
    def test_splits(self) -> tuple[str, ...]:
        """Splits that are evaluated beside `val`: of generated corpora, those out of distribution."""
        return ()

    def load_tokenizer(self) -> Tokenizer:
        """Raises Failure where its vocabulary cannot be had."""
        return tokenizer_from_meta(self.meta["tokenizer"], self.folder / "tokenizer.json")

    def require_tokenizer(self, tokenizer: dict[str, Any] | None, whose: str) -> None:
        """Raises UsageError unless these tokens mean what they meant to the model; None is not known."""
        if tokenizer is not None and not same_tokenizer(tokenizer, self.meta["tokenizer"]):
            raise UsageError(
                f"{self.folder} is in {_describe(self.meta['tokenizer'])} tokens, but {whose} was trained "
                f"on {_describe(tokenizer)} tokens; choose the --dataset and --tokenizer it was trained with"
            )


def _describe(tokenizer: dict[str, Any]) -> str:
    return f"{tokenizer['name']} ({tokenizer['vocab_size']:,})"


class TokenCorpus(Corpus):
    """Token files. splits: of each, one array (n,) for each file, uint16 or uint32."""

    def __init__(
        self, name: str, folder: Path, meta: dict[str, Any], splits: dict[str, list[np.ndarray]]
    ) -> None:
        self.name, self.folder, self.meta, self._splits = name, folder, meta, splits

    def arrays(self, split: str) -> list[np.ndarray]:
        return self._splits[split]

    def size(self, split: str) -> int:
        return sum(map(len, self._splits[split]))

    def windows(self, split: str, sequence_length: int, vocab_size: int | None = None):
        from data.windows import TokenWindows  # which imports torch

        return TokenWindows(self._splits[split], sequence_length, vocab_size)


class MixedCorpus(Corpus):
    """Several corpora in one: training takes windows of each in proportion to its weight.

    Validation takes all windows of each, one corpus after the other.
    """

    def __init__(self, name: str, parts: list[Corpus], weights: list[float]) -> None:
        first = parts[0]
        for part in parts[1:]:
            part.require_tokenizer(first.meta["tokenizer"], f"{first.name}, the other part of {name},")
        self.name, self.folder, self._parts, self._weights = name, first.folder, parts, weights
        self.meta = {
            "corpus": name,
            "tokenizer": first.meta["tokenizer"],
            "weights": {part.name: weight for part, weight in zip(parts, weights, strict=True)},
        }

    def size(self, split: str) -> int:
        return sum(part.size(split) for part in self._parts)

    def windows(self, split: str, sequence_length: int, vocab_size: int | None = None):
        from data.windows import MixedWindows

        windows = [part.windows(split, sequence_length, vocab_size) for part in self._parts]
        return MixedWindows(windows, self._weights)
