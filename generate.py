"""Continue a prompt with a trained model: `python generate.py --checkpoint <run> --prompt "Once upon"`."""

import argparse
import sys
from pathlib import Path

import config
from errors import UsageError, run_script


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, help="a checkpoint file, or a run's folder")
    parser.add_argument("--prompt", default="", help="the text to continue; default: the start of a document")
    parser.add_argument(
        "--max_new_tokens", type=int, default=200, help="how many tokens to write (default: 200)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0 takes the likeliest token (default: 0.8)"
    )
    parser.add_argument("--top_k", type=int, help="draw from the k likeliest tokens only")
    parser.add_argument(
        "--top_p", type=float, help="draw from the fewest tokens whose probabilities sum to p"
    )


def check(own: argparse.Namespace) -> None:
    """Refuse values that mean nothing."""
    if own.max_new_tokens < 1:
        raise UsageError(f"--max_new_tokens {own.max_new_tokens} must be at least 1")
    if own.temperature < 0:
        raise UsageError(f"--temperature {own.temperature} must be 0 or more")
    if own.top_k is not None and own.top_k < 1:
        raise UsageError(f"--top_k {own.top_k} must be at least 1")
    if own.top_p is not None and not 0.0 < own.top_p <= 1.0:
        raise UsageError(f"--top_p {own.top_p} must be above 0 and at most 1")


def main() -> None:
    own, given = config.parse_with_run(None, add_flags, __doc__)
    check(own)
    from data.tokenizers import make_tokenizer, tokenizer_from_meta
    from evaluation.text import stream_text
    from optim.restore import restore

    run = restore(Path(own.checkpoint), given)
    pieces = stream_text(
        run.model,
        # A checkpoint of the released code does not tell its tokeniser: GPT-2's, unless --tokenizer says so.
        tokenizer_from_meta(run.tokenizer) if run.tokenizer else make_tokenizer(run.args.tokenizer or "gpt2"),
        own.prompt,
        own.max_new_tokens,
        run.precision,
        seed=run.args.seed,
        temperature=own.temperature,
        top_k=own.top_k,
        top_p=own.top_p,
    )
    sys.stdout.write(own.prompt)
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


if __name__ == "__main__":
    run_script(main)
