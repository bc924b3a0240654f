"""Prepare a corpus ahead of training: `python -m data.prepare --dataset pydoc`."""

import argparse
import json
from pathlib import Path

from data import prepare_corpus, registered_corpora
from data.tokenise import add_flags
from data.verification import verify
from errors import run_script


def main() -> None:
    """Prepare (or open) the corpus that the flags name; print what its meta.json says."""
    parser = argparse.ArgumentParser(prog="python -m data.prepare", description=__doc__)
    add = parser.add_argument
    add("--dataset", default="pydoc", help=f"{', '.join(registered_corpora())}, or files:<pattern>")
    add(
        "--tokenizer",
        help="gpt2, cl100k_base, bytes, or the path of a tokenizer.json; default: the corpus' own",
    )
    add("--data_dir", help="where token files lie; default: data/datasets")
    add_flags(parser)
    add("--archive", type=Path, help="of openwebtext2, if it is elsewhere")
    add("--verify", action="store_true", help="compare the token files with meta.json, byte by byte")
    args = parser.parse_args()
    corpus = prepare_corpus(
        args.dataset,
        data_dir=args.data_dir,
        tokenizer=args.tokenizer,
        workers=args.workers,
        on_error=args.on_error,
        archive=args.archive,
    )
    print("\n".join(corpus.describe()))
    if args.verify:
        print("\n".join(verify(corpus.folder)))
    else:
        print(json.dumps(corpus.meta, indent=2))


if __name__ == "__main__":
    run_script(main)
