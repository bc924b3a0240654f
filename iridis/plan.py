"""Describes a training before it is submitted: `python -m iridis.plan <flags of main.py>`.

Prints, for iridis/lib.sh: the run folder, the number of iterations, then lines to show. Wrong flags and
missing token files are refused here, before a job waits in a queue for hours.
"""

import sys
from argparse import Namespace

import config
from config.parser import parse_with_run
from data.corpus import require_prepared
from errors import run_script, stdout_is_result
from iridis.record import jobs_of
from optim.checkpoint import in_folder
from optim.resume import has_finished


def main() -> None:
    stdout_is_result()
    words = sys.argv[1:]
    if words[:1] == ["--flags-only"]:
        parse_with_run(words[1:], lambda parser: None, None)
        return
    only_folder = words[:1] == ["--folder"]
    args = config.parse_args(words[only_folder:])
    folder = config.experiment_dir(args)
    print(folder)
    if not only_folder:
        print(args.iterations)
        print("\n".join(describe(args)))


def describe(args: Namespace) -> list[str]:
    """Lines to show.

    Raises Failure if the corpus is missing and training would not prepare it, and UsageError if the folder
    holds a finished run with other flags.
    """
    folder = config.experiment_dir(args)
    saved = in_folder(folder)
    if has_finished(args, folder):
        return [f"finished already: {folder} has {args.iterations:,} iterations"]
    require_prepared(args.dataset, data_dir=args.data_dir, tokenizer=args.tokenizer)
    begins = f"resumes from {saved[0].name}" if saved else "starts from scratch"
    what = args.model if args.experiment is None else f"{args.experiment}, {args.model}"
    lines = [
        f"{what}: {args.iterations:,} iterations on {args.dataset}, "
        f"{args.batch_size * args.acc_steps} sequences of {args.sequence_length} tokens each",
        f"run folder: {folder}; {begins}",
    ]
    others = jobs_of(folder)
    if others:
        lines.append(
            f"note: {', '.join(others)} in the queue trains the same run, which only one job can do at a time"
        )
    return lines


if __name__ == "__main__":
    run_script(main)
