"""Find the thresholds of causal routing: `python calibrate.py --checkpoint <run> --budget 0.5 0.7`."""

import argparse
from pathlib import Path

import config
from errors import UsageError, run_script


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, help="a checkpoint file, or a run's folder")
    parser.add_argument(
        "--budget",
        type=float,
        nargs="+",
        help="fractions of full compute, each to find capacities and thresholds for; or give "
        "--eval_length_factor",
    )


def main() -> None:
    own, given = config.parse_with_run(None, add_flags, __doc__)
    if (own.budget is None) == (given.get("eval_length_factor") in (None, [None])):
        raise UsageError(
            "give the capacities that thresholds must meet: --budget 0.5, or --eval_length_factor"
        )
    from evaluation.calibration import compute_fraction
    from evaluation.restore import restore
    from evaluation.routing import RouteFinder

    run = restore(Path(own.checkpoint), given)
    finder = RouteFinder(run)
    for budget in own.budget or [None]:
        if budget is None:
            route = finder.calibrated(length_factors=run.args.eval_length_factor)
        else:
            route = finder.from_budget([budget])
        found = route.about.get("calibration")
        if found is None:
            raise UsageError("--eval_length_factor: capacities of 0 and 1 need no calibration")
        for title, numbers in (
            ("capacities wanted", found["length_factors"]),
            ("reached", found["reached"]),
            ("thresholds", route.about["thresholds"]),
        ):
            print(f"{title:>18}: {' '.join(f'{number:.4f}' for number in numbers)}")
        fraction = compute_fraction(run.model.config, run.sequence_length, found["reached"])
        print(
            f"{'compute':>18}: {fraction:.3f} of full depth, on {found['tokens']:,} tokens of training text"
        )


if __name__ == "__main__":
    run_script(main)
