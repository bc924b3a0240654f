"""Opening a corpus: windows of tokens for each split, and the tokeniser they were made with."""

from abc import ABC, abstractmethod
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.algorithmic import TASKS, task_windows
from data.corpora import MIXTURES, corpus_folder, find, is_local, require_tokenizer
from data.token_files import HF_TOKENIZER, SPLITS, open_tokens, read_meta, require_vocabulary
from data.tokenizers import (
    TiktokenTokenizer,
    Tokenizer,
    WordTokenizer,
    describe,
    make_tokenizer,
    same_tokenizer,
    tokenizer_from_meta,
)
from errors import Failure, UsageError

if TYPE_CHECKING:
    from data.batches import Windows


class Corpus(ABC):
    """An open corpus. name: as registered. folder: of its files. meta: the content of its meta.json."""

    name: str
    folder: Path
    meta: dict[str, Any]

    @abstractmethod
    def windows(self, split: str, sequence_length: int, vocab_size: int | None = None) -> "Windows":
        """The `data.batches.Windows` of a split. vocab_size: if given, every batch is checked against it.

        Raises Failure if the split is too short for one window.
        """

    @abstractmethod
    def size(self, split: str) -> int:
        """Tokens of a split."""

    def describe(self) -> list[str]:
        """Lines on its size, and on records and files that were left out."""
        lines = [f"{self.folder}: {self.size('train'):,} training and {self.size('val'):,} validation tokens"]
        skipped = self.meta.get("skipped")
        if skipped:
            counted = f"{skipped['records']:,} records and {len(skipped['files']):,} files"
            lines.append(f"left out: {counted}, among them")
            lines += [*skipped["files"], *skipped["examples"]][:10]
        return lines

    @property
    def test_splits(self) -> tuple[str, ...]:
        """Further splits to evaluate: the out-of-distribution ones of generated corpora."""
        return ()

    @property
    def checksum(self) -> str:
        """SHA-256 of the training tokens; "" if it is unknown."""
        return self.meta.get("splits", {}).get("train", {}).get("sha256", "")

    def load_tokenizer(self) -> Tokenizer:
        """Make its tokeniser. Raises Failure if the vocabulary is not available."""
        return tokenizer_from_meta(self.meta["tokenizer"], self.folder / "tokenizer.json")

    def require_tokenizer(self, tokenizer: dict[str, Any] | None, whose: str) -> None:
        """Raises UsageError unless its tokens mean the same to the model `whose`; None is unknown."""
        if tokenizer is not None and not same_tokenizer(tokenizer, self.meta["tokenizer"]):
            raise UsageError(
                f"{self.folder} is in {_describe(self.meta['tokenizer'])} tokens, but {whose} was trained "
                f"on {_describe(tokenizer)} tokens; choose the --dataset and --tokenizer it was trained with"
            )


def _describe(tokenizer: dict[str, Any]) -> str:
    return f"{tokenizer['name']} ({tokenizer['vocab_size']:,})"


class TokenCorpus(Corpus):
    """A corpus of token files. splits: one array (n,) per file, uint16 or uint32."""

    def __init__(
        self, name: str, folder: Path, meta: dict[str, Any], splits: dict[str, list[np.ndarray]]
    ) -> None:
        self.name, self.folder, self.meta, self._splits = name, folder, meta, splits

    def arrays(self, split: str) -> list[np.ndarray]:
        """Token ids of a split, one array (n,) per file."""
        return self._splits[split]

    def size(self, split: str) -> int:
        return sum(map(len, self._splits[split]))

    def windows(self, split: str, sequence_length: int, vocab_size: int | None = None) -> "Windows":
        from data.batches import TokenWindows  # which imports torch

        return TokenWindows(self._splits[split], sequence_length, vocab_size)


class MixedCorpus(Corpus):
    """Several corpora: training draws windows of each in proportion to its weight.

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

    def windows(self, split: str, sequence_length: int, vocab_size: int | None = None) -> "Windows":
        from data.batches import MixedWindows

        windows = [part.windows(split, sequence_length, vocab_size) for part in self._parts]
        return MixedWindows(windows, self._weights)


class TaskCorpus(Corpus):
    """An algorithmic task: samples are generated, nothing is stored."""

    def __init__(self, name: str) -> None:
        self.name, self.folder, self._task = name, Path(name), TASKS[name]
        tokenizer = WordTokenizer(self._task.vocabulary)
        self.meta = {"corpus": name, "tokenizer": tokenizer.to_meta(), "source": self._task.description}

    @property
    def test_splits(self) -> tuple[str, ...]:
        return self._task.splits[2:]

    def size(self, split: str) -> int:
        return self._task.samples(split) * self._task.max_length(split)

    def windows(self, split: str, sequence_length: int, vocab_size: int | None = None) -> "Windows":
        return task_windows(self._task, split, sequence_length)


def open_corpus(
    name: str,
    *,
    data_dir: str | Path | None = None,
    tokenizer: str | None = None,
    vocab_size: int | None = None,
    sequence_length: int | None = None,
    in_ram: bool = False,
) -> Corpus:
    """Open a corpus; its token files are prepared on first use if that takes seconds.

    Args:
        name: a registered corpus, or files:<pattern>.
        data_dir: None for data/datasets.
        tokenizer: None for the corpus' own.
        vocab_size, sequence_length: of the model; None without a model.
        in_ram: read the token files into memory instead of mapping them.

    Raises:
        UsageError: the arguments do not fit together.
        Failure: token files are missing or damaged.
    """
    if name in TASKS:
        if tokenizer is not None:
            raise UsageError(
                f"--tokenizer {tokenizer}: {name} is generated in tokens of its own; leave it out"
            )
        corpus = TaskCorpus(name)
        if vocab_size is not None:
            require_vocabulary(corpus.folder, corpus.meta, vocab_size)
        return corpus
    settings = {"data_dir": data_dir, "vocab_size": vocab_size, "sequence_length": sequence_length}
    settings["in_ram"] = in_ram
    if name in MIXTURES:
        tokenizer = tokenizer or find(next(iter(MIXTURES[name]))).tokenizer
        parts = [open_corpus(part, tokenizer=tokenizer, **settings) for part in MIXTURES[name]]
        return MixedCorpus(name, parts, list(MIXTURES[name].values()))
    spec, shards = find(name), _shards(name)
    if shards:
        from data.shards import open_shards

        folder = shards[0].parent
        meta, splits = open_shards(shards, tokenizer, sequence_length or 1, in_ram)
    else:
        require_tokenizer(spec, tokenizer)
        folder = corpus_folder(name, data_dir, tokenizer)
        meta = _meta(name, folder, data_dir, tokenizer)
        kind = meta["tokenizer"]["name"]
        if tokenizer not in (None, kind) and kind != HF_TOKENIZER:
            raise UsageError(
                f"--tokenizer {tokenizer}: {folder}/meta.json says that its files are in {kind} tokens"
            )
        splits = {
            split: [open_tokens(folder / f"{split}.bin", meta, sequence_length or 1, in_ram)]
            for split in SPLITS
        }
    if vocab_size is not None:
        require_vocabulary(folder, meta, vocab_size)
    return TokenCorpus(spec.name, folder, meta, splits)


def open_corpus_from_args(args: Namespace, sequence_length: int) -> Corpus:
    """Open the corpus that the flags name. sequence_length: of training or evaluation. Raises as above."""
    return open_corpus(
        args.dataset,
        data_dir=args.data_dir,
        tokenizer=args.tokenizer,
        vocab_size=args.vocab_size,
        sequence_length=sequence_length,
        in_ram=args.data_in_ram,
    )


def prepare_corpus(
    name: str, *, data_dir: str | Path | None = None, tokenizer: str | None = None, **settings: Any
) -> Corpus:
    """Prepare a corpus of any size, unless it is prepared, and open it.

    settings: workers, on_error, archive, val_fraction, see `data.tokenise.Preparation`. Raises UsageError or
    Failure.
    """
    from data.prepare import prepare_unless_done
    from data.tokenise import refuse_fraction

    for part in MIXTURES.get(name, [name]):
        if part in TASKS or _shards(part):
            refuse_fraction(part, settings.get("val_fraction"))
        else:
            folder = corpus_folder(part, data_dir, tokenizer)
            prepare_unless_done(find(part), folder, data_dir, tokenizer, **settings)
    return open_corpus(name, data_dir=data_dir, tokenizer=tokenizer)


def require_prepared(name: str, *, data_dir: str | Path | None = None, tokenizer: str | None = None) -> None:
    """Check that a job on a machine without network will find this corpus and its vocabulary.

    Raises Failure if token files are missing that training would not prepare itself, or a vocabulary is
    neither cached nor downloadable.
    """
    for part in MIXTURES.get(name, [name]):
        if part in TASKS or _shards(part):
            continue
        spec, folder = find(part), corpus_folder(part, data_dir, tokenizer)
        if spec.command and read_meta(folder) is None and not _token_files(folder):
            raise _missing(part, folder, tokenizer)
        if (tokenizer or spec.tokenizer) in TiktokenTokenizer.SIZES:
            make_tokenizer(tokenizer or spec.tokenizer)


def _shards(name: str) -> list[Path]:
    """The .bin shards that a files:<pattern> matches; none for other corpora."""
    if not is_local(name):
        return []
    from data.shards import find_shards

    return find_shards(name)


def _meta(name: str, folder: Path, data_dir: str | Path | None, tokenizer: str | None) -> dict[str, Any]:
    """The content of meta.json; a small corpus is prepared first. Raises Failure for a large one."""
    spec, meta = find(name), read_meta(folder)
    if meta is not None and (is_local(name) or "sha256" in meta):
        from data.prepare import require_unchanged

        require_unchanged(name, folder, data_dir, meta)
    if meta is None and spec.command is None:
        from data.prepare import prepare_unless_done

        prepare_unless_done(spec, folder, data_dir, tokenizer)
        meta = read_meta(folder)
    if meta is not None:
        return meta
    if not _token_files(folder):
        raise _missing(name, folder, tokenizer)
    from data.brought import brought

    return {"corpus": spec.name, **brought(folder, *describe(tokenizer or spec.tokenizer))}


def _token_files(folder: Path) -> bool:
    return any((folder / f"{split}.bin").exists() for split in SPLITS)


def _missing(name: str, folder: Path, tokenizer: str | None) -> Failure:
    spec = find(name)
    return Failure(
        f"{name} is not prepared in {folder}: run `{spec.command}`, or copy train.bin and val.bin "
        f"({tokenizer or spec.tokenizer} tokens, uint16) there; --dataset pydoc needs nothing"
    )
