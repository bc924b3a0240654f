"""Perplexity over compute of one checkpoint (Figure 4): `python get_ppl_per_mac.py --checkpoint <run>`."""

import argparse
from pathlib import Path

import config
from errors import UsageError, run_script


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, help="a checkpoint file, or a run's folder")
    parser.add_argument(
        "--output-dir", "--output_dir", type=Path, help="folder of the files; default: next to the checkpoint"
    )
    parser.add_argument(
        "--budget",
        type=float,
        nargs="+",
        help="fractions of full compute to add points at, besides the published settings",
    )


def main() -> None:
    own, given = config.parse_with_run(None, add_flags, __doc__)
    budgets = own.budget or []
    for budget in budgets:
        if not 0.0 < budget <= 1.0:
            raise UsageError(f"--budget {budget:g}: a fraction of full compute is above 0 and at most 1")
    from evaluation.compute_sweep import measure
    from evaluation.restore import restore

    run = restore(Path(own.checkpoint), given)
    print(run.describe())
    path = measure(run, own.output_dir, budgets)
    print(f"written: {path}; python plot_fig4.py {path} draws it")


if __name__ == "__main__":
    run_script(main)
