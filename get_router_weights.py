"""Router scores by token (Figure 5): `python get_router_weights.py --checkpoint <run> --split val`."""

import argparse
from pathlib import Path

import config
from errors import run_script


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, help="a checkpoint file, or a run's folder")
    parser.add_argument("--split", choices=("val", "train"), default="val", help="split of the corpus")
    parser.add_argument(
        "--output-dir", "--output_dir", type=Path, help="folder of the files; default: next to the checkpoint"
    )


def main() -> None:
    own, given = config.parse_with_run(None, add_flags, __doc__)
    from evaluation.restore import restore
    from evaluation.router_weights import describe, extract

    run = restore(Path(own.checkpoint), given)
    print(run.describe())
    path, summary = extract(run, own.split, own.output_dir)
    print(describe(summary))
    print(f"written: {path} and {path.with_suffix('.json').name}")


if __name__ == "__main__":
    run_script(main)
