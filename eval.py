"""Evaluate a checkpoint on a whole validation set: `python eval.py --checkpoint <run folder or file>`."""

import argparse
import sys
from pathlib import Path

import config
from errors import run_script


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, help="a checkpoint file, or a run's folder")
    parser.add_argument("--output_dir", help="where the summary goes; default: beside the checkpoint")


def main() -> None:
    own, given = config.parse_with_run(None, add_flags, __doc__)
    from tqdm import tqdm

    from data.batches import contiguous_batches
    from evaluation.perplexity import evaluate
    from evaluation.report import describe, summarise, summary_path
    from files import write_json
    from models.macs import CONVENTIONS, macs_of_passes
    from optim.restore import restore

    run = restore(Path(own.checkpoint), given)
    args, length = run.args, run.sequence_length
    corpus = run.open_corpus()
    batches = contiguous_batches(
        corpus.val, length, args.batch_size, args.eval_sample_size, vocab_size=args.vocab_size
    )
    print(f"{run.describe()}, on {corpus.name}")
    route = run.router().from_flags()
    if route.about:
        print(route)
    result = evaluate(
        run.model,
        tqdm(batches, desc="evaluating", unit="batch", disable=not sys.stderr.isatty()),
        run.precision,
        **route.settings,
    )
    path = summary_path(run.path, own.output_dir)
    about = {
        "checkpoint": str(run.path),
        "step": run.step,
        "model": args.model,
        "dataset": corpus.name,
        "sequence_length": length,
        "batch_size": args.batch_size,
        "arithmetic": run.precision.reason,
        **route.about,
        "macs_per_sequence": {
            name: macs_of_passes(run.model.config, result.tokens_per_pass, name) for name in CONVENTIONS
        },
    }
    write_json(path, summarise(result, **about))
    print(describe(result))
    print(f"written: {path}")


if __name__ == "__main__":
    run_script(main)
