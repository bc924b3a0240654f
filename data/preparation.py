"""What whoever prepares a corpus is told, and what a held-out part of a small one is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.assembly import held_out
from data.tokenise import Source, tokenise


@dataclass(frozen=True)
class Job:
    """A preparation that was asked for.

    data_dir: where corpora lie. folder: this one's, which token files go to. tokenizer: a name, or the path
    of a tokenizer.json. workers, on_error: see `data.tokenise`. archive: where the source is, if not in its
    usual place. say: takes lines of progress.
    """

    data_dir: Path
    folder: Path
    tokenizer: str
    workers: int | None = None
    on_error: str = "fatal"
    archive: Path | None = None
    say: Callable[[str], None] = print

    def tokenise(self, source: Source, about: dict[str, Any], column: str = "text") -> int:
        """Write the token files of this source (`data.tokenise`); returns how many documents it has."""
        meta = tokenise(
            source, self.folder, self.tokenizer, about,
            column=column, workers=self.workers, on_error=self.on_error, say=self.say,
        )  # fmt: skip
        return sum(meta["documents"].values())


def split_documents(texts: list[str], fraction: float) -> dict[str, list[str]]:
    """A small corpus' documents, in memory: `held_out` of them are val, the others train, in order."""
    chosen = set(held_out(len(texts), fraction).tolist())
    return {
        "train": [text for index, text in enumerate(texts) if index not in chosen],
        "val": [text for index, text in enumerate(texts) if index in chosen],
    }


def text_bytes(texts: list[str]) -> int:
    """Bytes in UTF-8: what a loss per byte is divided by, whatever the tokeniser."""
    return sum(len(text.encode()) for text in texts)
