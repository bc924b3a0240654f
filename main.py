"""Train a model: `python main.py --help` lists the flags."""

import sys

import config
from errors import run_script


def main() -> None:
    args = config.parse_args()
    # Here, as torch takes seconds to import, and --help and typos should be answered at once.
    from optim.run import run_training

    sys.exit(run_training(args))


if __name__ == "__main__":
    run_script(main)
