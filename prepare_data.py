"""Prepare a corpus ahead of training: `python prepare_data.py --dataset fineweb_edu`.

`python prepare_data.py openwebtext2 download|bpe|tokenize|verify|reset`: the steps of the paper's corpus.
`python prepare_data.py shards --dataset owt2 --output shards`: token files in the format of modded-nanogpt.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from config.base import DATASETS
from config.parser import Parser
from errors import UsageError, run_script, unknown

DATA_DIR_HELP = "folder of all corpora (default: data/datasets)"
TOKENIZER_HELP = "gpt2, cl100k_base, bytes, or the path of a tokenizer.json"


def corpus_parser() -> Parser:
    from data import registered_corpora

    parser = Parser(description=__doc__)
    add = parser.add_argument
    add(
        "--dataset",
        default="pydoc",
        help=f"{', '.join(registered_corpora())}, or files:<pattern>,...",
    )
    add("--tokenizer", help=f"{TOKENIZER_HELP} (default: the corpus' own)")
    add("--data_dir", help=DATA_DIR_HELP)
    _add_work(parser)
    add("--archive", type=Path, help="of openwebtext2, if it is not in its folder")
    add(
        "--val_fraction", type=float,
        help="documents to hold out for validation (default: 0.0005, and more of a small corpus of files)",
    )  # fmt: skip
    add("--verify", action="store_true", help="compare the token files with meta.json, byte by byte")
    return parser


def openwebtext2_parser() -> Parser:
    from data.openwebtext2 import ARCHIVE, URL

    parser = Parser(prog="prepare_data.py openwebtext2", description="The steps of preparing OpenWebText2.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, about: str, with_tokenizer: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=about, description=about)
        command.add_argument("--data_dir", help=DATA_DIR_HELP)
        if with_tokenizer:
            command.add_argument("--tokenizer", default="gpt2", help=f"{TOKENIZER_HELP} (default: gpt2)")
        return command

    command = add("download", "download the archive; resumes after an interruption", with_tokenizer=False)
    command.add_argument("--url", default=URL, help="of another mirror")
    command.add_argument("--sha256", help="the expected checksum (default: the server's)")
    add("bpe", "put the vocabulary into TIKTOKEN_CACHE_DIR, for machines without network")
    command = add("tokenize", "write train.bin and val.bin; resumes after an interruption")
    command.add_argument("--archive", type=Path, help=f"(default: {ARCHIVE} in the corpus' folder)")
    _add_work(command)
    add("verify", "compare the token files with meta.json, byte by byte")
    command = add("reset", "delete the token files and any unfinished preparation")
    command.add_argument("--source", action="store_true", help="the downloaded archive too")
    command.add_argument("--yes", action="store_true", help="do not ask")
    return parser


def shards_parser() -> Parser:
    from data import registered_corpora
    from data.shards import PER_SHARD

    parser = Parser(prog="prepare_data.py shards", description="Write a corpus as shards (modded-nanogpt).")
    add = parser.add_argument
    add("--dataset", required=True, help=", ".join(registered_corpora()))
    add("--tokenizer", help="(default: the corpus' own)")
    add("--data_dir", help=DATA_DIR_HELP)
    add("--output", required=True, help="folder of the shards")
    add("--tokens_per_shard", type=int, default=PER_SHARD, help="(default: %(default)s)")
    return parser


def _add_work(parser: argparse.ArgumentParser) -> None:
    from data.tokenise import ON_ERROR

    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    parser.add_argument(
        "--on_error", choices=ON_ERROR, default="fatal",
        help="bad records and damaged files: stop (fatal), or leave them out and report them (skip) "
        "(default: fatal)",
    )  # fmt: skip


def prepare(words: list[str]) -> None:
    args = corpus_parser().parse(words)
    from data import prepare_corpus
    from data.token_files import verify

    corpus = prepare_corpus(
        args.dataset, data_dir=args.data_dir, tokenizer=args.tokenizer,
        workers=args.workers, on_error=args.on_error, archive=args.archive, val_fraction=args.val_fraction,
    )  # fmt: skip
    print("\n".join(corpus.describe()))
    print("\n".join(verify(corpus.folder)) if args.verify else json.dumps(corpus.meta, indent=2))


def openwebtext2(words: list[str]) -> None:
    args = openwebtext2_parser().parse(words)
    from data import openwebtext2 as corpus
    from data import prepare_corpus
    from data.corpora import corpus_folder
    from data.token_files import verify

    folder = corpus_folder(corpus.NAME, args.data_dir, getattr(args, "tokenizer", "gpt2"))
    if args.command == "download":
        print(f"{corpus.download(folder, args.url, args.sha256)} is complete")
    elif args.command == "bpe":
        print(_cached(args.tokenizer, corpus.bpe(args.tokenizer)))
    elif args.command == "tokenize":
        prepared = prepare_corpus(
            corpus.NAME, data_dir=args.data_dir, tokenizer=args.tokenizer,
            workers=args.workers, on_error=args.on_error, archive=args.archive,
        )  # fmt: skip
        print("\n".join(prepared.describe()))
    elif args.command == "verify":
        print("\n".join(verify(folder)))
    elif args.yes or _confirmed(folder, args.source):
        deleted = corpus.reset(folder, args.source)
        print("\n".join(f"deleted {path}" for path in deleted) or f"there is nothing to delete in {folder}")
    else:
        print("nothing was deleted")


def _cached(tokenizer: str, size: int) -> str:
    """Where a vocabulary of `size` tokens is now."""
    from data.tokenizers import TiktokenTokenizer

    if tokenizer not in TiktokenTokenizer.SIZES:
        return f"{tokenizer}: {size:,} tokens"
    folder = os.environ.get("TIKTOKEN_CACHE_DIR")
    if folder:
        return f"{tokenizer}: {size:,} tokens, cached in {folder}"
    return (
        f"{tokenizer}: {size:,} tokens; set TIKTOKEN_CACHE_DIR, here and in jobs, to a folder that compute "
        "nodes can read"
    )


def _confirmed(folder: Path, source: bool) -> bool:
    if not sys.stdin.isatty():
        raise UsageError(f"reset deletes the token files in {folder}; give --yes to do it without a question")
    return input(f"delete the token files{' and the archive' if source else ''} in {folder}? [y/N] ") == "y"


def shards(words: list[str]) -> None:
    args = shards_parser().parse(words)
    from data import open_corpus
    from data.corpus import TokenCorpus
    from data.shards import write_shards

    corpus = open_corpus(args.dataset, data_dir=args.data_dir, tokenizer=args.tokenizer)
    if not isinstance(corpus, TokenCorpus):
        raise UsageError(f"--dataset {args.dataset} has no token files of its own to write as shards")
    for path in write_shards(corpus, Path(args.output), args.tokens_per_shard):
        print(path)


def main() -> None:
    words = sys.argv[1:]
    steps = {"openwebtext2": openwebtext2, "owt2": openwebtext2, "shards": shards}
    if words and words[0] in steps:
        steps[words[0]](words[1:])
    elif words and words[0] in DATASETS:
        raise UsageError(f"{words[0]!r} belongs to no flag; did you mean --dataset {words[0]}?")
    elif words and not words[0].startswith("-"):
        raise UsageError(unknown(f"{words[0]!r} is unknown", words[0], [*steps, "--dataset"]))
    else:
        prepare(words)


if __name__ == "__main__":
    run_script(main)
