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

    from data import open_corpus
    from data.batches import contiguous_batches
    from evaluation.perplexity import evaluate
    from evaluation.report import describe, summarise, summary_path
    from files import write_json
    from optim.restore import restore

    run = restore(Path(own.checkpoint), given)
    args = run.args
    length = args.eval_seq_length or args.sequence_length
    corpus = open_corpus(
        args.dataset,
        data_dir=args.data_dir,
        tokenizer=args.tokenizer,
        vocab_size=args.vocab_size,
        sequence_length=length,
        in_ram=args.data_in_ram,
    )
    corpus.require_tokenizer(run.tokenizer, f"the model in {run.path}")
    batches = contiguous_batches(
        corpus.val, length, args.batch_size, args.eval_sample_size, vocab_size=args.vocab_size
    )
    print(f"{run.path} (step {run.step}) on {corpus.name}, {run.precision.device}, {run.precision.reason}")
    result = evaluate(
        run.model,
        tqdm(batches, desc="evaluating", unit="batch", disable=not sys.stderr.isatty()),
        run.precision,
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
    }
    write_json(path, summarise(result, **about))
    print(describe(result))
    print(f"written: {path}")


if __name__ == "__main__":
    run_script(main)
