"""Train a model: `python main.py --help` lists the flags, README.md shows how to begin."""

import sys

import config
from errors import run_script


def main() -> None:
    args = config.parse_args()
    # Only now: importing torch takes seconds, and --help and a typo should be answered at once.
    from optim.run import run_training

    sys.exit(run_training(args))


if __name__ == "__main__":
    run_script(main)
