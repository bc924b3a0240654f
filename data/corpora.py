"""The registry of corpora: name -> where its text comes from, how it is split, which tokeniser it has."""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data import pydoc, shakespeare
from data.token_files import SPLITS, open_tokens, read_meta, require_vocabulary, write_corpus
from data.tokenizers import Characters, Gpt2, Tokenizer, make_tokenizer, tokenizer_from_meta
from errors import Failure, UsageError, unknown

DEFAULT_FOLDER = Path(__file__).parent / "datasets"
SPLIT_SEED = 2357


@dataclass(frozen=True)
class Corpus:
    """An opened corpus. train, val: token ids (n,), uint16. meta: what meta.json says."""

    name: str
    folder: Path
    meta: dict[str, Any]
    train: np.ndarray
    val: np.ndarray

    def load_tokenizer(self) -> Tokenizer:
        """Raises Failure where its vocabulary cannot be had."""
        return tokenizer_from_meta(self.meta["tokenizer"])

    def require_tokenizer(self, tokenizer: dict[str, Any] | None, whose: str) -> None:
        """Raises UsageError unless these tokens mean what they meant to the model; None is not known."""
        if tokenizer is not None and tokenizer != self.meta["tokenizer"]:
            raise UsageError(
                f"{self.folder} is in {_describe(self.meta['tokenizer'])} tokens, but {whose} was trained "
                f"on {_describe(tokenizer)} tokens; choose the --dataset and --tokenizer it was trained with"
            )


def _describe(tokenizer: dict[str, Any]) -> str:
    return f"{tokenizer['name']} ({tokenizer['vocab_size']:,})"


# Writes the token files of a corpus: (data_dir, folder, tokenizer name) -> documents in it.
Prepare = Callable[[Path, Path, str], int]


@dataclass(frozen=True)
class Source:
    """A row of the registry. tokenizers: those it can have, the default first.

    prepare: None where this version cannot make the token files: then they have to be brought.
    """

    name: str
    tokenizers: tuple[str, ...]
    prepare: Prepare | None = None
    aliases: tuple[str, ...] = ()


def _prepare_pydoc(data_dir: Path, folder: Path, tokenizer_name: str) -> int:
    tokenizer = make_tokenizer(tokenizer_name)
    texts = list(pydoc.documents())
    fraction = 0.05
    chosen = validation_documents(len(texts), fraction)
    documents = {
        "train": [text for index, text in enumerate(texts) if index not in chosen],
        "val": [text for index, text in enumerate(texts) if index in chosen],
    }
    end = np.uint16(tokenizer.end_of_text)
    splits = {
        split: [np.append(tokenizer.encode(text), end) for text in part] for split, part in documents.items()
    }
    meta = {
        "corpus": "pydoc",
        "tokenizer": tokenizer.to_meta(),
        "source": "topics of the language reference, docstrings and comments of the standard library",
        "python": platform.python_version(),
        "documents": {split: len(part) for split, part in documents.items()},
        "bytes": {split: _size(part) for split, part in documents.items()},
        "split": f"{fraction:.2%} of the documents, numpy default_rng({SPLIT_SEED}).permutation",
    }
    write_corpus(folder, splits, meta)
    return len(texts)


def _prepare_shakespeare(data_dir: Path, folder: Path, tokenizer_name: str) -> int:
    text = shakespeare.text(data_dir, folder)
    tokenizer = Characters("".join(sorted(set(text))))
    if tokenizer.vocab_size > 2**16:
        raise UsageError(f"the text has {tokenizer.vocab_size:,} different characters; 65,536 are possible")
    tokens = tokenizer.encode(text)
    cut = int(0.9 * len(tokens))
    meta = {
        "corpus": "shakespeare-char",
        "tokenizer": tokenizer.to_meta(),
        "source": "tiny Shakespeare",
        "documents": {"train": 1, "val": 1},
        "bytes": {"train": _size([text[:cut]]), "val": _size([text[cut:]])},
        "split": "the first 90 % of the characters, and the rest",
    }
    write_corpus(folder, {"train": [tokens[:cut]], "val": [tokens[cut:]]}, meta)
    return 1


def _size(texts: list[str]) -> int:
    """Bytes in UTF-8: what a loss per byte is divided by, whatever the tokeniser."""
    return sum(len(text.encode()) for text in texts)


def validation_documents(count: int, fraction: float) -> set[int]:
    """Which of `count` documents are held out: max(1, round(fraction * count)) of a fixed permutation."""
    held_out = max(1, round(fraction * count))
    return set(np.random.default_rng(SPLIT_SEED).permutation(count)[:held_out].tolist())


SOURCES = (
    Source("pydoc", ("bytes", "gpt2"), _prepare_pydoc),
    Source("shakespeare-char", ("char",), _prepare_shakespeare),
    Source("slimpajama", ("gpt2",)),
    Source("wikitext", ("gpt2",)),
    Source("pg19", ("gpt2",)),
    Source("arxivmath", ("gpt2",)),
    Source("openwebtext2", ("gpt2",), aliases=("owt2",)),
    Source("arxiv2000", ("gpt2",)),
    Source("arxiv+wiki", ("gpt2",)),
)


def registered_corpora() -> list[str]:
    """Every name that `open_corpus` knows, aliases included."""
    return [name for source in SOURCES for name in (source.name, *source.aliases)]


def open_corpus(
    name: str,
    *,
    data_dir: str | Path | None = None,
    tokenizer: str | None = None,
    vocab_size: int | None = None,
    sequence_length: int | None = None,
    in_ram: bool = False,
    log: Callable[[str], None] = print,
) -> Corpus:
    """Open a corpus, preparing its token files on first use.

    data_dir: None for data/datasets. tokenizer: None for the corpus' own. vocab_size, sequence_length: of the
    model that is to read it, None where no model is. Raises UsageError for what does not fit together,
    Failure for damaged files.
    """
    source = _find(name)
    tokenizer = tokenizer or source.tokenizers[0]
    if tokenizer not in source.tokenizers:
        raise UsageError(f"--tokenizer {tokenizer}: {name} comes in {' or '.join(source.tokenizers)} only")
    data_dir = DEFAULT_FOLDER if data_dir is None else Path(data_dir)
    folder = _folder(source, data_dir, tokenizer)
    meta = read_meta(folder)
    if meta is None and source.prepare is not None:
        _prepare(source, data_dir, folder, tokenizer, log)
        meta = read_meta(folder)
    if meta is None:
        _require_brought(source, folder)
        meta = {"corpus": source.name, "tokenizer": {"name": "gpt2", "vocab_size": Gpt2.vocab_size}}
    if vocab_size is not None:
        require_vocabulary(folder, meta, vocab_size)
    train, val = (
        open_tokens(folder / f"{split}.bin", meta, sequence_length or 1, in_ram) for split in SPLITS
    )
    return Corpus(source.name, folder, meta, train, val)


def _find(name: str) -> Source:
    for source in SOURCES:
        if name in (source.name, *source.aliases):
            return source
    raise UsageError(unknown(f"--dataset {name}: unknown corpus", name, registered_corpora()))


def _folder(source: Source, data_dir: Path, tokenizer: str) -> Path:
    if tokenizer != source.tokenizers[0]:
        return data_dir / f"{source.name}-{tokenizer}"
    for alias in source.aliases:  # token files made under the short name
        if not (data_dir / source.name).is_dir() and (data_dir / alias).is_dir():
            return data_dir / alias
    return data_dir / source.name


def _prepare(
    source: Source, data_dir: Path, folder: Path, tokenizer: str, log: Callable[[str], None]
) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)  # better known before the work than after it
    except OSError as error:
        raise Failure(f"cannot write {folder}: {error.strerror}; choose another --data_dir") from error
    log(f"preparing {source.name} in {folder}, once ...")
    started = time.perf_counter()
    documents = source.prepare(data_dir, folder, tokenizer)
    tokens = {split: described["tokens"] for split, described in read_meta(folder)["splits"].items()}
    log(
        f"prepared {source.name}: {documents:,} documents, {tokens['train']:,} + {tokens['val']:,} "
        f"{tokenizer} tokens (train + val) in {time.perf_counter() - started:.1f} s"
    )


def _require_brought(source: Source, folder: Path) -> None:
    if not any((folder / f"{split}.bin").exists() for split in SPLITS):
        raise Failure(
            f"this version cannot prepare {source.name}: bring {folder}/train.bin and val.bin "
            "(GPT-2 tokens, uint16), or use --dataset pydoc"
        )
