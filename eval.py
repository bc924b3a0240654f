"""Evaluate a checkpoint on the full validation set: `python eval.py --checkpoint <run folder or file>`."""

import argparse
from pathlib import Path

import config
from errors import run_script


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, help="a checkpoint file, or a run's folder")
    parser.add_argument(
        "--output_dir", type=Path, help="folder of the summary; default: next to the checkpoint"
    )


def main() -> None:
    own, given = config.parse_with_run(None, add_flags, __doc__)
    from tqdm import tqdm

    from evaluation.reports import check_place, describe, describe_task, result_path, summarise
    from evaluation.restore import restore
    from evaluation.routing import RouteFinder
    from files import write_json
    from models.macs import CONVENTIONS, macs_of_passes
    from optim.validation import Evaluation, evaluate

    run = restore(Path(own.checkpoint), given)
    path = result_path("eval_summary", run, own.output_dir)
    kept = check_place(path, own.output_dir, printed=True)
    corpus = run.open_corpus()
    print(f"{run.describe()}, on {run.args.dataset}")
    route = RouteFinder(run).from_flags()
    if route.about:
        print(route)

    def measure(split: str) -> Evaluation:
        batches = run.batches(split, corpus)
        bar = tqdm(batches, desc=f"evaluating {split}", unit="batch", disable=None)
        measured = evaluate(run.model, bar, run.precision, **route.settings)
        assert measured is not None  # it is None only after a stop
        return measured

    result = measure("val")
    others = {split: measure(split) for split in corpus.test_splits}
    about = {
        "checkpoint": str(run.path),
        "step": run.step,
        "model": run.args.model,
        "dataset": run.args.dataset,
        "sequence_length": run.sequence_length,
        "batch_size": run.args.batch_size,
        "arithmetic": run.precision.reason,
        **route.about,
        "macs_per_sequence": {
            name: macs_of_passes(run.model.config, result.tokens_per_pass, name) for name in CONVENTIONS
        },
    }
    if others:
        about["splits"] = {split: summarise(other) for split, other in others.items()}
    print(describe(result))
    for split, other in others.items():
        print(describe_task(split, other), flush=True)
    if kept:
        write_json(path, summarise(result, **about))
        print(f"written: {path}")


if __name__ == "__main__":
    run_script(main)
