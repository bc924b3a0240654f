"""Prepare a corpus ahead of training: `python -m data.prepare --dataset pydoc`."""

import argparse
import json

from data import open_corpus, registered_corpora
from data.tokenizers import TOKENIZERS
from errors import run_script


def main() -> None:
    """Prepare (or open) the corpus that the flags name; print what its meta.json says."""
    parser = argparse.ArgumentParser(prog="python -m data.prepare", description=__doc__)
    parser.add_argument("--dataset", default="pydoc", help=f"one of {', '.join(registered_corpora())}")
    parser.add_argument("--tokenizer", choices=list(TOKENIZERS), help="default: the corpus' own")
    parser.add_argument("--data_dir", help="where token files lie; default: data/datasets")
    args = parser.parse_args()
    corpus = open_corpus(args.dataset, data_dir=args.data_dir, tokenizer=args.tokenizer)
    print(f"{corpus.folder}: {len(corpus.train):,} training and {len(corpus.val):,} validation tokens")
    print(json.dumps(corpus.meta, indent=2))


if __name__ == "__main__":
    run_script(main)
