"""Token ids of one file of a corpus, kept until the corpus is put together from them."""

import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data.encoding import Encoded

EXAMPLES = 5  # of bad records that are named for each file


def tokens_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.tokens"


def sizes_path(folder: Path, number: int) -> Path:
    """(documents, 2), uint32: tokens and UTF-8 bytes of each document."""
    return folder / f"{number:06d}.sizes"


class Part:
    """The part that is being written: whatever was at its place is replaced."""

    def __init__(self, folder: Path, number: int) -> None:
        self._paths = tokens_path(folder, number), sizes_path(folder, number)
        self._files: tuple[BinaryIO, ...] = tuple(open(path, "wb") for path in self._paths)  # noqa: SIM115
        self._counts = {"documents": 0, "tokens": 0, "bytes": 0, "bad": 0}
        self._examples: list[str] = []
        self._records = 0

    def add(self, encoded: Encoded) -> list[str]:
        """Append documents; returns what was wrong with which records, counted from 1."""
        for file, array in zip(self._files, (encoded.tokens, encoded.sizes), strict=True):
            file.write(array.data if array.size else b"")
        bad = [f"record {self._records + index + 1}: {reason}" for index, reason in encoded.bad]
        self._records += encoded.records
        self._examples += bad[: EXAMPLES - len(self._examples)]
        tokens, size = encoded.sizes.sum(axis=0, dtype=np.int64).tolist()
        counted = {"documents": len(encoded.sizes), "tokens": tokens, "bytes": size, "bad": len(bad)}
        for name, count in counted.items():
            self._counts[name] += count
        return bad

    def finish(self) -> dict[str, Any]:
        """Force it to disk; returns what the journal keeps of it."""
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
            file.close()
        return {**self._counts, "examples": self._examples}

    def discard(self) -> None:
        for file, path in zip(self._files, self._paths, strict=True):
            file.close()
            path.unlink(missing_ok=True)
