"""OpenWebText2: `python -m data.openwebtext2 download|bpe|tokenize|verify|reset`.

The tar of *.jsonl.zst (28 GB, 17.1 million documents) of EleutherAI's Pile, in the mirror
segyges/OpenWebText2. `download` and `bpe` need a network and little else; `tokenize` needs cores, and neither
network nor the 94 GB that the archive takes when it is extracted: it is read where it lies.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from data.download import download as fetch
from data.preparation import Job
from data.records import tar_files
from data.sources import Files
from data.token_files import META, SPLITS
from data.tokenise import add_flags
from data.tokenizers import Tiktoken, make_tokenizer
from data.verification import verify as verify_folder
from errors import Failure, UsageError, run_script

NAME, ALIAS = "openwebtext2", "owt2"
ARCHIVE = "openwebtext2.jsonl.zst.tar"
URL = f"https://huggingface.co/datasets/segyges/OpenWebText2/resolve/main/{ARCHIVE}"


def download(
    folder: Path, url: str = URL, sha256: str | None = None, say: Callable[[str], None] = print
) -> Path:
    """Fetch the archive into `folder`. Raises Failure, telling how to bring it by hand."""
    by_hand = (
        f'by hand: on a machine with network, wget -c "{URL}", then rsync --partial it to {folder / ARCHIVE}'
    )
    return fetch(url, folder / ARCHIVE, by_hand=by_hand, sha256=sha256, say=say)


def bpe(tokenizer: str = "gpt2") -> int:
    """Put a vocabulary into tiktoken's cache (TIKTOKEN_CACHE_DIR); returns its size.

    Raises Failure where it is neither there nor to be had.
    """
    return make_tokenizer(tokenizer).vocab_size


def prepare(job: Job) -> int:
    """Write the token files from the archive; returns how many documents there are.

    Raises Failure where the archive is missing or damaged; see `data.tokenise.tokenise` for the rest.
    """
    archive = job.archive or find_archive([job.folder, job.data_dir / NAME, job.data_dir / ALIAS])
    source = Files(tar_files(archive), "text")
    about = {"corpus": NAME, "source": {"archive": archive.name, **source.identity}}
    return job.tokenise(source, about)


def find_archive(folders: list[Path]) -> Path:
    """The archive in the first folder that has it. Raises Failure, telling what to do where none has."""
    for folder in folders:
        if (folder / ARCHIVE).is_file():
            return folder / ARCHIVE
    begun = any((folder / f"{ARCHIVE}.partial").exists() for folder in folders)
    raise Failure(
        f"{folders[0] / ARCHIVE} is {'not yet complete' if begun else 'missing'}; run `python -m "
        f"data.openwebtext2 download --data_dir {folders[0].parent}` on a machine with network"
    )


def reset(folder: Path, source: bool = False) -> list[Path]:
    """Delete token files and what is left of a preparation, with `source` the archive; returns what was."""
    names = [META, "parts", *(f"{split}.bin" for split in SPLITS), *(f"{s}.bin.partial" for s in SPLITS)]
    if source:
        names += [ARCHIVE, f"{ARCHIVE}.partial", f"{ARCHIVE}.json"]
    deleted = [folder / name for name in names if (folder / name).exists()]
    for path in deleted:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return deleted


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data.openwebtext2", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, about: str, with_tokenizer: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=about, description=about)
        command.add_argument("--data_dir", help="where corpora lie; default: data/datasets")
        if with_tokenizer:
            command.add_argument(
                "--tokenizer",
                default="gpt2",
                help="gpt2, cl100k_base, bytes, or the path of a tokenizer.json",
            )
        return command

    command = add("download", "fetch the archive; goes on where it broke off", with_tokenizer=False)
    command.add_argument("--url", default=URL, help="of another mirror")
    command.add_argument("--sha256", help="what the archive must have; default: what the server tells")
    add("bpe", "put the tokeniser's vocabulary into TIKTOKEN_CACHE_DIR, for machines without network")
    command = add("tokenize", "write train.bin and val.bin; goes on where it was killed")
    command.add_argument("--archive", type=Path, help=f"default: {ARCHIVE} in the corpus' folder")
    add_flags(command)
    add("verify", "recount the token files, and compare with meta.json")
    command = add("reset", "delete token files and what is left of a preparation")
    command.add_argument("--source", action="store_true", help="the downloaded archive too")
    command.add_argument("--yes", action="store_true", help="do not ask")
    return parser


def main() -> None:
    """Do what the command line says."""
    args = _parser().parse_args()
    from data.corpora import corpus_folder, prepare_corpus

    folder = corpus_folder(NAME, args.data_dir, getattr(args, "tokenizer", "gpt2"))
    if args.command == "download":
        print(f"{download(folder, args.url, args.sha256)} is complete")
    elif args.command == "bpe":
        _bpe(args.tokenizer)
    elif args.command == "tokenize":
        corpus = prepare_corpus(
            NAME, data_dir=args.data_dir, tokenizer=args.tokenizer,
            workers=args.workers, on_error=args.on_error, archive=args.archive,
        )  # fmt: skip
        print("\n".join(corpus.describe()))
    elif args.command == "verify":
        print("\n".join(verify_folder(folder)))
    else:
        _reset(folder, args.source, args.yes)


def _bpe(tokenizer: str) -> None:
    size = bpe(tokenizer)
    print(f"{tokenizer}: {size:,} tokens", end="")
    if tokenizer in Tiktoken.SIZES:
        folder = os.environ.get("TIKTOKEN_CACHE_DIR")
        print(
            f", cached in {folder}"
            if folder
            else "; set TIKTOKEN_CACHE_DIR, there and here, to a folder that compute nodes see",
            end="",
        )
    print()


def _reset(folder: Path, source: bool, sure: bool) -> None:
    if not sure:
        if not sys.stdin.isatty():
            raise UsageError(
                f"reset deletes the token files in {folder}; give --yes to do it without a question"
            )
        if input(f"delete the token files{' and the archive' if source else ''} in {folder}? [y/N] ") != "y":
            print("nothing was deleted")
            return
    deleted = reset(folder, source)
    print("\n".join(f"deleted {path}" for path in deleted) or f"there was nothing to delete in {folder}")


if __name__ == "__main__":
    run_script(main)
