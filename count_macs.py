"""Count a model's compute, parameters and cache: `python count_macs.py --model adm --n_repeat 5`.

With --eval_length_factor: at these capacities. `python count_macs.py --checkpoint <run>`: of a trained model.
"""

import argparse
from pathlib import Path

import config
from config.checks import latent_cache_note
from errors import run_script, stdout_is_result
from models.config import ModelConfig
from models.macs import table


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="a checkpoint file, a run's folder or an exported model, whose flags are taken",
    )


def main() -> None:
    own, given = config.parse_with_run(None, add_flags, __doc__, hidden=False)
    stdout_is_result()
    trained_with = {}
    if own.checkpoint is not None:
        from evaluation.restore import run_flags  # imports torch

        trained_with = run_flags(own.checkpoint, given)
    args = config.complete(trained_with, given)
    model = ModelConfig.from_args(args)
    print(table(model, args.sequence_length, args.eval_length_factor, args.dtype))
    if note := latent_cache_note(model):
        print(note)


if __name__ == "__main__":
    run_script(main)
