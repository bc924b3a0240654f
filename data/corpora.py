"""The registry of corpora: name -> who prepares it, which tokeniser it has; and how one is opened."""

import logging
import shutil
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data import algorithmic, hub, local, openwebtext2, pydoc, shakespeare
from data.corpus import Corpus, MixedCorpus, TokenCorpus
from data.preparation import Job
from data.token_files import SPLITS, open_tokens, read_meta, require_vocabulary
from data.tokenizers import HuggingFace, Tiktoken, make_tokenizer
from errors import Failure, UsageError, unknown
from files import folder_name

logger = logging.getLogger(__name__)

DEFAULT_FOLDER = Path(__file__).parent / "datasets"


@dataclass(frozen=True)
class Source:
    """A row of the registry. tokenizer: its own; fixed: it can have no other.

    prepare: writes the token files, and returns how many documents there are. large: training does not begin
    with it; it has a command of its own.
    """

    name: str
    tokenizer: str
    prepare: Callable[[Job], int]
    aliases: tuple[str, ...] = ()
    fixed: bool = False
    large: str | None = None


SOURCES = (
    Source("pydoc", "bytes", pydoc.prepare),
    Source("shakespeare-char", "char", shakespeare.prepare, fixed=True),
    Source(
        openwebtext2.NAME, "gpt2", openwebtext2.prepare, aliases=(openwebtext2.ALIAS,),
        large="python -m data.openwebtext2 download` with network and `python -m data.openwebtext2 tokenize",
    ),
    *(
        Source(
            row.name, "gpt2", partial(hub.prepare, row), large=f"python -m data.prepare --dataset {row.name}"
        )
        for row in hub.HUB
    ),
)  # fmt: skip

# Corpora made of others: the weight of each in training.
MIXTURES = {"arxiv+wiki": {"arxiv2000": 0.5, "wikitext": 0.5}}


def registered_corpora() -> list[str]:
    """Every name that `open_corpus` knows, aliases included; beside them it takes files:<pattern>."""
    names = [name for source in SOURCES for name in (source.name, *source.aliases)]
    return [*names, *MIXTURES, *algorithmic.TASKS]


def open_corpus_from_args(args: Namespace, sequence_length: int) -> Corpus:
    """Open the corpus of the flags, prepared on first use. Raises UsageError, or Failure for damage."""
    return open_corpus(
        args.dataset,
        data_dir=args.data_dir,
        tokenizer=args.tokenizer,
        vocab_size=args.vocab_size,
        sequence_length=sequence_length,
        in_ram=args.data_in_ram,
        log=logger.info,
    )


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
    """Open a corpus, preparing its token files on first use where that is a matter of seconds.

    data_dir: None for data/datasets. tokenizer: None for the corpus' own. vocab_size, sequence_length: of the
    model that is to read it, None where no model is. Raises UsageError for what does not fit together,
    Failure for damaged files.
    """
    if name in algorithmic.TASKS:
        corpus = algorithmic.open_task(name, tokenizer)
        if vocab_size is not None:
            require_vocabulary(corpus.folder, corpus.meta, vocab_size)
        return corpus
    settings = {"data_dir": data_dir, "vocab_size": vocab_size, "sequence_length": sequence_length}
    settings |= {"in_ram": in_ram, "log": log}
    if name in MIXTURES:
        tokenizer = tokenizer or find(next(iter(MIXTURES[name]))).tokenizer
        parts = [open_corpus(part, tokenizer=tokenizer, **settings) for part in MIXTURES[name]]
        return MixedCorpus(name, parts, list(MIXTURES[name].values()))
    source = find(name)
    shards = local.shards(name) if local.is_local(name) else []
    if shards:
        _require_tokenizer(source, tokenizer, only="gpt2")
        folder = shards[0].parent
        meta, splits = local.open_shards(shards, sequence_length or 1, in_ram)
    else:
        _require_tokenizer(source, tokenizer, only=source.tokenizer if source.fixed else None)
        folder = corpus_folder(name, data_dir, tokenizer)
        meta = _meta(source, name, folder, data_dir, tokenizer, log)
        splits = {
            split: [open_tokens(folder / f"{split}.bin", meta, sequence_length or 1, in_ram)]
            for split in SPLITS
        }
    if vocab_size is not None:
        require_vocabulary(folder, meta, vocab_size)
    return TokenCorpus(source.name, folder, meta, splits)


def require_prepared(name: str, *, data_dir: str | Path | None = None, tokenizer: str | None = None) -> None:
    """Before a job is queued for a machine without network: what it could not get there has to be here.

    Raises Failure where token files are missing that training would not make itself, or a vocabulary can
    neither be found nor fetched.
    """
    for part in MIXTURES.get(name, [name]):
        if part in algorithmic.TASKS or (local.is_local(part) and local.shards(part)):
            continue
        source, folder = find(part), corpus_folder(part, data_dir, tokenizer)
        if source.large and read_meta(folder) is None and not _brought(folder):
            raise _missing(part, source, folder, tokenizer)
        if (tokenizer or source.tokenizer) in Tiktoken.SIZES:
            make_tokenizer(tokenizer or source.tokenizer)


def find(name: str) -> Source:
    """The row of a name. Raises UsageError for one that is not registered."""
    if local.is_local(name):
        return Source(name, "gpt2", partial(local.prepare, name))
    for source in SOURCES:
        if name in (source.name, *source.aliases):
            return source
    raise UsageError(unknown(f"--dataset {name}: unknown corpus", name, registered_corpora()))


def corpus_folder(name: str, data_dir: str | Path | None, tokenizer: str | None) -> Path:
    """Where the token files of a corpus lie, or would."""
    source, data_dir = find(name), DEFAULT_FOLDER if data_dir is None else Path(data_dir)
    if tokenizer is None or tokenizer == source.tokenizer:
        for alias in source.aliases:  # token files made under the short name
            if not (data_dir / source.name).is_dir() and (data_dir / alias).is_dir():
                return data_dir / alias
        return data_dir / folder_name(source.name)
    label = tokenizer
    if tokenizer.endswith(".json"):
        label = f"json-{HuggingFace(Path(tokenizer)).sha256[:8]}"
    return data_dir / f"{folder_name(source.name)}-{label}"


def prepare_corpus(
    name: str,
    *,
    data_dir: str | Path | None = None,
    tokenizer: str | None = None,
    workers: int | None = None,
    on_error: str = "fatal",
    archive: Path | None = None,
    log: Callable[[str], None] = print,
) -> Corpus:
    """Prepare a corpus of whatever size, if it is not, and open it; see `open_corpus` and `data.tokenise`."""
    for part in MIXTURES.get(name, {}):
        prepare_corpus(
            part, data_dir=data_dir, tokenizer=tokenizer, workers=workers, on_error=on_error, log=log
        )
    if (
        name not in MIXTURES
        and name not in algorithmic.TASKS
        and not (local.is_local(name) and local.shards(name))
    ):
        source = find(name)
        _require_tokenizer(source, tokenizer, only=source.tokenizer if source.fixed else None)
        folder = corpus_folder(name, data_dir, tokenizer)
        if read_meta(folder) is None:
            _prepare(
                source, folder, data_dir, tokenizer, log, workers=workers, on_error=on_error, archive=archive
            )
    return open_corpus(name, data_dir=data_dir, tokenizer=tokenizer, log=log)


def _require_tokenizer(source: Source, tokenizer: str | None, only: str | None) -> None:
    if tokenizer is not None and only is not None and tokenizer != only:
        raise UsageError(f"--tokenizer {tokenizer}: {source.name} comes in {only} only")


def _meta(
    source: Source,
    name: str,
    folder: Path,
    data_dir: str | Path | None,
    tokenizer: str | None,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """What meta.json says; of a corpus that is prepared in seconds, after preparing it."""
    meta = read_meta(folder)
    brought = _brought(folder)
    if meta is not None:
        if local.is_local(name):
            local.require_unchanged(name, folder, meta)
        return meta
    if source.large is None:
        _prepare(source, folder, data_dir, tokenizer, log)
        return read_meta(folder)
    if not brought:
        raise _missing(name, source, folder, tokenizer)
    kind = tokenizer or source.tokenizer
    if kind in Tiktoken.SIZES:
        return {"corpus": source.name, "tokenizer": {"name": kind, "vocab_size": Tiktoken.SIZES[kind][0]}}
    return {"corpus": source.name, "tokenizer": make_tokenizer(kind).to_meta()}


def _brought(folder: Path) -> list[Path]:
    return [folder / f"{split}.bin" for split in SPLITS if (folder / f"{split}.bin").exists()]


def _missing(name: str, source: Source, folder: Path, tokenizer: str | None) -> Failure:
    return Failure(
        f"{name} is not prepared in {folder}: run `{source.large}`, or bring train.bin and val.bin "
        f"({tokenizer or source.tokenizer} tokens, uint16) there; --dataset pydoc needs nothing"
    )


def _prepare(
    source: Source,
    folder: Path,
    data_dir: str | Path | None,
    tokenizer: str | None,
    log: Callable[[str], None],
    **settings: Any,
) -> None:
    """Have the token files written, unless there are some that were brought."""
    brought = _brought(folder)
    if brought and source.large and not (folder / "parts").exists() and read_meta(folder) is None:
        raise Failure(
            f"{brought[0]} is there without a meta.json: it was brought; move it away to prepare here"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)  # better known before the work than after it
    except OSError as error:
        raise Failure(f"cannot write {folder}: {error.strerror}; choose another --data_dir") from error
    tokenizer = tokenizer or source.tokenizer
    if tokenizer.endswith(".json"):  # beside what is written in it, so that it can be read wherever it goes
        copy = folder / HuggingFace.name
        if not copy.exists():
            shutil.copyfile(tokenizer, copy)
        tokenizer = str(copy)
    log(f"preparing {source.name} in {folder}, once ...")
    started = time.perf_counter()
    data_dir = DEFAULT_FOLDER if data_dir is None else Path(data_dir)
    documents = source.prepare(Job(data_dir, folder, tokenizer, say=log, **settings))
    tokens = {split: described["tokens"] for split, described in read_meta(folder)["splits"].items()}
    log(
        f"prepared {source.name}: {documents:,} documents, {tokens['train']:,} + {tokens['val']:,} "
        f"{tokenizer} tokens (train + val) in {time.perf_counter() - started:.1f} s"
    )
